"""``tar-vis-depth``: positions of the instances in 3-D, from their masks and a depth camera."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image
from visualization_msgs.msg import MarkerArray

from tar_vis_core.options import option
from tar_vis_ros.conversions.stamps import ExactStamps, stamp_text
from tar_vis_ros.depth.geometry import Rules
from tar_vis_ros.depth.lifting import LiftError, lift
from tar_vis_ros.depth.markers import markers
from tar_vis_ros.msg import Instance3DArray, InstanceMaskArray
from tar_vis_ros.process.namesakes import Namesakes
from tar_vis_ros.process.parameters import ParameterNode, Table
from tar_vis_ros.process.publishers import Publishers, type_name
from tar_vis_ros.process.run import no_arguments, run_node

SILENT_S = 5    # seconds without a message, or without a match, after which the node complains
INPUT_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
OUTPUT_QOS = QoSProfile(depth=5)   # reliable

@dataclass(frozen=True)
class DepthSettings:
    """The parameters of the node."""

    border_px: int = option(3, "border of a mask that is not used for its distance, pixels", low=0, high=100)
    rejection: float = option(3.0, 'standard deviations from the distance beyond which a depth pixel is background',
                              low=0.5, high=100)
    min_points: int = option(30, 'depth pixels that an instance needs for a position', low=1, high=100000)
    images_kept: int = option(30, 'depth images that wait for their masks; each takes its size in memory',
                              low=1, high=1000)


TABLE = Table(DepthSettings, at_start=frozenset({'images_kept'}))
USAGE = f"""Positions and sizes of the instances in 3-D, from masks, a depth image and camera_info with equal stamps.

  tar-vis-depth --ros-args -r depth:=/camera/aligned_depth_to_color/image_raw \\
                           -r camera_info:=/camera/aligned_depth_to_color/camera_info

The node is /tar_vis/depth_lifter, beside the topics of the node tar_vis; -r __ns:=/tar_vis/front for one of several
cameras.

subscribed, with exactly equal stamps:
  instances      tar_vis_ros/InstanceMaskArray
  depth          sensor_msgs/Image        registered to the image of the masks; 16UC1 (mm) or 32FC1 (m)
  camera_info    sensor_msgs/CameraInfo   of the same size; K is used
published:
  instances_3d   tar_vis_ros/Instance3DArray      position, extent and points, the nearest first
  markers        visualization_msgs/MarkerArray   boxes and texts; made only while somebody listens
  /diagnostics   diagnostic_msgs/DiagnosticArray  once a second

