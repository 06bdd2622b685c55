"""The package builds as a colcon workspace and as a wheel, and what was built runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

rclpy = pytest.importorskip('rclpy')

from lifecycle_msgs.msg import State, Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
BUILD_S = 300
ANSWER_S = 60

pytestmark = pytest.mark.skipif(shutil.which('cmake') is None, reason='cmake is not installed')


def source_files() -> list[Path]:
    """What a clone with today's changes would hold, relative to ROOT."""
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
                            cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        names = {Path(name) for name in listed.stdout.split('\0') if name}
        return sorted(name for name in names if (ROOT / name).is_file())
    # an unpacked archive, without git
    skipped = {'.venv', 'build', 'install', 'log', 'dist', 'demo', 'runs', '__pycache__', '_lib'}
    return sorted(path.relative_to(ROOT) for path in ROOT.rglob('*')
                  if path.is_file() and not skipped & set(path.relative_to(ROOT).parts) and path.suffix != '.so')


def data_files() -> list[Path]:
    """Files beside the modules that the library reads at run time."""
    return [path for path in source_files() if path.parts[0] == 'tar_vis_core' and path.suffix != '.py']


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp('workspace') / 'src' / 'tar_vis_ros'
    for name in source_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope='module')
def colcon_env(source: Path) -> dict[str, str]:
    """Environment after `colcon build` and `. install/local_setup.sh`; HERE is the install folder."""
    pytest.importorskip('colcon_ros', reason='colcon is not installed')
    workspace = source.parents[1]
    env = dict(os.environ)
    env['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), env['PATH']])
    if not env.get('AMENT_PREFIX_PATH'):   # ROS from wheels: its prefix is the virtual environment
        env['AMENT_PREFIX_PATH'] = env['CMAKE_PREFIX_PATH'] = sys.prefix
    run([sys.executable, '-m', 'colcon', 'build', '--event-handlers', 'console_direct+', '--cmake-args',
         '-DBUILD_TESTING=OFF', f'-DPython3_EXECUTABLE={sys.executable}'], cwd=workspace, env=env)
    install = workspace / 'install'
    sourced = run(['sh', '-c', '. "$COLCON_CURRENT_PREFIX/local_setup.sh" && env -0'], cwd=workspace,
                  env=dict(env, COLCON_CURRENT_PREFIX=str(install)))
    env = dict(line.split('=', 1) for line in sourced.split('\0') if '=' in line)
    return dict(env, HERE=str(install / 'tar_vis_ros'))


def run(command: list[str], **options) -> str:
    """Standard output of a command; its last words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, **options)
    assert done.returncode == 0, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


def where(env: dict[str, str]) -> Path:
    """Folder that `import tar_vis_ros` takes, with its messages loaded."""
    return Path(run(['python3', '-c', (
        'import tar_vis_ros, tar_vis_core; from rclpy.serialization import serialize_message, deserialize_message\n'
        'from tar_vis_ros.msg import InstanceMask, InstanceMaskArray\n'
        'sent = InstanceMaskArray(instances=[InstanceMask(track_id=7, runs=[1, 2, 3], status=InstanceMask.LOST)])\n'
        'assert deserialize_message(serialize_message(sent), InstanceMaskArray) == sent\n'
        'assert tar_vis_core.__file__.startswith(tar_vis_ros.__file__[:-len("tar_vis_ros/__init__.py")])\n'
        'print(tar_vis_ros.__file__)')], env=env, cwd='/').strip()).parent


class LifecycleClient:
    """Asks a lifecycle node by its services."""

    def __init__(self, name: str) -> None:
        self.context = rclpy.Context()
        self.context.init()
        self.node = rclpy.create_node('asker', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.get = self.node.create_client(GetState, f'{name}/get_state')
        self.change = self.node.create_client(ChangeState, f'{name}/change_state')

    def _ask(self, client, request):
        assert client.wait_for_service(timeout_sec=ANSWER_S), f'{client.srv_name} does not come up'
        future = client.call_async(request)
        self.executor.spin_until_future_complete(future, timeout_sec=ANSWER_S)
        assert future.done(), f'{client.srv_name} does not answer'
        return future.result()

    def state(self) -> int:
        return self._ask(self.get, GetState.Request()).current_state.id

    def transition(self, identifier: int) -> bool:
        return self._ask(self.change, ChangeState.Request(transition=Transition(id=identifier))).success

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@contextmanager
def process(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    with log.open('w') as out, subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def test_colcon_installs_modules_data_config_and_launch_files(colcon_env):
    package = where(colcon_env)
    here = Path(colcon_env['HERE'])
    assert here in package.parents
    assert not (package / '_lib').exists()
    missing = [path for path in data_files() if not (package.parent / path).is_file()]
    assert not missing
    for folder in ('launch', 'config'):
        assert {p.name for p in (here / 'share/tar_vis_ros' / folder).iterdir()} == \
            {p.name for p in source_files() if p.parts[0] == folder for p in [ROOT / p]}
    found = run(['python3', '-c', 'from tar_vis_ros.resources import config_file; print(config_file("tar_vis.yaml"))'],
                env=colcon_env, cwd='/')
    assert here in Path(found.strip()).parents


def test_colcon_built_node_lives_through_its_lifecycle(colcon_env, ros_env, tmp_path):
    node = Path(colcon_env['HERE']) / 'lib/tar_vis_ros/tar_vis_node'
    params = Path(colcon_env['HERE']) / 'share/tar_vis_ros/config/tar_vis.yaml'
    env = {**ros_env, **colcon_env, 'ROS_LOG_DIR': ros_env['ROS_LOG_DIR']}
    log = tmp_path / 'node.log'
    command = [str(node), '--ros-args', '--params-file', str(params), '-p', 'device:=cpu', '-p', 'threads:=1']
    client = LifecycleClient('tar_vis')
    try:
        with process(command, env, log) as child:
            assert client.state() == State.PRIMARY_STATE_UNCONFIGURED
            assert client.transition(Transition.TRANSITION_CONFIGURE), log.read_text()
            assert client.state() == State.PRIMARY_STATE_INACTIVE
            assert client.transition(Transition.TRANSITION_ACTIVATE), log.read_text()
            assert client.state() == State.PRIMARY_STATE_ACTIVE
            child.send_signal(signal.SIGINT)
            assert child.wait(timeout=20) == 0, log.read_text()
    finally:
        client.close()
    assert 'Traceback' not in log.read_text()


def test_colcon_built_source_sends_and_ends(colcon_env, ros_env, tmp_path):
    source = Path(colcon_env['HERE']) / 'lib/tar_vis_ros/tar_vis_video'
    env = {**ros_env, **colcon_env, 'ROS_LOG_DIR': ros_env['ROS_LOG_DIR']}
    log = tmp_path / 'source.log'
    with process([str(source), '--frames', '3', '--ros-args', '-p', 'rate:=30'], env, log) as child:
        assert child.wait(timeout=60) == 0, log.read_text()
    assert 'sent 3 frames' in log.read_text()


def test_wheel_holds_messages_config_launch_files_and_weights(source, ros_env, tmp_path):
    run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-build-isolation', '--no-deps', '-w', str(tmp_path),
         str(source)])
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
        {'tar-vis', 'tar-vis-node', 'tar-vis-video', 'tar-vis-demo'}
    env = dict(ros_env, PYTHONPATH=str(unpacked))
    env['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), env['PATH']])
    assert where(env) == unpacked / 'tar_vis_ros'


def test_messages_are_those_of_the_build(ros_env):
    """The editable build beside this test is not older than msg/: every declared field is in the class."""
    from tar_vis_ros import msg
    for path in sorted((ROOT / 'msg').glob('*.msg')):
        lines = [line.split('#')[0].split() for line in path.read_text().splitlines()]
        fields = [words[1] for words in lines if len(words) == 2 and '=' not in words[1]]
        assert list(getattr(msg, path.stem).get_fields_and_field_types()) == fields


def test_a_stopped_build_step_says_what_failed(tmp_path):
    """scripts/step.sh hides a command's words unless it fails, and gives its exit status."""
    step = ['sh', str(ROOT / 'scripts/step.sh'), 'trying']
    good = subprocess.run([*step, 'sh', '-c', 'echo noise'], capture_output=True, text=True)
    bad = subprocess.run([*step, 'sh', '-c', 'echo reason; exit 3'], capture_output=True, text=True)
    assert (good.returncode, bad.returncode) == (0, 3)
    assert 'noise' not in good.stdout
    assert 'reason' in bad.stdout


@pytest.mark.parametrize('found, missing', [
    (('cmake', 'make'), 'g++'), (('g++', 'make'), 'cmake'), (('cmake', 'g++', 'make'), '')])
def test_set_up_names_the_missing_apt_packages(tmp_path, found, missing):
    for tool in (*found, 'sh'):
        (tmp_path / tool).symlink_to('/bin/true')
    done = subprocess.run(['/bin/sh', str(ROOT / 'scripts/check_system.sh'), sys.executable],
                          env={'PATH': str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == (1 if missing else 0), done.stderr
    assert done.stderr.count('\n') == done.returncode
    assert not missing or f'apt-get install -y {missing}' in done.stderr


def test_set_up_refuses_an_unsupported_python(tmp_path):
    python = tmp_path / 'python3'
    python.write_text('#!/bin/sh\necho 3.8\n')
    python.chmod(0o755)
    began = time.monotonic()
    done = subprocess.run(['sh', str(ROOT / 'scripts/check_system.sh'), str(python)], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'is 3.8' in done.stderr
    assert time.monotonic() - began < 5
