"""Every test process gets a DDS domain, a DDS profile and one or two threads, before ROS or torch load."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from building import colcon_build, copy_source

from tar_vis_ros.process.dds import use_shared_memory_profile
from tar_vis_ros.process.domains import ClaimedDomain

# Files of `make quick` and of `colcon test`: those that neither build, nor train, nor start a node.
QUICK = frozenset({
    'test_clips.py', 'test_dds_profile.py', 'test_depth.py', 'test_detections.py', 'test_device.py', 'test_frames.py',
    'test_health.py', 'test_identity_measures.py', 'test_images.py', 'test_instances.py', 'test_json_files.py',
    'test_launch_files.py', 'test_lifting.py', 'test_mailbox.py', 'test_masks.py',
    'test_messages.py', 'test_options.py', 'test_overlay.py', 'test_parameters.py', 'test_query_matching.py',
    'test_readme.py', 'test_replay_scoring.py', 'test_results_json.py', 'test_stamp_watch.py', 'test_stamps.py',
    'test_state_resets.py', 'test_viewer_configurations.py', 'test_whole_files.py'})

# What takes minutes is begun first, so that no process ends long after the other.
LONG = ('test_build', 'test_replay', 'test_replay_ends', 'test_parity', 'test_node_processes', 'test_soak',
        'test_printed_commands', 'test_cuda_graph_streams', 'test_dvis_parity')


def pytest_configure(config: pytest.Config) -> None:
    # a shell's job in the background ignores Ctrl-C, and so would all that tests start and interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if missing := QUICK - {path.name for path in Path(__file__).parent.rglob('test_*.py')}:
        raise pytest.UsageError(f'QUICK in {__file__} names files that do not exist: {", ".join(sorted(missing))}')


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m quick`` the other files are not even imported."""
    other = collection_path.suffix == '.py' and collection_path.name not in QUICK
    return True if other and config.option.markexpr == 'quick' else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in QUICK:
            item.add_marker('quick')
    if 'PYTEST_XDIST_WORKER' in os.environ:     # the processes of `make test` take turns at files, which share fixtures
        items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def _limit_threads() -> None:
    """Set at most two threads, and one if several test processes share the machine."""
    most = 1 if 'PYTEST_XDIST_WORKER' in os.environ else 2
    for variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
        asked = os.environ.get(variable, '')
        os.environ[variable] = str(min(int(asked), most) if asked.isdigit() and int(asked) else most)


_DOMAIN = ClaimedDomain()       # until this process ends
os.environ['ROS_DOMAIN_ID'] = str(_DOMAIN.number)
os.environ['TAR_VIS_TEST_PROCESS'] = str(os.getpid())       # by which this process's children are known
_limit_threads()
use_shared_memory_profile()
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'   # nothing of a test leaves this machine
os.environ['RCUTILS_COLORIZED_OUTPUT'] = '0'


@pytest.fixture(autouse=True, scope='module')
def auto_is_the_cpu(request: pytest.FixtureRequest):
    """`device: auto` means the CPU in tests and their processes, on machines with a GPU too."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__.rpartition('.')[2] != 'test_gpu':
            patch.setenv('CUDA_VISIBLE_DEVICES', '')
        yield


@pytest.fixture
def ros_env(tmp_path: Path) -> dict[str, str]:
    """Environment for a child process: this process's domain, profile and threads, logs in ``tmp_path``.

    The ROS wheels re-execute Python once to set LD_LIBRARY_PATH and say so in
    _ROS_WHEELS_BOOTSTRAP_COMPLETE: a child keeps both or neither.
    """
    env = dict(os.environ, ROS_LOG_DIR=str(tmp_path / 'ros_log'), PYTHONUNBUFFERED='1')
    if '_ROS_WHEELS_BOOTSTRAP_COMPLETE' not in env or 'LD_LIBRARY_PATH' not in env:
        env.pop('_ROS_WHEELS_BOOTSTRAP_COMPLETE', None)
    return env


@pytest.fixture(scope='session')
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree, in the folder src/tar_vis_ros of a workspace of its own."""
    target = tmp_path_factory.mktemp('workspace') / 'src' / 'tar_vis_ros'
    copy_source(target)
    return target


@pytest.fixture(scope='session')
def colcon_variables(source_copy: Path) -> dict[str, str]:
    """What sourcing a colcon build of the package sets; HERE is its install folder."""
    pytest.importorskip('colcon_ros', reason='colcon is not installed')
    workspace = source_copy.parents[1]
    return dict(colcon_build(workspace), HERE=str(workspace / 'install/tar_vis_ros'))


@pytest.fixture
def colcon_env(ros_env: dict[str, str], colcon_variables: dict[str, str]) -> dict[str, str]:
    """Environment for a child process with the colcon build sourced; HERE is its install folder."""
    return {**ros_env, **colcon_variables}
