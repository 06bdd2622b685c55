"""The package builds as a colcon workspace and as a wheel, and what was built runs."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest
from building import ROOT, BuiltProcess, data_files, programs, run, source_files, with_this_python

pytest.importorskip('rclpy')

from node_process import Client, nano_weights

pytestmark = pytest.mark.skipif(shutil.which('cmake') is None, reason='cmake is not installed')


def imported_from(env: dict[str, str]) -> Path:
    """Folder that `import tar_vis_ros` takes, once its messages and kernels are found to work."""
    return Path(run(['python3', '-c', (
        'import tar_vis_ros, tar_vis_core\n'
        'from rclpy.serialization import serialize_message, deserialize_message\n'
        'from tar_vis_ros.msg import InstanceMask, InstanceMaskArray\n'
        'sent = InstanceMaskArray(instances=[InstanceMask(track_id=7, runs=[1, 2, 3], status=InstanceMask.LOST)])\n'
        'assert deserialize_message(serialize_message(sent), InstanceMaskArray) == sent\n'
        'beside = tar_vis_ros.__file__.replace("tar_vis_ros/__init__", "tar_vis_core/__init__")\n'
        'assert tar_vis_core.__file__ == beside, tar_vis_core.__file__\n'
        'from tar_vis_core.runtime import kernels\n'
        'assert kernels.compiled(), kernels.LIBRARY\n'
        'print(tar_vis_ros.__file__)')], env=env, cwd='/').strip()).parent


def test_colcon_installs_modules_data_config_and_launch_files(colcon_env):
    here = Path(colcon_env['HERE'])
    package = imported_from(colcon_env)
    assert here in package.parents
    assert not (package / '_lib').exists(), 'what pip left in the checkout has no place in a colcon build'
    assert not [path for path in data_files() if not (package.parent / path).is_file()]
    for path in source_files():
        if path.parts[0] in ('launch', 'config'):
            assert (here / 'share/tar_vis_ros' / path).read_bytes() == (ROOT / path).read_bytes()
        if path.parts[0] == 'msg':
            assert (here / 'share/tar_vis_ros' / path).is_file()
    code = 'from tar_vis_ros.process.resources import config_file; print(config_file("tar_vis.yaml"))'
    found = run(['python3', '-c', code], env=colcon_env, cwd='/')
    assert here in Path(found.strip()).parents


def test_colcon_installs_every_program_for_the_shell_and_for_ros2_run(colcon_env):
    here = Path(colcon_env['HERE'])
    for name in programs():
        assert Path(shutil.which(name, path=colcon_env['PATH'])) == here / 'bin' / name
        for_ros = here / 'lib/tar_vis_ros' / name
        assert os.access(for_ros, os.X_OK) and for_ros.read_bytes() == (here / 'bin' / name).read_bytes()
        assert run([name, '--help'], env=colcon_env, cwd='/').startswith(f'usage: {name} ')


def test_colcon_test_runs_the_quick_tests_with_pytest(colcon_env):
    build = Path(colcon_env['HERE']).parents[1] / 'build/tar_vis_ros'
    test, = json.loads(run(['ctest', '--show-only=json-v1'], cwd=build))['tests']
    command = test['command']
    assert 'PYTEST_ADDOPTS=-m quick' in command
    words = command[command.index('--command') + 1:]
    assert words[1:4] == ['-u', '-m', 'pytest'] and Path(words[4]).name == 'test'


def test_colcon_built_node_lives_through_its_lifecycle(colcon_env, tmp_path):
    here = Path(colcon_env['HERE'])
    node = BuiltProcess(
        [str(here / 'lib/tar_vis_ros/tar-vis-node'), '--ros-args',
         '--params-file', str(here / 'share/tar_vis_ros/config/tar_vis.yaml'),
         '-p', 'device:=cpu', '-p', 'threads:=1', '-p', f"weights:='{nano_weights(tmp_path)}'"],
        colcon_env, tmp_path, 'tar_vis')
    client = Client(node)
    try:
        assert client.state == 'unconfigured'
        assert client.transition('configure'), node.output
        assert client.state == 'inactive'
        assert client.transition('activate'), node.output
        assert client.state == 'active'
        node.signal(signal.SIGINT)
        assert node.wait() == 0, node.output
    finally:
        client.close()
        node.close()
    assert 'Traceback' not in node.output


def test_colcon_built_source_sends_and_ends(colcon_env, tmp_path):
    source = BuiltProcess([str(Path(colcon_env['HERE']) / 'lib/tar_vis_ros/tar-vis-video'), '--frames', '3',
                           '--ros-args', '-p', 'rate:=30'], colcon_env, tmp_path, 'tar_vis_video')
    try:
        assert source.wait() == 0, source.output
    finally:
        source.close()
    assert 'sent 3 frames' in source.output


def test_wheel_holds_messages_config_launch_files_and_weights(source_copy, ros_env, tmp_path):
    run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-build-isolation', '--no-deps', '-w', str(tmp_path),
         str(source_copy)])
    wheel, = tmp_path.glob('tar_vis_ros-*.whl')
    unpacked = tmp_path / 'unpacked'
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(unpacked)
    assert not [str(path) for path in data_files() if str(path) not in names]
    assert any(name.startswith('tar_vis_ros/_lib/lib') for name in names)
    for path in source_files():
        if path.parts[0] in ('launch', 'config'):
            assert any(name.endswith(f'.data/data/share/tar_vis_ros/{path}') for name in names), path
        if path.parts[0] == 'config':
            assert f'tar_vis_ros/{path}' in names
    scripts, = (unpacked / name for name in names if name.endswith('entry_points.txt'))
    assert {line.partition(' =')[0] for line in scripts.read_text().splitlines() if '=' in line} == \
        set(programs())
    for name in programs():     # what launch files start, also with the wheels
        assert any(file.endswith(f'.data/data/lib/tar_vis_ros/{name}') for file in names), name
    assert imported_from(with_this_python(dict(ros_env, PYTHONPATH=str(unpacked)))) == unpacked / 'tar_vis_ros'


# what an import needs: its key in package.xml, its name in pyproject.toml; '' where rosdep has none, or pip has none
LIBRARIES = {
    'cv2': ('python3-opencv', 'opencv-python-headless'), 'matplotlib': ('python3-matplotlib', 'matplotlib'),
    'numpy': ('python3-numpy', 'numpy'), 'onnxruntime': ('', 'onnxruntime'),
    'openvino': ('', 'openvino'),
    'pycocotools': ('', 'pycocotools'), 'rosbags': ('', 'rosbags'),
    'PIL': ('python3-pil', 'pillow'), 'lz4': ('', ''), 'backports': ('', ''),    # the last two come with rosbags
    'safetensors': ('', 'safetensors'), 'scipy': ('python3-scipy', 'scipy'),
    'skimage': ('python3-skimage', 'scikit-image'),
    'torch': ('', 'torch'), 'tqdm': ('python3-tqdm', 'tqdm'), 'triton': ('', ''),   # triton comes with torch for GPUs
    'yaml': ('python3-yaml', 'PyYAML')}


def test_what_is_imported_is_declared_for_rosdep_and_for_pip():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    keys = {element.text for element in package if element.tag in ('depend', 'exec_depend')}
    asked = set(re.findall(r'^    "([\w-]+)>=|\["([\w-]+)>=', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE))
    asked = {name for pair in asked for name in pair if name}
    imported = set()
    for path in source_files():
        if path.suffix == '.py' and path.parts[0] in ('launch', 'tar_vis_core', 'tar_vis_ros'):
            for node in ast.walk(ast.parse((ROOT / path).read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition('.')[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add(node.module.partition('.')[0])
    newer = {'compression'}     # of Python 3.14's own library, beside what older ones take
    for name in imported - sys.stdlib_module_names - newer - {'tar_vis_core', 'tar_vis_ros'}:
        key, project = LIBRARIES.get(name, (name, ''))      # a ROS package is its own key
        assert not key or key in keys, f'{name} has no key in package.xml'
        assert not project or project in asked, f'{name} is not in pyproject.toml'


def test_messages_in_use_are_those_of_the_checkout():
    """Every field that msg/ declares is in the class: the editable build is not older."""
    from tar_vis_ros import msg
    for path in sorted((ROOT / 'msg').glob('*.msg')):
        lines = [line.split('#')[0].split() for line in path.read_text().splitlines()]
        fields = [words[1] for words in lines if len(words) == 2 and '=' not in words[1]]
        assert list(getattr(msg, path.stem).get_fields_and_field_types()) == fields


def test_every_message_field_has_a_comment():
    for path in sorted((ROOT / 'msg').glob('*.msg')):
        for line in path.read_text().splitlines():
            assert '#' in line or not line.strip(), f'{path.name}: {line}'


def test_a_step_of_the_set_up_says_what_failed():
    step = ['sh', str(ROOT / 'scripts/step.sh'), 'trying']
    good = subprocess.run([*step, 'sh', '-c', 'echo noise'], capture_output=True, text=True)
    bad = subprocess.run([*step, 'sh', '-c', 'echo reason; exit 3'], capture_output=True, text=True)
    assert (good.returncode, bad.returncode) == (0, 3)
    assert 'noise' not in good.stdout
    assert 'reason' in bad.stdout


@pytest.mark.parametrize('found, missing', [
    (('cmake', 'make'), 'g++'), (('g++', 'make'), 'cmake'), (('make',), 'cmake g++'), (('cmake', 'g++', 'make'), '')])
def test_set_up_names_the_missing_apt_packages(tmp_path, found, missing):
    for tool in (*found, 'sh'):
        (tmp_path / tool).symlink_to('/bin/true')
    done = subprocess.run(['/bin/sh', str(ROOT / 'scripts/check_system.sh'), sys.executable],
                          env={'PATH': str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == (1 if missing else 0), done.stderr
    assert done.stderr.count('\n') == done.returncode, 'one line'
    assert not missing or f'apt-get install -y {missing}' in done.stderr


def test_set_up_refuses_an_unsupported_python(tmp_path):
    python = tmp_path / 'python3'
    python.write_text('#!/bin/sh\necho 3.8\n')
    python.chmod(0o755)
    done = subprocess.run(['sh', str(ROOT / 'scripts/check_system.sh'), str(python)], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'is 3.8' in done.stderr
