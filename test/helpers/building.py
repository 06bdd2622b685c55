"""What the tests of the built package share: the source tree, commands, and processes of what was built."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD_S = 600    # a deadline for what takes half a minute on an idle machine


def source_files() -> list[Path]:
    """What a clone with today's changes would hold, relative to ROOT."""
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
                            cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        names = {Path(name) for name in listed.stdout.split('\0') if name}
        return sorted(name for name in names if (ROOT / name).is_file())
    # an unpacked archive, without git
    skipped = {'.venv', '.venv-kilted', 'build', 'install', 'log', 'dist', 'demo', 'runs', '__pycache__', '_lib'}
    return sorted(path.relative_to(ROOT) for path in ROOT.rglob('*')
                  if path.is_file() and not skipped & set(path.relative_to(ROOT).parts) and path.suffix != '.so')


def data_files() -> list[Path]:
    """Files beside the modules that the library reads at run time."""
    return [path for path in source_files()
            if path.parts[0] in ('tar_vis_core', 'tar_vis_ros') and path.suffix not in ('.py', '.cpp', '.h')]


def programs() -> dict[str, str]:
    """Return the programs that pyproject.toml declares: name to 'module:function'."""
    section = (ROOT / 'pyproject.toml').read_text().partition('[project.scripts]')[2].partition('\n[')[0]
    return dict(re.findall(r'^([\w-]+) = "([\w.]+:\w+)"$', section, re.MULTILINE))


def copy_source(target: Path) -> None:
    for name in source_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def run(command: list[str], **options) -> str:
    """Standard output of a command; its last words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, **options)
    assert done.returncode == 0, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


def with_this_python(env: dict[str, str]) -> dict[str, str]:
    """``env`` in which python3 is the interpreter of these tests."""
    return dict(env, PATH=os.pathsep.join([str(Path(sys.executable).parent), env['PATH']]))


def colcon_build(workspace: Path) -> dict[str, str]:
    """Build ``workspace``/src; gives the variables that `. install/local_setup.sh` sets or changes."""
    before = with_this_python(dict(os.environ))
    if not before.get('AMENT_PREFIX_PATH'):   # ROS from wheels: its prefix is the virtual environment
        before['AMENT_PREFIX_PATH'] = before['CMAKE_PREFIX_PATH'] = sys.prefix
    run([sys.executable, '-m', 'colcon', 'build', '--event-handlers', 'console_direct+', '--cmake-args',
         f'-DPython3_EXECUTABLE={sys.executable}'], cwd=workspace, env=before)
    install = workspace / 'install'
    sourced = run(['sh', '-c', '. "$COLCON_CURRENT_PREFIX/local_setup.sh" && env -0'], cwd=workspace,
                  env=dict(before, COLCON_CURRENT_PREFIX=str(install)))
    after = dict(line.split('=', 1) for line in sourced.split('\0') if '=' in line)
    return {name: value for name, value in after.items() if os.environ.get(name) != value}


class BuiltProcess:
    """A child process of something that was built; its output goes to ``folder``."""

    def __init__(self, command: list[str], env: dict[str, str], folder: Path, name: str) -> None:
        self.name = name          # of the ROS node in it, for node_process.Client
        self._output = folder / f'{name}.log'
        with self._output.open('w') as out:
            # a group of its own, so that a signal reaches what launch has started as Ctrl+C does
            self._process = subprocess.Popen(command, env=env, cwd=folder, stdout=out, stderr=subprocess.STDOUT,
                                             start_new_session=True)

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the process and to its children."""
        os.killpg(self._process.pid, number)

    def wait(self, seconds: float = 60) -> int:
        """The exit code."""
        return self._process.wait(seconds)

    def close(self) -> None:
        """End it, however it is; nothing is left."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(9)
        self._process.wait()
