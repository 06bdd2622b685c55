"""The programs of the tutorial run as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('skimage')

from building import ROOT
from builtin_interfaces.msg import Time
from camera_graph import CameraGraph
from node_process import PATIENCE_S, NodeProcess, nano_weights
from simulated_camera import Robot, Thing, messages

from tar_vis_ros.process.children import ChildProcess


def program(number: int, folder: Path) -> str:
    """The file of the page's program of that number."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/tutorials/write_an_agent.md').read_text(), re.DOTALL)
    path = folder / f'agent_{number}.py'
    path.write_text(blocks[number])
    return str(path)


def test_the_agent_that_waits_sees_a_person(tmp_path):
    if nano_weights(tmp_path):
        pytest.skip('an untrained model sees nobody')
    node = NodeProcess(tmp_path, 'tar_vis', autostart=True, device='cpu', threads=1)
    camera = ChildProcess('tar_vis_video', 'tar_vis_ros.video_source', [
        '--loop', '--width', '320', '--ros-args', '-r', 'image:=/tar_vis/image'])
    try:
        done = subprocess.run([sys.executable, program(0, tmp_path)], capture_output=True, text=True,
                              timeout=PATIENCE_S)
        found = re.fullmatch(r'person #\d+: \d+ of \d+ pixels, score [01]\.\d\d\n', done.stdout)
        assert found, done.stderr + node.output
    finally:
        camera.end()
        node.end()


def test_the_agent_that_looks_for_the_nearest_finds_it(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    program(1, tmp_path)
    graph = CameraGraph()
    try:
        agent = ChildProcess('agent', 'agent_1', [])
        graph.children.append(agent)
        graph.connect()
        random = np.random.default_rng(0)

        def said(words: str, *things: Thing) -> bool:
            now = graph.node.get_clock().now().nanoseconds
            graph.publish(*messages(Time(sec=now // 10**9, nanosec=now % 10**9), Robot(), list(things), random))
            return any(re.match(words, line) for line in list(agent.lines)[-5:])

        place = r'person #4: [23]\.\d\d m ahead, -0\.[345]\d m right'
        graph.until(lambda: said(place, Thing(4, 3.0, 0.4), Thing(5, 4.0, -1.0)), 'person')
        graph.until(lambda: said('nobody'), 'nobody')
        assert not [line for line in agent.lines if not re.match('person|nobody', line)]
    finally:
        graph.close()
