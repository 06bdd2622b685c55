"""``tar-vis-video``: publishes a video file, a folder of images, a camera or the built-in photographs as images.

Every option is a command line flag and a ROS parameter; both come from the table OPTIONS.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from tar_vis_core.media.frames import PHOTOGRAPHS, Frame, open_frames, play
from tar_vis_core.media.readers import FrameReader
from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.process.options import Option, declare
from tar_vis_ros.process.run import TURN_S, run_node

SETTLE_S = 0.5     # after the subscribers are matched: their side of the match may come later than ours


OPTIONS = (
    Option('source', PHOTOGRAPHS, 'a video file, an image, a folder of images, a camera (0 or /dev/video0), or '
                                  f"'{PHOTOGRAPHS}': a simulated camera over scikit-image's photographs"),
    Option('rate', 0.0, "images per second, 0 = the source's own; every frame of a file is sent, "
                        'a camera is thinned out', 0.0, 240.0, live=True),
    Option('loop', False, 'start again after the last frame'),
    Option('frames', 0, 'end after this many frames, 0 = all', 0, 2**31 - 1),
    Option('width', 0, 'scale the images to this width in pixels with their aspect kept, 0 = as they are', 0, 16384),
    Option('wait_for_subscribers', 0, 'send the first frame when this many subscribers are matched', 0, 1000),
    Option('stamps', 'clock', 'clock: the time of sending; source: the start plus the position in the source, growing '
                              'over loops; restart: the same, but back to the start at each loop',
           choices=('clock', 'source', 'restart')),
    Option('frame_id', 'camera', 'frame_id of the images'),
    Option('follow', '', 'a topic of InstanceMaskArray: send the next frame when the last one is answered there'),
    Option('follow_timeout_s', 5.0, 'go on after this many seconds without an answer, at most', 0.1, 3600.0),
)


class VideoSource(Node):
    """Publishes ``image`` (rgb8) until the source ends."""

    def __init__(self, overrides: dict[str, Any] | None = None, **kwargs):
        parameters = [Parameter(name, value=value) for name, value in (overrides or {}).items()]
        super().__init__('tar_vis_video', parameter_overrides=parameters, **kwargs)
        declare(self, OPTIONS)
        self._stamp_answered: tuple[int, int] = (0, 0)
        self._slowest_s = 0.0    # of the answers so far
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self)
        self._images = self.create_publisher(Image, 'image', QoSProfile(depth=5))     # reliable
        self._start: Time | None = None
        if self.follow:
            from tar_vis_ros.msg import InstanceMaskArray
            self.create_subscription(InstanceMaskArray, self.follow, self._on_answer, 10)

    def run(self) -> int:
        """Open the source, send its frames and give their number; raises SourceError."""
        with open_frames(self.source, self.rate, self.width) as reader:
            self._wait_for_subscribers()
            length = f'{reader.count} frames, ' if reader.count else ''
            self.get_logger().info(f'publishing {reader.name} ({length}{self.rate or reader.fps:.4g} per second) '
                                   f'on {self._images.topic_name}')
            began = time.monotonic()
            sent = self._send_all(reader)
            seconds = time.monotonic() - began
            if reader.count and not self.loop and sent < min(reader.count, self.frames or reader.count):
                self.get_logger().warning(f'{reader.name} says {reader.count} frames, but {sent} could be read')
        self._images.wait_for_all_acked(Duration(seconds=2))
        self.get_logger().info(f'sent {sent} frames in {seconds:.1f} s ({sent / max(seconds, 1e-9):.2f} per second)')
        return sent

    def _send_all(self, reader: FrameReader) -> int:
        due, sent, last = time.monotonic(), 0, None
        for frame in play(reader, self.loop, self.frames, self.width):
            self._spin_until(due if not reader.live else 0.0)
            if self.follow and last is not None:
                self._wait_for_answer(last)
            message = self._message(frame)
            self._images.publish(message)
            sent += 1
            last = message.header.stamp
            if reader.live:
                reader.rate = self.rate
            due = max(due + 1.0 / (self.rate or reader.fps), time.monotonic())    # late: go on, no burst
        if self.follow and last is not None:
            self._wait_for_answer(last)
        return sent

    def _message(self, frame: Frame) -> Image:
        now = self.get_clock().now()
        self._start = self._start or now
        if self.stamps != 'clock':
            position_s = frame.position_s if self.stamps == 'source' else frame.pass_position_s
            now = self._start + Duration(nanoseconds=round(position_s * 1e9))
        return array_to_image(frame.image, 'rgb8', Header(stamp=now.to_msg(), frame_id=self.frame_id))

    def _wait_for_subscribers(self) -> None:
        def missing() -> str:
            if self._images.get_subscription_count() < self.wait_for_subscribers:
                return f'{self.wait_for_subscribers} subscriber(s) of {self._images.topic_name}'
            return f'a publisher of {self.follow}' if self.follow and not self.count_publishers(self.follow) else ''
        text = missing()
        if text:
            self.get_logger().info(f'waiting for {text}')
        while missing():
            self._executor.spin_once(timeout_sec=0.05)
        if self.wait_for_subscribers or self.follow:
            self._spin_until(time.monotonic() + SETTLE_S)

    def _wait_for_answer(self, stamp: Any) -> None:
        began = time.monotonic()
        # A lost image must not cost the whole patience once it is known how long an answer takes.
        patience = self.follow_timeout_s
        if self._slowest_s:
            patience = min(patience, max(1.0, 8 * self._slowest_s))
        while self._stamp_answered != (stamp.sec, stamp.nanosec):
            left = began + patience - time.monotonic()
            if left <= 0:
                self.get_logger().warning(f'no answer on {self.follow} within {patience:.1f} s: going on')
                return
            self._executor.spin_once(timeout_sec=min(left, TURN_S))
        self._slowest_s = max(self._slowest_s, time.monotonic() - began)

    def _spin_until(self, due: float) -> None:
        self._executor.spin_once(timeout_sec=0)
        while (left := due - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(left, TURN_S))

    def _on_answer(self, answer: Any) -> None:
        self._stamp_answered = (answer.header.stamp.sec, answer.header.stamp.nanosec)


def command_line(arguments: list[str]) -> dict[str, Any]:
    """The options that a command line sets, by parameter name."""
    parser = argparse.ArgumentParser(
        prog='tar-vis-video', argument_default=argparse.SUPPRESS,
        description='Publish a video file, a folder of images, a camera or the built-in photographs on the ROS topic '
                    "'image'. What follows --ros-args goes to ROS (remaps, parameters).")
    for option in OPTIONS:
        text = option.help.replace('%', '%%')
        flag = '--' + option.name.replace('_', '-')
        if option.name == 'source':
            parser.add_argument('source', nargs='?', metavar='SOURCE', help=text)
        elif isinstance(option.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(flag, type=type(option.default), choices=option.choices or None,
                                metavar=None if option.choices else option.name.rsplit('_', 1)[-1].upper(),
                                help=f'{text} (default: {option.default})' if option.default != '' else text)
    values = vars(parser.parse_args(arguments))
    for option in OPTIONS:
        if option.name in values:
            option.checked(values[option.name])
    return values


def main(args: Sequence[str] | None = None) -> int:
    """Send all frames. Return 0, or 1 after one line on stderr about what is wrong.

    ``args`` is the whole command line, program name included.
    """
    return run_node('tar-vis-video', command_line, VideoSource, args, run=VideoSource.run, bad_input=1)


if __name__ == '__main__':
    sys.exit(main())
