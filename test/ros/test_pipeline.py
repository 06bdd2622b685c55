"""The way of a frame through the node, with a model that does what the test says: who waits for whom."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('torch')
from sensor_msgs.msg import Image
from test_messages import frame, instance, random_masks

from tar_vis_core.errors import DeviceLostError
from tar_vis_core.segmenter import SegmenterOptions
from tar_vis_core.state import TemporalState
from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.conversions.label_images import IMAGES, Moving
from tar_vis_ros.node import pictures
from tar_vis_ros.node.cameras import Camera, Outputs
from tar_vis_ros.node.pipeline import Pipeline

PATIENCE_S = 60


class Publisher:
    """Keeps what is published."""

    def __init__(self, listeners: int = 0) -> None:
        self.listeners, self.messages, self.changed = listeners, [], threading.Condition()

    def get_subscription_count(self) -> int:
        return self.listeners

    def publish(self, message) -> None:
        with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.messages) >= count, PATIENCE_S)


class Model:
    """A segmenter whose steps wait for ``step_s`` and note what they were told."""

    device, class_names, options = 'cpu', ('thing',), SegmenterOptions(reset_gap_s=0.5)

    def __init__(self) -> None:
        self.steps, self.gate = [], threading.Event()
        self.gate.set()
        self.remarks, self.error, self.cold = (), None, set()

    def needs_recording(self, height, width) -> bool:
        return (height, width) in self.cold

    def warm_up(self, height, width) -> None:
        self.steps.append('warm-up')
        assert self.gate.wait(PATIENCE_S)
        self.cold.remove((height, width))

    def step(self, image, state, stamp_s, stream_break):
        self.steps.append((round(stamp_s, 3), stream_break))
        if self.error:
            raise self.error
        assert self.gate.wait(PATIENCE_S)
        return frame([instance(mask) for mask in random_masks(1)])

    def reset(self, state, reason) -> None:
        pass


class Logger(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(lines=[])
        self.info = self.warning = self.error = self.lines.append


class Rig:
    """A pipeline of one camera, started."""

    def __init__(self, overlay_listeners: int = 0, **listeners: int) -> None:
        self.outputs = Outputs(Publisher(), Publisher(), Publisher(overlay_listeners),
                               {name: Publisher(listeners.get(name, 0)) for name in IMAGES})
        self.camera = Camera('', '/image', self.outputs, TemporalState())
        self.model, self.logger = Model(), Logger()
        self.pipeline = Pipeline(self.model, [self.camera], self.logger)
        self.pipeline.start()

    def send(self, stamp_s: float, missed: int = 0, encoding: str = 'rgb8') -> None:
        image: Image = array_to_image(np.zeros((120, 160, 3), np.uint8), encoding)
        image.header.stamp.sec, image.header.stamp.nanosec = divmod(round(stamp_s * 1e9), 10**9)
        self.pipeline.put(0, image, 0.0, missed)


@pytest.fixture
def rig():
    made = Rig()
    yield made
    made.model.gate.set()
    made.pipeline.stop()


def held(rig: Rig) -> None:
    """The model is busy with a first image of second 1."""
    rig.model.gate.clear()
    rig.send(1.0)
    while not rig.model.steps:
        threading.Event().wait(0.01)


def test_images_that_are_dropped_fill_a_gap(rig):
    held(rig)
    for number in range(1, 40):
        rig.send(1 + number / 10)
    rig.model.gate.set()
    rig.outputs.diagnostics.wait_for(2)
    rig.send(12.0, missed=70)
    rig.outputs.diagnostics.wait_for(3)
    assert rig.model.steps == [(1.0, ''), (4.9, ''), (12.0, '')]
    assert [message.frames_dropped for message in rig.outputs.diagnostics.messages] == [0, 38, 70]


def test_a_break_before_a_dropped_image_is_one_of_the_next(rig):
    held(rig)
    for stamp in (1.1, 3.1, 3.2):       # the gap lies before an image that is dropped
        rig.send(stamp)
    rig.model.gate.set()
    rig.outputs.diagnostics.wait_for(2)
    rig.send(3.3)
    rig.outputs.diagnostics.wait_for(3)
    assert rig.model.steps == [(1.0, ''), (3.2, 'gap of 2.000 s'), (3.3, '')]


def test_a_loop_that_only_dropped_images_show_is_noticed(rig):
    held(rig)
    for stamp in (1.1, 0.1, 0.2, 1.2):
        rig.send(stamp, missed=3 * (stamp == 1.2))
    rig.model.gate.set()
    rig.outputs.diagnostics.wait_for(2)
    assert rig.model.steps[1] == (1.2, 'stamp went back by 1.000 s')


def test_a_change_waits_for_the_step_at_hand_only(rig):
    """A thread that takes its next step at once would win every race for a plain lock."""
    steps, over = [], threading.Event()

    def work() -> None:
        while not over.is_set():
            with rig.pipeline._between_frames():
                steps.append(None)
                time.sleep(0.002)
    worker = threading.Thread(target=work)
    worker.start()
    try:
        begun = []
        for _ in range(30):
            before = len(steps)
            rig.pipeline.set_options(rig.model.options, Moving())
            begun.append(len(steps) - before)
            time.sleep(0.001)
    finally:
        over.set()
        worker.join()
    # now and then one begins between the count and the call, or before the call has returned
    assert sum(begun) < len(begun) / 2


def test_drawing_holds_nobody_up(monkeypatch):
    """Somebody looks, and the first picture takes for ever: all images are answered, the newest is drawn then."""
    drawing, go_on = threading.Event(), threading.Event()

    def slow(rgb, *_, **__):
        drawing.set()
        assert go_on.wait(PATIENCE_S)
        return rgb
    monkeypatch.setattr(pictures, 'draw_overlay', slow)
    rig = Rig(overlay_listeners=1)
    try:
        rig.send(1.0)
        assert drawing.wait(PATIENCE_S)
        for number in range(1, 6):
            rig.send(1 + number / 10)
            rig.outputs.diagnostics.wait_for(number + 1)
        assert not rig.outputs.overlay.messages
        go_on.set()
        rig.outputs.overlay.wait_for(2)
        rig.pipeline.stop()
        assert [message.header.stamp.nanosec for message in rig.outputs.overlay.messages] == [0, 500_000_000]
    finally:
        go_on.set()
        rig.pipeline.stop()


def test_nothing_is_drawn_where_nobody_looks(rig, monkeypatch):
    drawn, draw = [], pictures.draw_overlay
    monkeypatch.setattr(pictures, 'draw_overlay', lambda *given, **named: drawn.append(1) or draw(*given, **named))
    rig.send(1.0)
    rig.outputs.diagnostics.wait_for(1)
    rig.pipeline.stop()
    assert not drawn
    assert not rig.outputs.overlay.messages


def test_an_image_that_nobody_wants_is_not_made(rig, monkeypatch):
    made = []       # a failure in the pipeline's thread would not reach the test
    for name, (encoding, pixels) in IMAGES.items():
        monkeypatch.setitem(IMAGES, name, (encoding, lambda *given, n=name, p=pixels: made.append(n) or p(*given)))
    rig.send(1.0)
    rig.outputs.diagnostics.wait_for(1)
    rig.pipeline.stop()
    assert not made
    assert not any(publisher.messages for publisher in rig.outputs.images.values())


def test_an_image_that_cannot_be_made_is_told_and_costs_nothing_else(monkeypatch):
    """A model of 300 classes, for example."""
    many = frame([replace(instance(mask), class_id=299) for mask in random_masks(1)])
    rig = Rig(semantic_mask=1, static_mask=1)
    monkeypatch.setattr(rig.model, 'step', lambda *_: many)
    rig.send(1.0)
    rig.send(1.1)
    rig.outputs.images['static_mask'].wait_for(1)
    rig.pipeline.stop()
    assert [line for line in rig.logger.lines if 'class id 299' in line and 'use label_image' in line]
    assert rig.outputs.instances.messages and not rig.outputs.images['semantic_mask'].messages
    assert not rig.camera.state.epoch, 'the tracks go on'


def test_stamps_that_are_none_are_told_once(rig):
    for _ in range(9):
        rig.send(0.0)
    told = [line for line in rig.logger.lines if 'the stamps are all 0 on /image' in line]
    assert len(told) == 1 and 'header.stamp' in rig.camera.stamp_problem
    rig.send(1.0)
    assert rig.camera.stamp_problem == ''


def test_colours_without_a_name_are_told_once(rig):
    for number in range(3):
        rig.send(1 + number / 10, encoding='8UC3')
        rig.outputs.diagnostics.wait_for(number + 1)
    assert len([line for line in rig.logger.lines if '8UC3 does not define colours: taken for bgr8' in line]) == 1


@pytest.mark.parametrize(('device', 'what'), [('cpu', 'compiling the encoder'), ('cuda:0', 'recording CUDA graphs')])
def test_what_a_new_size_needs_is_made_before_its_first_step(rig, device, what):
    rig.pipeline.device = device
    rig.model.cold.add((120, 160))
    held(rig)
    assert f'{what} for images of 160x120' in rig.pipeline.recording
    rig.model.gate.set()
    rig.outputs.instances.wait_for(1)
    rig.send(1.1)
    rig.outputs.instances.wait_for(2)
    assert [step if isinstance(step, str) else step[0] for step in rig.model.steps] == ['warm-up', 1.0, 1.1]
    assert not rig.pipeline.recording and sum(what in line for line in rig.logger.lines) == 1


def test_a_lost_gpu_is_asked_no_more(rig):
    rig.model.error = DeviceLostError('the GPU cuda:0 is lost: restart the process')
    rig.send(1.0)
    deadline = time.monotonic() + PATIENCE_S
    while not rig.pipeline.lost and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rig.pipeline.lost == str(rig.model.error) and rig.pipeline.lost in rig.logger.lines
    rig.send(1.1)

    def status():
        return rig.camera.health.status('node', 'active', '/image', 'cuda:0')

    def dropped() -> str:
        return {value.key: value.value for value in status().values}['frames dropped']

    while dropped() == '0' and len(rig.model.steps) == 1 and time.monotonic() < deadline:
        time.sleep(0.01)        # to stop at once would drop the image anyway
    assert len(rig.model.steps) == 1 and dropped() == '1' and 'GPU cuda:0 is lost' in status().message


def test_what_falls_back_is_logged_once(rig):
    rig.model.remarks = ('one',)
    assert rig.pipeline.remarks() == rig.pipeline.remarks() == ('one',)
    rig.model.remarks = ('one', 'two')
    rig.pipeline.remarks()
    assert rig.logger.lines == ['one', 'two']
