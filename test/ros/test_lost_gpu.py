"""A node whose GPU is lost ends with a code of its own, and one that cannot be configured gives its memory back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from unittest import mock

import pytest

pytest.importorskip('rclpy')
torch = pytest.importorskip('torch')

NODE = """
import sys, weakref
from tar_vis_core.errors import DeviceLostError
from tar_vis_ros.node import __main__, node
class Model:
    pass
def load(settings):
    model = Model()
    made.append(weakref.ref(model))
    raise ERROR
made = []
node.load_segmenter, give_back = load, node.give_back_memory
def watched():
    give_back()
    print('given back:', made[-1]() is None, flush=True)
node.give_back_memory = watched
sys.exit(__main__.main(['node', '--ros-args', '-p', 'autostart:=true']))
"""


def start(error: str, env: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-c', NODE.replace('ERROR', error)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_lost_gpu_ends_the_process_with_its_own_code(ros_env):
    process = start("DeviceLostError('the GPU cuda:0 is lost: restart the process (illegal access)')", ros_env)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == os.EX_TEMPFAIL, errors
    assert 'tar-vis-node: the GPU cuda:0 is lost: restart the process' in errors and 'Traceback' not in errors


def test_a_failed_configure_gives_back_its_memory_and_the_node_stays(ros_env):
    process = start("RuntimeError('CUDA out of memory')", ros_env)
    deadline = threading.Timer(120, process.kill)
    deadline.start()
    try:
        said = next((line for line in process.stdout if line.startswith('given back')), '')
        assert said == 'given back: True\n'
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        deadline.cancel()
        process.kill()
    assert process.returncode == 0 and 'CUDA out of memory' in errors


@pytest.mark.parametrize('used', [True, False])
def test_memory_of_a_gpu_is_given_back_where_one_was_used(used):
    """What torch keeps of it for itself, no other program can have."""
    from tar_vis_ros.node.node import give_back_memory

    with mock.patch.multiple(torch.cuda, is_initialized=lambda: used, empty_cache=mock.DEFAULT) as cuda:
        give_back_memory()
    assert cuda['empty_cache'].called is used
