"""The client library gives decoded masks, waits for a class, and knows what is nearest and what is old."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')

import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point
from node_process import wait_until
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CompressedImage, Image
from simulated_camera import mask_message
from std_msgs.msg import Header

from tar_vis_core.instances import TrackStatus
from tar_vis_ros.client import IMAGES_KEPT, Frame, InstanceClient
from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.msg import Instance3D, Instance3DArray, InstanceMaskArray

HEIGHT, WIDTH = 40, 60


def masks(*classes: str, status: TrackStatus = TrackStatus.TRACKED, shift: int = 0) -> InstanceMaskArray:
    """A square for each class name, side by side."""
    squares = [np.zeros((HEIGHT, WIDTH), bool) for _ in classes]
    for n, square in enumerate(squares):
        square[5:15, 10 * n + shift:10 * n + 8 + shift] = True
    return InstanceMaskArray(height=HEIGHT, width=WIDTH, header=Header(frame_id='camera_optical'), instances=[
        mask_message(square, n + 1, name, status) for n, (name, square) in enumerate(zip(classes, squares))])


class Pair:
    """A node that publishes and a node with a client."""

    def __init__(self, image_topic: str = '') -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.sender = rclpy.create_node('sender', context=self.context)
        self.node = rclpy.create_node('agent', context=self.context)
        self.masks = self.sender.create_publisher(InstanceMaskArray, '/tar_vis/front/instances', 10)
        self.places = self.sender.create_publisher(Instance3DArray, '/tar_vis/front/instances_3d', 10)
        self.frames, self.frames_3d, self.anew = [], [], []
        self.client = InstanceClient(self.node, 'tar_vis/front', self.frames.append, self.frames_3d.append,
                                     self.anew.append, image_topic)
        self._executor = SingleThreadedExecutor(context=self.context)
        wait_until(lambda: self.masks.get_subscription_count() and self.places.get_subscription_count()
                   and self.node.count_publishers('/tar_vis/front/instances_3d'), 'client')

    def place(self, *instances: Instance3D, age_s: float = 0.0) -> None:
        """Sends a 3-D frame of so many seconds ago and waits for it."""
        stamp = (self.node.get_clock().now() - rclpy.duration.Duration(seconds=age_s)).to_msg()
        self.spin_until(self.frames_3d, lambda: self.places.publish(
            Instance3DArray(header=Header(stamp=stamp), instances=instances)))

    def spin_until(self, inbox: list, send) -> None:
        """Sends until one more is in the inbox: a connection may still be in the making."""
        before = len(inbox)
        self._executor.add_node(self.node)

        def turn() -> None:
            send()
            self._executor.spin_once(timeout_sec=0.5)
        wait_until(lambda: len(inbox) > before, 'message', turn=turn)
        self._executor.remove_node(self.node)

    def spin_a_little(self) -> None:
        self._executor.add_node(self.node)
        self._executor.spin_once(timeout_sec=0.1)
        self._executor.remove_node(self.node)

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self.sender.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def pair():
    pair = Pair()
    yield pair
    pair.close()


class Sending:
    """Publishes messages in turn, in a thread, while the caller waits."""

    def __init__(self, publisher, *messages) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(publisher, messages))

    def _run(self, publisher, messages) -> None:
        n = 0
        while not self._end.wait(0.02):
            publisher.publish(messages[n % len(messages)])
            n += 1

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_) -> None:
        self._end.set()
        self._thread.join()


def test_frames_hold_decoded_masks(pair):
    sent = masks('person', 'dog', shift=3)
    pair.spin_until(pair.frames, lambda: pair.masks.publish(sent))
    frame = pair.client.frame
    assert frame is pair.frames[-1] and frame.header == sent.header
    assert [i.class_name for i in frame.visible()] == ['person', 'dog']
    dog, = frame.visible('dog')
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:15, 13:21] = True
    np.testing.assert_array_equal(frame.mask(dog), expected)


def test_a_class_is_waited_for(pair):
    with Sending(pair.masks, masks('dog'), masks(), masks('dog', 'person')):
        frame, person = pair.client.wait_for('person', timeout_s=60)
    assert person.class_name == 'person' and person in frame.instances
    assert frame.mask(person).sum() == 80


def test_a_class_is_waited_for_where_another_thread_spins(pair):
    executor = SingleThreadedExecutor(context=pair.context)
    executor.add_node(pair.node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    try:
        with Sending(pair.masks, masks('dog'), masks('person')):
            _, person = pair.client.wait_for('person', timeout_s=60)
        assert person.class_name == 'person'
    finally:
        executor.shutdown()
        thread.join()


def test_what_was_there_before_does_not_count(pair):
    pair.masks.publish(masks('person'))
    with pytest.raises(TimeoutError):
        pair.client.wait_for('dog', timeout_s=1)     # takes in whatever is on its way
    with pytest.raises(TimeoutError, match=r'no person within 0.3 s: no frame came on /tar_vis/front/inst'):
        pair.client.wait_for('person', timeout_s=0.3)


def test_a_wait_in_vain_says_what_was_seen(pair):
    pair.spin_until(pair.frames, lambda: pair.masks.publish(masks()))
    lost = masks('person', status=TrackStatus.LOST)
    with Sending(pair.masks, masks('dog'), lost), \
            pytest.raises(TimeoutError, match=r'no person within 3 s: \d+ frames came, with dog$'):
        pair.client.wait_for('person', timeout_s=3)


def test_a_broken_mask_is_refused_and_the_next_frame_taken(pair):
    broken = masks('person')
    broken.instances[0].runs = [1, 2]
    pair.spin_until(pair.frames, lambda: (pair.masks.publish(broken), pair.masks.publish(masks('dog'))))
    assert [i.class_name for i in pair.client.frame.instances] == ['dog']


def at(track_id: int, class_name: str, z: float) -> Instance3D:
    return Instance3D(track_id=track_id, class_name=class_name, position=Point(z=z))


def test_the_nearest_of_a_class(pair):
    assert pair.client.nearest() is None
    pair.place(at(3, 'dog', 1.0), at(1, 'person', 2.0), at(2, 'person', 3.0))
    far = 60.0    # an age that no busy machine reaches
    assert pair.client.nearest(max_age_s=far).track_id == 3
    assert pair.client.nearest('person', max_age_s=far).track_id == 1
    assert pair.client.nearest('cat', max_age_s=far) is None


def test_the_old_is_not_the_nearest(pair):
    pair.place(at(1, 'person', 2.0), age_s=100)
    assert pair.client.nearest('person') is None
    assert pair.client.nearest('person', max_age_s=1000).track_id == 1
    pair.place(at(1, 'person', 2.0), age_s=-100)
    assert pair.client.nearest('person') is None, 'a stamp of the future is of another clock'


def test_nothing_comes_after_the_end(pair):
    pair.spin_until(pair.frames, lambda: pair.masks.publish(masks('person')))
    pair.client.close()
    wait_until(lambda: pair.masks.get_subscription_count() == 0, 'end', turn=lambda: time.sleep(0.05))


def test_new_tracks_are_noticed(pair):
    for epoch in (1700000000, 1700000000, 1700000009):
        message = masks('person')
        message.track_epoch = epoch
        pair.spin_until(pair.frames, lambda m=message: pair.masks.publish(m))
    assert [frame.track_epoch for frame in pair.anew] == [1700000009]


def test_a_message_of_ones_own_callback_is_decoded():
    frame = Frame.from_message(masks('person', 'dog'))
    assert [i.class_name for i in frame.instances] == ['person', 'dog'] and frame.mask(frame.instances[0]).sum() == 80


@pytest.mark.parametrize('topic', ['/camera/image', '/camera/image/compressed'])
def test_a_frame_has_the_image_of_its_stamp(topic):
    pair = Pair(topic)
    compressed = topic.endswith('/compressed')
    images = pair.sender.create_publisher(CompressedImage if compressed else Image, topic, 10)
    random = np.random.default_rng(0)
    try:
        wait_until(images.get_subscription_count, 'subscription')

        def send(stamp: int, pixels: np.ndarray) -> None:
            header = Header(stamp=Time(sec=stamp), frame_id='camera_optical')
            images.publish(CompressedImage(header=header, format='png', data=cv2.imencode('.png', pixels)[1].tobytes())
                           if compressed else array_to_image(pixels, 'bgr8', header))
        sent = {stamp: random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for stamp in range(1, 40)}

        def ask(stamp: int) -> Frame:
            message = masks('person')
            message.header.stamp.sec = stamp
            pair.spin_until(pair.frames, lambda: pair.masks.publish(message))
            return pair.frames[-1]
        for stamp in (1, 2, 3):
            wait_until(lambda s=stamp: (s, 0) in pair.client._images, 'image', turn=lambda s=stamp: (
                send(s, sent[s]), pair.spin_a_little()))
        np.testing.assert_array_equal(ask(2).image, sent[2][..., ::-1])
        assert ask(9).image is None, 'no image of that stamp'
        for stamp in range(4, 40):
            wait_until(lambda s=stamp: (s, 0) in pair.client._images, 'image', turn=lambda s=stamp: (
                send(s, sent[s]), pair.spin_a_little()))
        assert len(pair.client._images) == IMAGES_KEPT, 'memory is bounded'
        assert ask(1).image is None and ask(39).image is not None
    finally:
        pair.close()
