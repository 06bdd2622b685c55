"""The video source as a process on a real ROS graph: every frame arrives once, in order, and it ends as it should."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from tar_vis_ros.conversions.images import image_to_rgb
from tar_vis_ros.msg import InstanceMaskArray
from tar_vis_ros.process.parameters import ParameterError
from tar_vis_ros.video_source import TABLE, command_line

PATIENCE_S = 60.0   # a deadline for what takes a second on an idle machine
FRAMES = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Grey images whose level tells their number: 10, 20, ..."""
    images = tmp_path / 'images'
    images.mkdir()
    for number in range(FRAMES):
        cv2.imwrite(str(images / f'{number}.png'), np.full((48, 64, 3), 10 * (number + 1), np.uint8))
    return images


class Viewer:
    """Collects the images of one source; ``answer`` publishes an InstanceMaskArray for an image."""

    def __init__(self, topic: str, reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node('viewer', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.images: list[Image] = []
        self.on_image = lambda image: None
        self.node.create_subscription(Image, topic, self._take, QoSProfile(depth=50, reliability=reliability))
        self._answers = self.node.create_publisher(InstanceMaskArray, f'{topic}/answers', 10)

    def _take(self, image: Image) -> None:
        self.images.append(image)
        self.on_image(image)

    def answer(self, image: Image) -> None:
        self._answers.publish(InstanceMaskArray(header=image.header))

    def until(self, done, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, f'no {what} in {PATIENCE_S:.0f} s'
            self._executor.spin_once(timeout_sec=0.05)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.05)

    @property
    def stamps(self) -> list[float]:
        return [image.header.stamp.sec + image.header.stamp.nanosec * 1e-9 for image in self.images]

    @property
    def levels(self) -> list[int]:
        return [int(image_to_rgb(image)[0, 0, 0]) for image in self.images]

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()


@pytest.fixture
def topic(request) -> str:
    return '/' + re.sub(r'\W+|_+', '_', request.node.name).strip('_')


@pytest.fixture
def viewer(topic):
    viewer = Viewer(topic)
    yield viewer
    viewer.close()


@pytest.fixture
def start(ros_env, topic):
    """Starts ``tar-vis-video`` with arguments; kills what is left at the end."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        plain = [a for a in arguments if a != '--ros-args']
        ros = plain[arguments.index('--ros-args'):] if '--ros-args' in arguments else []
        plain = plain[:len(plain) - len(ros)]
        process = subprocess.Popen(
            [sys.executable, '-m', 'tar_vis_ros.video_source', *plain, '--ros-args', '-r', f'image:={topic}', *ros],
            env=ros_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output


def test_every_frame_arrives_once_in_order_with_rising_stamps(start, viewer, folder):
    process = start(str(folder), '--rate', '20', '--wait-for-subscribers', '1', '--width', '32')
    viewer.until(lambda: process.poll() is not None, 'end of the source')
    viewer.until(lambda: len(viewer.images) == FRAMES, f'{FRAMES} images')
    code, output = ended(process)
    assert code == 0, output
    assert f'sent {FRAMES} frames' in output
    assert viewer.levels == [10, 20, 30, 40, 50, 60]
    gaps = np.diff(viewer.stamps)
    assert (gaps > 0).all()
    assert viewer.stamps[-1] - viewer.stamps[0] >= (FRAMES - 1) / 20 - 0.02     # no faster than asked
    assert {(image.width, image.height, image.encoding) for image in viewer.images} == {(32, 24, 'rgb8')}
    assert {image.header.frame_id for image in viewer.images} == {'camera'}


def test_a_best_effort_subscriber_is_served(start, topic, folder):
    viewer = Viewer(topic, ReliabilityPolicy.BEST_EFFORT)
    try:
        process = start(str(folder), '--rate', '10', '--loop', '--wait-for-subscribers', '1')
        viewer.until(lambda: len(viewer.images) >= FRAMES + 2, 'images, also of the second pass')
        process.send_signal(signal.SIGINT)
        code, output = ended(process)
        assert code == 0
        assert 'Traceback' not in output
        assert (np.diff(viewer.stamps) > 0).all()
    finally:
        viewer.close()


@pytest.mark.parametrize('stamps, back', [('source', 0), ('restart', 1)])
def test_source_stamps_follow_the_source(start, viewer, folder, stamps, back):
    process = start(str(folder), '--rate', '100', '--loop', '--frames', str(2 * FRAMES), '--stamps', stamps,
                    '--wait-for-subscribers', '1')
    viewer.until(lambda: len(viewer.images) == 2 * FRAMES, 'both passes')
    assert ended(process)[0] == 0
    gaps = np.diff(viewer.stamps)       # the folder's own rate is 10 per second, however fast it is sent
    assert (gaps < 0).sum() == back
    assert np.allclose(gaps[gaps > 0], 0.1, atol=1e-6)
    assert back == 0 or np.isclose(viewer.stamps[FRAMES], viewer.stamps[0])


def test_follow_sends_the_next_frame_when_the_last_is_answered(start, viewer, topic, folder):
    process = start(str(folder), '--rate', '200', '--wait-for-subscribers', '1', '--follow', f'{topic}/answers',
                    '--follow-timeout-s', '60')
    for number in range(1, FRAMES + 1):
        viewer.until(lambda n=number: len(viewer.images) >= n, f'image {number}')
        if number == 3:
            viewer.spin(0.5)    # no answer, no further image
        assert len(viewer.images) == number
        viewer.answer(viewer.images[-1])
    assert ended(process)[0] == 0
    assert viewer.levels == [10, 20, 30, 40, 50, 60]


def test_follow_goes_on_without_an_answer(start, viewer, topic, folder):
    process = start(str(folder), '--wait-for-subscribers', '1', '--follow', f'{topic}/answers', '--frames', '3',
                    '--follow-timeout-s', '0.3')
    viewer.until(lambda: len(viewer.images) == 3, 'three images')
    code, output = ended(process)
    assert code == 0
    assert output.count('no answer on') == 3


def test_parameters_set_the_same_options_and_sigterm_is_quiet(start, viewer, folder):
    process = start('--ros-args', '-p', f'source:={folder}', '-p', 'rate:=25', '-p', 'loop:=true',
                    '-p', 'frame_id:=left_eye', '-p', 'wait_for_subscribers:=1')
    viewer.until(lambda: len(viewer.images) > FRAMES, 'images')
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code == 0
    assert 'Traceback' not in output
    assert viewer.images[0].header.frame_id == 'left_eye'


@pytest.mark.parametrize('arguments, expected', [
    (('absent.mp4',), 'absent.mp4: no such file or folder'),
    (('--ros-args', '-p', 'rate:=.nan'), "parameter 'rate' is nan, expected a number from 0 to 240"),
    (('--ros-args', '-p', 'rate:=fast'), "parameter 'rate' is 'fast', expected a number"),
    (('--ros-args', '--params-file', 'absent.yaml'), 'absent.yaml'),
])
def test_bad_input_is_one_line_and_exit_code_1(start, arguments, expected):
    code, output = ended(start(*arguments))
    assert code == 1
    assert expected in output
    assert len(output.strip().splitlines()) == 1


@pytest.mark.parametrize('arguments', [['--rate', 'nan'], ['--rate', '-1'], ['--rate', '1e9'], ['--width', '-3'],
                                       ['--follow-timeout-s', '0'], ['--frames', '-1']])
def test_command_line_values_out_of_range_are_refused(arguments):
    with pytest.raises(ParameterError, match=r"^parameter '.*' is .*, expected .* from .* to"):
        command_line(arguments)


@pytest.mark.parametrize('name, value', [('loop', 1), ('loop', 'yes'), ('rate', True), ('frames', 2.5),
                                         ('frames', True), ('stamps', 'never'), ('frame_id', [1])])
def test_values_of_another_type_are_refused(name, value):
    with pytest.raises(ParameterError, match=f"^parameter '{name}' is .*, expected"):
        TABLE.check(name, value)


def test_every_option_is_a_flag_with_the_parameters_name():
    arguments = []
    for name, option in TABLE.options.items():
        if name != 'source' and not isinstance(option.default, bool):
            arguments += ['--' + name.replace('_', '-'), option.choices[-1] if option.choices else '7']
    values = command_line([*arguments, '--loop', '2'])
    assert set(values) == set(TABLE.options)
    assert values['source'] == '2'
    assert values['loop'] is True
