"""Build the ROS messages and the kernels for pip. What the package is and needs stands in pyproject.toml.

With apt ROS use colcon (package.xml, CMakeLists.txt). With ROS wheels from PyPI
`pip install --no-build-isolation .` runs the same CMakeLists.txt and puts what it
installs into the virtual environment. Without either, or with
TAR_VIS_SKIP_INTERFACES=1, only the library is installed.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
NAME = 'tar_vis_ros'
DATA_KINDS = ('html', 'json', 'md', 'safetensors', 'toml', 'yaml')   # the same as in CMakeLists.txt


def ament_prefixes() -> list[Path]:
    """Prefixes that hold an ament CMake installation, environment first."""
    found = [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    found.append(Path(sys.prefix))
    # build isolation: pip's overlay is only known through sys.path
    found += [Path(p).parents[2] for p in sys.path if p.endswith('site-packages')]
    unique = list(dict.fromkeys(p.resolve() for p in found))
    has_ament = any((p / 'share/ament_cmake_core/cmake').is_dir() for p in unique)
    return unique if has_ament else []


class BuildModules(build_py):
    """Python modules, and config/ beside them, where tar_vis_ros/process/resources.py looks for it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # there the modules read the checkout's config/
            shutil.copytree(HERE / 'config', Path(self.build_lib) / NAME / 'config', dirs_exist_ok=True)


class BuildInterfaces(build_ext):
    """Generate and compile the messages of msg/, and compile the kernels, with CMake."""

    def run(self) -> None:
        prefixes = ament_prefixes()
        if not prefixes or os.environ.get('TAR_VIS_SKIP_INTERFACES'):
            print('no ament installation: messages are not built', file=sys.stderr)
            return
        if find_spec('ament_package') is None:
            sys.exit('tar_vis_ros: the messages are built with the ROS of this environment, which pip hides: '
                     'use pip install --no-build-isolation, or set TAR_VIS_SKIP_INTERFACES=1 for the library alone')
        if shutil.which('cmake') is None:
            sys.exit('tar_vis_ros: cmake is not installed; run: sudo apt-get install -y python3-dev cmake g++ make')
        temp = Path(self.build_temp).resolve() / NAME
        stage = temp / 'install'
        shutil.rmtree(stage, ignore_errors=True)
        temp.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(map(str, prefixes))
        env = dict(os.environ, AMENT_PREFIX_PATH=path, CMAKE_PREFIX_PATH=path)
        subprocess.run(
            ['cmake', '-S', str(HERE), '-B', str(temp / 'build'),
             f'-DCMAKE_INSTALL_PREFIX={stage}', '-DCMAKE_BUILD_TYPE=Release',
             '-DBUILD_TESTING=OFF', f'-DPython3_EXECUTABLE={sys.executable}',
             f'-DPython3_INCLUDE_DIR={sysconfig.get_path("include")}',
             '-DCMAKE_INSTALL_RPATH=$ORIGIN'],
            check=True, env=env)
        subprocess.run(
            ['cmake', '--build', str(temp / 'build'), '--target', 'install', '--parallel'],
            check=True, env=env)
        self._collect(stage)

    def _collect(self, stage: Path) -> None:
        """Copy what CMake installed to where setuptools packs it."""
        root = HERE if self.inplace else Path(self.build_lib)
        target = root / NAME
        shutil.rmtree(target / 'msg', ignore_errors=True)
        shutil.rmtree(target / '_lib', ignore_errors=True)
        for package in stage.rglob(f'*-packages/{NAME}'):
            shutil.copytree(package / 'msg', target / 'msg', ignore=shutil.ignore_patterns('__pycache__', '*.c'))
            for library in package.glob('*.so'):
                shutil.copy2(library, target / library.name)
        for library in stage.rglob('*-packages/tar_vis_core/runtime/kernels/*.so'):
            shutil.copy2(library, root / 'tar_vis_core' / 'runtime' / 'kernels' / library.name)
        (target / '_lib').mkdir()
        if self.inplace:    # read by tar_vis_ros/process/which_ros.py
            (target / '_lib' / 'built_for').write_text(sys.prefix)
        for library in stage.glob(f'lib*/lib{NAME}__*.so'):
            shutil.copy2(library, target / '_lib' / library.name)
        # an editable install carries no data files; there the checkout itself
        # holds the launch files and the parameters
        installed = [*(stage / 'share').rglob('*'), *(stage / 'lib' / NAME).rglob('*')]
        for path in sorted(installed):
            if path.is_file():
                self.distribution.data_files.append(
                    (str(path.parent.relative_to(stage)), [os.path.relpath(path)]))


class PlatformDistribution(Distribution):
    """Always runs build_ext, so that the wheel carries the compiled messages."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    version=ElementTree.parse(HERE / 'package.xml').findtext('version'),   # one place for pip and ROS
    packages=find_packages(include=['tar_vis_core*', 'tar_vis_ros*'], exclude=['tar_vis_ros.msg*']),
    package_data={'': [f'{folder}*.{kind}' for folder in ('', 'files/', 'recipes/') for kind in DATA_KINDS]},
    data_files=[],
    cmdclass={'build_py': BuildModules, 'build_ext': BuildInterfaces},
    distclass=PlatformDistribution,
    zip_safe=False,
)
