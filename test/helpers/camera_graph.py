"""The ROS side of a simulated camera: topics, a depth_lifter process, and waiting with deadlines."""

from __future__ import annotations

import time
from collections.abc import Callable

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from node_process import PATIENCE_S
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from tar_vis_ros.conversions.stamps import Stamp, stamp_of
from tar_vis_ros.msg import Instance3DArray, InstanceMaskArray
from tar_vis_ros.process.children import ChildProcess

AGAIN_S = 3.0    # so long an answer may take before it is asked for again


class CameraGraph:
    """Publishes masks, depth and camera_info, and collects what the depth_lifter says of them."""

    def __init__(self, *arguments: str) -> None:
        """``arguments`` are ROS arguments of the depth_lifter, such as ``-p min_points:=5``."""
        self.children = [ChildProcess('depth_lifter', 'tar_vis_ros.depth.node', [
            '--ros-args', '-r', 'depth:=/camera/depth', '-r', 'camera_info:=/camera/camera_info', *arguments])]
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node('simulated_camera', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.publishers = {message: self.node.create_publisher(message, topic, qos) for message, topic, qos in (
            (InstanceMaskArray, '/tar_vis/instances', 10), (Image, '/camera/depth', qos_profile_sensor_data),
            (CameraInfo, '/camera/camera_info', qos_profile_sensor_data))}
        self.answers: dict[Stamp, Instance3DArray] = {}
        self.status: DiagnosticStatus | None = None
        self.node.create_subscription(Instance3DArray, '/tar_vis/instances_3d',
                                      lambda answer: self.answers.__setitem__(stamp_of(answer), answer), 100)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()
        for child in self.children:
            child.end()

    @property
    def lifter(self) -> ChildProcess:
        return self.children[0]

    def until(self, done: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
        """Spins until ``done()``; fails at the deadline or when a child has ended."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, \
                f'no {what} in {seconds:.0f} s: ' + '\n'.join(line for child in self.children for line in child.lines)
            for child in self.children:
                child.check()
            self._executor.spin_once(timeout_sec=0.05)

    def connect(self) -> None:
        """Waits until all subscriptions are known to both sides."""
        self.until(lambda: all(p.get_subscription_count() for p in self.publishers.values())
                   and self.node.count_publishers('/tar_vis/instances_3d'), 'depth_lifter')

    def publish(self, *messages: InstanceMaskArray | Image | CameraInfo) -> None:
        for message in messages:
            self.publishers[type(message)].publish(message)

    def insist(self, done: Callable[[], object], what: str, *messages: InstanceMaskArray | Image | CameraInfo) -> None:
        """Publishes messages until ``done()``: best effort loses some, and so does a connection in the making."""
        due = 0.0

        def publish_at_times() -> None:
            nonlocal due
            if time.monotonic() > due:
                self.publish(*messages)
                due = time.monotonic() + AGAIN_S

        self.until(lambda: publish_at_times() or done(), what)

    def ask(self, *messages: InstanceMaskArray | Image | CameraInfo) -> Instance3DArray:
        """The answer to messages of one stamp."""
        stamp = stamp_of(messages[0])
        self.insist(lambda: stamp in self.answers, 'answer', *messages)
        return self.answers[stamp]

    def status_where(self, done: Callable[[str, dict[str, str]], object], what: str,
                     turn: Callable[[], object] = lambda: None) -> DiagnosticStatus:
        """The first status of the depth_lifter for which ``done(message, values)``; ``turn()`` is called meanwhile."""
        def found() -> bool:
            turn()
            return self.status is not None and done(self.status.message, values(self.status))
        self.status = None
        self.until(found, what)
        return self.status

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == 'tar_vis/depth_lifter: depth':
                self.status = status


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}
