"""Client for programs that use the instances: decoded masks, waiting for a class, the nearest instance.

    client = InstanceClient(node)
    frame, person = client.wait_for('person', timeout_s=10)
    mask = frame.mask(person)                         # bool (height, width)
    nearest = client.nearest('person')                # Instance3D or None; needs a depth_lifter
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from tar_vis_core.instances import Instance, TrackStatus
from tar_vis_ros.conversions.images import to_rgb
from tar_vis_ros.conversions.messages import decode_instances
from tar_vis_ros.conversions.stamps import Stamp, stamp_of
from tar_vis_ros.msg import Instance3D, Instance3DArray, InstanceMaskArray

QOS = QoSProfile(depth=5)   # reliable
IMAGE_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
IMAGES_KEPT = 30            # at 30 images per second, one second of model time


@dataclass(frozen=True)
class Frame:
    """The instances of one image."""

    header: Header       # of the image: its stamp and optical frame
    height: int          # of the image, pixels
    width: int
    frame_index: int     # since the last reset
    track_epoch: int     # track ids of different epochs are unrelated
    instances: list[Instance]   # visible ones by falling score, then the LOST ones
    image: np.ndarray | None = None     # uint8 RGB (height, width, 3); None if the client has no image of this stamp

    @classmethod
    def from_message(cls, message: InstanceMaskArray) -> Frame:
        """Decode a message, for example in a callback of your own. Raise ValueError for a broken mask."""
        return cls(message.header, message.height, message.width, message.frame_index, message.track_epoch,
                   decode_instances(message))

    def mask(self, instance: Instance) -> np.ndarray:
        """Return the mask of one of the instances on the whole image, boolean ``(height, width)``."""
        return instance.mask(self.height, self.width)

    def visible(self, class_name: str = '') -> list[Instance]:
        """Return the instances in sight, by falling score; with ``class_name`` only of that class."""
        return [instance for instance in self.instances
                if instance.status != TrackStatus.LOST and class_name in ('', instance.class_name)]


class InstanceClient:
    """Listen through ``node`` to one camera of a tar_vis node, and to its depth_lifter if there is one.

    ``namespace`` is the camera's: ``tar_vis``, or ``tar_vis/front`` if the node has several. The callbacks get every
    frame, in the thread that spins ``node``. ``on_new_tracks`` gets the first frame after the node's tracks began anew,
    by a reset or by a restart of the node: ids from before are no longer valid. With ``image_topic`` (of Image,
    or of CompressedImage if it ends with /compressed) each frame has its image: the one of exactly the same stamp.
    """

    def __init__(self, node: Node, namespace: str = 'tar_vis', on_frame: Callable[[Frame], None] | None = None,
                 on_frame_3d: Callable[[Instance3DArray], None] | None = None,
                 on_new_tracks: Callable[[Frame], None] | None = None, image_topic: str = '') -> None:
        self.frame: Frame | None = None                   # the newest
        self.frame_3d: Instance3DArray | None = None      # the newest, the nearest instance first
        self._node, self._on_frame_3d, self._on_new_tracks = node, on_frame_3d, on_new_tracks
        self._watchers = [on_frame] if on_frame is not None else []
        self._frame_arrived = threading.Condition()
        self._subscriptions = [
            node.create_subscription(InstanceMaskArray, f'{namespace}/instances', self._take, QOS),
            node.create_subscription(Instance3DArray, f'{namespace}/instances_3d', self._take_3d, QOS)]
        self._images: dict[Stamp, Image | CompressedImage] = {}     # that wait for their masks, the oldest first
        if image_topic:
            kind = CompressedImage if image_topic.endswith('/compressed') else Image
            self._subscriptions.append(node.create_subscription(kind, image_topic, self._take_image, IMAGE_QOS))

    def close(self) -> None:
        """End the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def wait_for(self, class_name: str, timeout_s: float) -> tuple[Frame, Instance]:
        """Return the first frame from now on that shows an instance of the class, and its best one.

        If the node is in no executor, this call spins it. If it is in one, another thread has to spin that executor: in
        a callback of the only thread the call would wait in vain. Raise TimeoutError that says what was seen instead.
        """
        found: list[tuple[Frame, Instance]] = []
        seen: list[set[str]] = []     # classes, frame by frame

        def look(frame: Frame) -> None:
            found.extend((frame, instance) for instance in frame.visible(class_name))
            seen.append({instance.class_name for instance in frame.visible()})

        self._watchers.append(look)
        try:
            self._wait(lambda: found, timeout_s)
        finally:
            self._watchers.remove(look)
        if found:
            return found[0]
        what = f'{len(seen)} frames came, with {", ".join(sorted(set.union(*seen))) or "nothing in sight"}' if seen \
            else f'no frame came on {self._subscriptions[0].topic_name}: is the node active, and does it get images?'
        raise TimeoutError(f'no {class_name} within {timeout_s:g} s: {what}')

    def nearest(self, class_name: str = '', max_age_s: float = 0.5) -> Instance3D | None:
        """Return the instance nearest to the camera in the newest 3-D frame; with ``class_name`` only of that class.

        Return None if there is none, or if the frame's stamp is further than ``max_age_s`` from the node's clock.
        """
        answer = self.frame_3d
        if answer is None or abs(self.age_s(answer.header)) > max_age_s:
            return None
        return next((found for found in answer.instances
                     if class_name in ('', found.class_name) and has_position(found)), None)

    def age_s(self, header: Header) -> float:
        """Return the seconds from a message's stamp to now, by the clock of the node (``use_sim_time`` holds).

        Infinity for a stamp that is none.
        """
        clock = self._node.get_clock()
        if header.stamp.sec < 0 or header.stamp.nanosec >= 10**9:     # rclpy raises, or takes it for another second
            return math.inf
        return (clock.now() - Time.from_msg(header.stamp, clock.clock_type)).nanoseconds * 1e-9

    def _wait(self, done: Callable[[], object], timeout_s: float) -> None:
        """Wait until ``done()``, which changes with a frame, or until the time is over."""
        owner = self._node.executor       # stays set when the node has left it
        if owner is not None and self._node in owner.get_nodes():
            with self._frame_arrived:
                self._frame_arrived.wait_for(done, timeout_s)
            return
        executor, deadline = SingleThreadedExecutor(context=self._node.context), time.monotonic() + timeout_s
        executor.add_node(self._node)
        try:
            while not done() and (left := deadline - time.monotonic()) > 0:
                executor.spin_once(timeout_sec=left)
        finally:
            executor.remove_node(self._node)
            executor.shutdown()

    def _take(self, message: InstanceMaskArray) -> None:
        try:
            frame = Frame.from_message(message)
            if image := self._images.get(stamp_of(message)):
                frame = replace(frame, image=to_rgb(image))
        except ValueError as error:
            self._node.get_logger().error(f'masks or image refused: {error}', throttle_duration_sec=5.0)
            return
        before = self.frame
        with self._frame_arrived:
            self.frame = frame
            if before is not None and before.track_epoch != frame.track_epoch and self._on_new_tracks is not None:
                self._on_new_tracks(frame)
            for watcher in list(self._watchers):
                watcher(frame)
            self._frame_arrived.notify_all()

    def _take_image(self, message: Image | CompressedImage) -> None:
        self._images[stamp_of(message)] = message
        if len(self._images) > IMAGES_KEPT:
            del self._images[next(iter(self._images))]

    def _take_3d(self, message: Instance3DArray) -> None:
        self.frame_3d = message
        if self._on_frame_3d is not None:
            self._on_frame_3d(message)


def has_position(instance: Instance3D) -> bool:
    """Return whether an instance has a position before the camera: anything else must not move a robot."""
    position = instance.position
    return all(map(math.isfinite, (position.x, position.y, position.z))) and position.z > 0
