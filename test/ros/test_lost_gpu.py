"""A node whose GPU is lost ends with a code of its own, and one that cannot be configured gives its memory back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from unittest import mock

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('torch')
import torch
from building import BuiltProcess
from diagnostic_msgs.msg import DiagnosticStatus
from node_process import Client, picture

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

LOSES_IT = """
import sys, time
from pathlib import Path
from tar_vis_core.errors import DeviceLostError
from tar_vis_core.options import SegmenterOptions
from tar_vis_core.state import TemporalState
from tar_vis_ros.node import __main__, node
class Model:
    device, class_names, options, warm = 'cuda:0', ('thing',), SegmenterOptions(), False
    remarks, arithmetic = ('something falls back',), 'float32'
    def new_state(self, epoch):
        return TemporalState(epoch=epoch)
    def needs_recording(self, height, width):
        return not self.warm
    def warm_up(self, height, width):
        while not Path('recorded').exists():
            time.sleep(0.05)
        self.warm = True
    def step(self, *_):
        raise DeviceLostError('the GPU cuda:0 is lost: restart the process (illegal access)')
node.load_segmenter = lambda settings: Model()
sys.exit(__main__.main(['node', '--ros-args', '-p', 'autostart:=true', '-p', 'image_reliability:=reliable',
                        '-r', 'image:=/tar_vis/image']))
"""


def test_diagnostics_tell_what_falls_back_what_is_recorded_and_at_last_that_the_gpu_is_lost(ros_env, tmp_path):
    process = BuiltProcess([sys.executable, '-c', LOSES_IT], ros_env, tmp_path, 'tar_vis')
    client = Client(process)

    def told(words: str) -> None:
        client.until(lambda: client.status is not None and words in client.status.message, f'{words!r} in /diagnostics')

    try:
        told('something falls back')
        assert len(re.findall('WARN.*something falls back', process.output)) == 1
        client.send(client.image(picture()))
        told('recording CUDA graphs for images of 160x120')
        (tmp_path / 'recorded').touch()
        told('the GPU cuda:0 is lost: restart the process')
        assert client.status.level == DiagnosticStatus.ERROR
        assert process.wait(120) == os.EX_TEMPFAIL, 'a respawn helps'
    finally:
        client.close()
        process.close()


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
