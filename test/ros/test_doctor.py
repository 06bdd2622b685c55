"""tar-vis doctor names what is wrong, with a remedy, and its exit code says whether anything is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip('rclpy')
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from node_process import PATIENCE_S
from sensor_msgs.msg import CompressedImage, Image

from tar_vis_core.benchmark import machine
from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.doctor import computer, graph
from tar_vis_ros.doctor.finding import Finding
from tar_vis_ros.process import which_ros

DOCTOR = [sys.executable, '-m', 'tar_vis_core.commands.main', 'doctor']


def findings(output: str) -> dict[str, str]:
    """The lines of an output by their subjects, each with its remedy."""
    parts = re.split(r'^(?=(?:ok|look|WRONG) )', output, flags=re.MULTILINE)
    return {part.split()[1]: ' '.join(part.split()) for part in parts if part}


class Graph:
    """Cameras of which something is wrong with each but the first, and a node of this package that does nothing."""

    def __init__(self) -> None:
        self.contexts = rclpy.Context(), rclpy.Context()    # a participant has one type for a topic
        for context in self.contexts:
            rclpy.init(context=context)
        self.node, self.other = (rclpy.create_node(name, context=context) for name, context in zip(
            ('cameras', 'other'), self.contexts, strict=True))
        self.cameras = {name: self.node.create_publisher(Image, f'/{name}/image', 1) for name in (
            'good', 'late', 'stampless', 'strange', 'silent', 'twice')}
        self.cameras['twice again'] = self.node.create_publisher(Image, '/twice/image', 1)
        self.node.create_publisher(Image, '/mixed/image', 1)
        self.other.create_publisher(CompressedImage, '/mixed/image', 1)
        self.diagnostics = self.node.create_publisher(DiagnosticArray, '/diagnostics', 1)

    def publish(self) -> None:
        pixels = np.zeros((48, 64, 3), np.uint8)
        for name, publisher in self.cameras.items():
            image = array_to_image(pixels, 'bgr8')
            image.header.stamp = self.node.get_clock().now().to_msg()
            if name == 'late':
                image.header.stamp.sec -= 600
            elif name == 'stampless':
                image.header.stamp.sec = image.header.stamp.nanosec = 0
            elif name == 'strange':
                image.encoding = '32FC3'
            if name != 'silent':
                publisher.publish(image)
        values = [KeyValue(key='image topic', value='/front'), KeyValue(key='state', value='unconfigured')]
        self.diagnostics.publish(DiagnosticArray(status=[
            DiagnosticStatus(name='eyes: segmentation', message='unconfigured', values=values)]))

    def close(self) -> None:
        for node, context in zip((self.node, self.other), self.contexts, strict=True):
            node.destroy_node()
            rclpy.shutdown(context=context)


def test_the_graph_is_looked_through(tmp_path):
    cameras = Graph()
    out = tmp_path / 'out'
    try:
        with out.open('w') as file:
            process = subprocess.Popen(DOCTOR, stdout=file, stderr=subprocess.STDOUT)
            deadline = time.monotonic() + PATIENCE_S
            while process.poll() is None and time.monotonic() < deadline:
                cameras.publish()
                time.sleep(0.05)
        assert process.returncode == 1, out.read_text()
    finally:
        cameras.close()
    found = findings(out.read_text())
    for subject, words in {
            '/good/image': ['ok ', 'sensor_msgs/msg/Image', 'reliable', 'Hz', '64x48 bgr8', 'ms old'],
            '/late/image': ['look ', 'stamps 600', 's old', 'do -> set the clocks'],
            '/stampless/image': ['WRONG ', 'without stamps', 'header.stamp'],
            '/strange/image': ['WRONG ', "'32FC3' is not supported", 'another encoding'],
            '/silent/image': ['WRONG ', 'it publishes nothing'],
            '/twice/image': ['WRONG ', '2 publishers', 'leave one'],
            '/mixed/image': ['WRONG ', 'sensor_msgs/msg/CompressedImage and sensor_msgs/msg/Image'],
            'eyes:': ['look ', 'is unconfigured', 'autostart:=true'],
            'RMW': ['ok ', 'rmw_'], 'ROS': ['ok '], 'versions': ['ok ', 'torch'], 'weights': [],
    }.items():
        for word in words:
            assert word in found[subject], found[subject]
    assert all(('do ->' in line) != line.startswith('ok ') for line in found.values()), 'remedies'


def test_without_ros_the_computer_is_looked_through_all_the_same():
    code = "import sys; sys.modules['rclpy'] = None; from tar_vis_core.commands.main import main; " \
           "sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=PATIENCE_S)
    found = findings(done.stdout)
    assert done.returncode == 1 and not done.stderr, done.stderr
    assert 'WRONG ROS rclpy cannot be imported do -> source ROS' in found['ROS'] and 'RMW' not in found
    assert {'versions', 'processor', 'kernels', 'threads', 'devices', 'weights', 'clock'} <= set(found)


def test_a_middleware_that_is_not_there_is_named():
    done = subprocess.run(DOCTOR, capture_output=True, text=True, timeout=PATIENCE_S,
                          env=dict(os.environ, RMW_IMPLEMENTATION='rmw_nothing_cpp'))
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'rmw_nothing_cpp' in findings(done.stdout)['RMW'] and 'do -> unset' in findings(done.stdout)['RMW']


@pytest.mark.parametrize(('env', 'wrong', 'words'), [
    ({}, False, '0, discovery SUBNET'),
    ({'ROS_DOMAIN_ID': '101', 'ROS_LOCALHOST_ONLY': '1'}, False, '101, discovery LOCALHOST'),
    ({'ROS_DOMAIN_ID': '233'}, True, "'233'"),
    ({'ROS_DOMAIN_ID': 'robot'}, True, "'robot'"),
    ({'ROS_DOMAIN_ID': '150'}, False, 'take 0 to 101'),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF'}, False, 'no node finds another'),
])
def test_domains(env, wrong, words):
    found = graph.domain(env)
    assert found.wrong == wrong and words in ' '.join(str(found).split())


def test_two_distributions_in_one_terminal(monkeypatch, tmp_path):
    (tmp_path / 'librcl.so').touch()
    env = {'ROS_DISTRO': 'jazzy', 'LD_LIBRARY_PATH': str(tmp_path)}
    monkeypatch.setattr(which_ros, 'wheels_of_ros', lambda: 'sometime')
    found = graph.installation(env)
    assert found.wrong and f'{tmp_path} of jazzy is sourced' in found.text and 'wheels of sometime' in found.text
    assert not graph.installation({'ROS_DISTRO': 'jazzy'}).wrong, 'images of ROS set it, and source nothing'
    for own in ('jazzy', ''):
        monkeypatch.setattr(which_ros, 'wheels_of_ros', lambda own=own: own)
        assert not graph.installation(env).wrong


def test_shared_memory(tmp_path):
    profile = tmp_path / 'profile.xml'
    name = graph.PROFILE_VARIABLES[0]
    assert graph.shared_memory('rmw_fastrtps_cpp', tmp_path, {name: str(profile)}).wrong, 'no such file'
    profile.write_text('')
    assert not graph.shared_memory('rmw_fastrtps_cpp', tmp_path, {name: str(profile)}).remedy
    assert 'shm-size' in graph.shared_memory('rmw_fastrtps_cpp', tmp_path, {}).remedy, 'no profile fitted'
    assert 'unset' in graph.shared_memory('rmw_fastrtps_cpp', tmp_path, {name: ''}).remedy
    assert not graph.shared_memory('rmw_cyclonedds_cpp', tmp_path, {}).remedy


def test_threads_fit_the_quota_of_a_container(tmp_path, monkeypatch):
    quota = tmp_path / 'cpu.max'
    quota.write_text('50000 100000\n')
    assert computer.allowed_cpus(quota) == 0.5
    quota.write_text('max 100000\n')
    assert computer.allowed_cpus(quota) == computer.allowed_cpus(tmp_path / 'nothing') >= 1
    monkeypatch.setattr(computer.torch, 'get_num_threads', lambda: 4)
    assert 'threads:=2' in computer.threads(lambda: 2).remedy
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert not computer.threads(lambda: 4).remedy and not computer.threads(lambda: 16).remedy
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    assert 'unset OMP_NUM_THREADS' in computer.threads(lambda: 16).remedy


def test_a_clock_that_lost_its_battery():
    found = computer.clock(lambda: 86400.0)
    assert found.wrong and found.text.startswith('1970-01-02') and 'chrony' in found.remedy
    assert not computer.clock().wrong


def test_weights_that_were_changed(tmp_path, monkeypatch):
    changed = tmp_path / 'nano.safetensors'
    changed.write_bytes(b'version https://git-lfs')
    monkeypatch.setattr(computer, 'packaged_weights', lambda preset: changed)
    assert computer.weights().wrong and 'sha256' in computer.weights().text


def test_a_finding_fits_the_screen():
    text = str(Finding('/a/topic', 'word ' * 60, 'do this ' * 30, wrong=True))
    assert max(map(len, text.splitlines())) <= 110
    assert text.startswith('WRONG /a/topic') and text.count('do -> ') == 1
    assert machine.package_version() in str(computer.versions())