parameters (name, default, meaning):
{TABLE.text()}
"""


@dataclass(frozen=True)
class _Counts:
    """Numbers of messages at a moment."""

    received: dict[str, int]
    matched: int


class DepthLifter(ParameterNode):
    """Joins the three topics by their stamps and publishes every match in 3-D."""

    TABLE = TABLE

    def __init__(self, **kwargs) -> None:
        super().__init__('depth_lifter', namespace='tar_vis', **kwargs)
        self._stamps = ExactStamps(dict.fromkeys(('instances', 'depth', 'camera_info'), self.options.images_kept))
        self._counts: deque[_Counts] = deque(maxlen=SILENT_S + 1)     # one a second
        self._refused = self._drawn = 0
        self._refusal = self._said = (-math.inf, '')     # when, what; the latter of what keeps answers from coming
        self._answers = self.create_publisher(Instance3DArray, 'instances_3d', OUTPUT_QOS)
        self._markers = self.create_publisher(MarkerArray, 'markers', OUTPUT_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', OUTPUT_QOS)
        policies = QoSOverridingOptions.with_default_policies()
        listening = {
            'instances': self.create_subscription(InstanceMaskArray, 'instances', self._take('instances'), 10),
            'depth': self.create_subscription(Image, 'depth', self._take('depth'), INPUT_QOS,
                                              qos_overriding_options=policies),
            'camera_info': self.create_subscription(CameraInfo, 'camera_info', self._take('camera_info'), INPUT_QOS,
                                                    qos_overriding_options=policies)}
        self._topics = {name: subscription.topic_name for name, subscription in listening.items()}
        self._heard = {name: Publishers(self, subscription.topic_name, type_name(subscription.msg_type),
                                             subscription.qos_profile) for name, subscription in listening.items()}
        self._namesakes = Namesakes(self)
        self.create_timer(1.0, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.get_logger().info(f'waiting for {", ".join(self._topics.values())}')

    def _take(self, name: str):
        def take(message) -> None:
            matched = self._stamps.add(name, message)
            if matched is not None:
                self._lift(**matched)
        return take

    def _lift(self, instances: InstanceMaskArray, depth: Image, camera_info: CameraInfo) -> None:
        try:
            options = self.options
            rules = Rules(options.border_px, options.rejection, options.min_points)
            answer = lift(instances, depth, camera_info, rules)
        except (LiftError, ValueError) as error:
            self._refused += 1
            self._refusal = (time.monotonic(), str(error))
            self.get_logger().error(str(error), throttle_duration_sec=SILENT_S)
            return
        self._answers.publish(answer)
        if self._markers.get_subscription_count() > 0:
            self._markers.publish(markers(answer))
            self._drawn += 1

    # What keeps answers from coming

    def _report(self) -> None:
        self._counts.append(_Counts(dict(self._stamps.received), self._stamps.matched))
        when, refusal = self._refusal
        problem = self._namesakes.look() or self._why_silent()
        kind, now = problem.partition(' (')[0], time.monotonic()     # without stamps, which change all the time
        if problem and (kind != self._said[1] or now - self._said[0] > 2 * SILENT_S):
            self._said = now, kind
            self.get_logger().warning(problem)
        if not problem and now - when < SILENT_S:
            problem = refusal
        seconds = len(self._counts) - 1
        rate = (self._stamps.matched - self._counts[0].matched) / seconds if seconds else 0.0
        values = {f'{self._topics[name]} received': count for name, count in self._stamps.received.items()}
        values |= {'stamps matched': self._stamps.matched, 'matches refused': self._refused,
                   'markers published': self._drawn, 'last refusal': refusal}
        status = DiagnosticStatus(
            level=DiagnosticStatus.WARN if problem else DiagnosticStatus.OK,
            name=f'{self.get_fully_qualified_name().lstrip("/")}: depth',
            message=problem or f'{rate:.1f} images in 3-D per second',
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _why_silent(self) -> str:
        """Return why nothing was published in the last seconds, '' if something was, or if it is too early to know."""
        for name, topic in self._topics.items():
            if problem := self._stamps.problem(name):
                return f'{problem} on {topic}: nothing can be joined by them; let the driver fill header.stamp'
        if len(self._counts) <= SILENT_S:
            # a publisher's type and QoS stay as they are, however long one waits
            return '; '.join(filter(None, (heard.why_none_can_come() for heard in self._heard.values())))
        past, stamps = self._counts[0], self._stamps
        missing = [name for name in self._topics if stamps.received[name] == past.received[name]]
        if missing:
            reasons = '; '.join(filter(None, (self._heard[name].why_silent() for name in missing)))
            return (f'no message on {" and ".join(self._topics[name] for name in missing)} for {SILENT_S} s'
                    + (f': {reasons}' if reasons else ''))
        if stamps.matched > past.matched:
            return ''
        newest = ', '.join(f'{topic} {stamp_text(stamps.newest[name])}' for name, topic in self._topics.items())
        oldest = stamps.oldest('depth')
        if oldest is not None and stamps.newest['instances'] < oldest:
            hint = (f'the masks come when their depth image is gone (the oldest of {self.options.images_kept} kept is '
                    f'{stamp_text(oldest)}): raise images_kept, or give both the same clock')
        else:
            hint = 'depth and camera_info must carry the stamp of the image that the masks are of'
        return f'no equal stamps for {SILENT_S} s (newest: {newest}): {hint}'


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM. Return the exit code."""
    return run_node('tar-vis-depth', no_arguments('tar-vis-depth', USAGE), lambda _: DepthLifter(), args)


if __name__ == '__main__':
    sys.exit(main())
