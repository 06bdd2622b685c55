"""A ROS in the environment that is not for this Python: each command says so in a line, before it imports anything."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
from building import programs
from node_process import PATIENCE_S

from tar_vis_ros.process import which_ros
from tar_vis_ros.process.which_ros import ros_problem

BIN = Path(sys.executable).parent
OTHER = '.cpython-399-x86_64-linux-gnu.so'


def sourced(folder: Path, package: str, ending: str) -> dict[str, str]:
    """The environment with a package of ROS whose compiled part ends so."""
    (folder / package).mkdir(parents=True)
    (folder / package / '__init__.py').write_text('raise ImportError("made for another Python")')
    (folder / package / f'_{package}{ending}').touch()
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(['/nowhere', str(folder)])}


def run(words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run([str(BIN / words[0]), *words[1:]], env=env, capture_output=True, text=True,
                          timeout=PATIENCE_S)


@pytest.mark.skipif(not (BIN / 'tar-vis').is_file(), reason='the commands are not installed')
@pytest.mark.parametrize('words', [*([name, '--help'] for name in programs() if name != 'tar-vis'), ['tar-vis-node'],
                                   ['tar-vis-bag', 'from-video', 'photographs', 'bag'], ['tar-vis', 'see']])
def test_each_command_names_the_folder_in_one_line(tmp_path, words):
    done = run(words, sourced(tmp_path / 'ros', 'rclpy', OTHER))
    assert done.returncode == 1 and done.stderr.count('\n') == 1 and not done.stdout
    assert done.stderr.startswith(f'{words[0]}: {tmp_path / "ros"} of PYTHONPATH has a ROS for another Python')
    assert 'env -u PYTHONPATH' in done.stderr


@pytest.mark.skipif(not (BIN / 'tar-vis').is_file(), reason='the commands are not installed')
def test_what_needs_no_ros_runs_and_the_doctor_tells(tmp_path):
    env = sourced(tmp_path, 'sensor_msgs', OTHER)
    assert run(['tar-vis', 'weights', 'list'], env).returncode == 0
    done = run(['tar-vis', 'doctor'], env)
    assert done.returncode == 1 and 'another Python' in ' '.join(done.stdout.split()) and not done.stderr


@pytest.mark.parametrize('package', ['rclpy', 'std_msgs', 'sensor_msgs', 'rcl_interfaces'])
def test_messages_alone_are_looked_at_too(tmp_path, package):
    assert 'another Python' in ros_problem(sourced(tmp_path, package, OTHER))[0]


@pytest.mark.parametrize('ending', EXTENSION_SUFFIXES)
def test_a_ros_for_this_python_is_no_mistake(tmp_path, ending):
    assert ros_problem(sourced(tmp_path, 'rclpy', ending) | {'ROS_DISTRO': ''}) == ('', '')


def test_messages_built_for_another_environment_are_told(tmp_path, monkeypatch):
    """One checkout, `make` for one distribution and then a command of the other's environment."""
    monkeypatch.setattr(which_ros, 'BUILT_FOR', tmp_path / 'built_for')
    assert ros_problem({}) == ('', ''), 'nothing is known of a build by colcon'
    which_ros.BUILT_FOR.write_text(sys.prefix)
    assert ros_problem({}) == ('', '')
    which_ros.BUILT_FOR.write_text(str(tmp_path / '.venv-kilted'))
    problem, remedy = ros_problem({})
    assert f'built for {tmp_path}/.venv-kilted' in problem and sys.prefix in problem and 'make setup' in remedy
