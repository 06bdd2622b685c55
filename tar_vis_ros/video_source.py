"""``tar-vis-video``: publish a video file, a folder of images, a camera or the built-in photographs as images.

Every option is a command line flag and a ROS parameter; both come from the table SourceSettings.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from tar_vis_core.flags import add_flags
from tar_vis_core.media.frames import PHOTOGRAPHS, TimedImage, open_frames, play
from tar_vis_core.media.readers import FrameReader
from tar_vis_core.options import option, options_of
from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.conversions.stamps import Stamp, stamp_of
from tar_vis_ros.process.parameters import ParameterNode, Table
from tar_vis_ros.process.run import TURN_S, run_node, turn

SETTLE_S = 0.5     # after the subscribers are matched: their side of the match may come later than ours


@dataclass(frozen=True)
class SourceSettings:
    """The parameters of the node."""

    source: str = option(PHOTOGRAPHS, 'a video file, an image, a folder of images, a camera (0 or /dev/video0), or '
                                      f"'{PHOTOGRAPHS}': a simulated camera over scikit-image's photographs")
    rate: float = option(0.0, "images per second; 0: the source's own; every frame of a file is sent, "
                              'a camera is thinned out', low=0, high=240)
    loop: bool = option(False, 'start again after the last frame')
    frames: int = option(0, 'end after this many frames; 0: all', low=0, high=2**31 - 1)
    width: int = option(0, 'scale the images to this width in pixels, aspect kept; 0: as they are',
                        low=0, high=16384)
    wait_for_subscribers: int = option(0, 'send the first frame when this many subscribers are matched',
                                       low=0, high=1000)
    stamps: str = option('clock', 'clock: the time of sending; source: the start plus the position in the source, '
                                  'growing over loops; restart: the same, but back to the start at each loop',
                         choices=('clock', 'source', 'restart'))
    frame_id: str = option('camera', 'frame_id of the images')
    follow: str = option('', 'a topic of InstanceMaskArray: send the next frame when the last one is answered there')
    follow_timeout_s: float = option(5.0, 'longest wait for an answer, seconds',
                                     low=0.1, high=3600)


TABLE = Table(SourceSettings, at_start=frozenset(options_of(SourceSettings)) - {'rate'})


class VideoSource(ParameterNode):
    """Publishes ``image`` (rgb8) until the source ends."""

    TABLE = TABLE

    def __init__(self, overrides: dict[str, Any] | None = None, **kwargs):
        parameters = [Parameter(name, value=value) for name, value in (overrides or {}).items()]
        super().__init__('tar_vis_video', parameter_overrides=parameters, **kwargs)
        self._stamp_answered: Stamp | None = None
        self._slowest_s = 0.0    # of the answers so far
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self)
        self._images = self.create_publisher(Image, 'image', QoSProfile(depth=5))     # reliable
        self._start: Time | None = None
        if self.options.follow:
            from tar_vis_ros.msg import InstanceMaskArray
            self.create_subscription(InstanceMaskArray, self.options.follow, self._on_answer, 10)

    def run(self) -> int:
        """Open the source, send its frames and give their number. Raise SourceError."""
        with open_frames(self.options.source, self.options.rate, self.options.width) as reader:
            self._wait_for_subscribers()
            length = f'{reader.count} frames, ' if reader.count else ''
            rate = self.options.rate or reader.fps
            self.get_logger().info(
                f'publishing {reader.name} ({length}{rate:.4g} per second) on {self._images.topic_name}')
            began = time.monotonic()
            sent = self._send_all(reader)
            seconds = time.monotonic() - began
            if reader.count and not self.options.loop and sent < min(reader.count, self.options.frames or reader.count):
                self.get_logger().warning(f'{reader.name} says {reader.count} frames, but {sent} could be read')
        self._images.wait_for_all_acked(Duration(seconds=2))
        self.get_logger().info(f'sent {sent} frames in {seconds:.1f} s ({sent / max(seconds, 1e-9):.2f} per second)')
        return sent

    def _send_all(self, reader: FrameReader) -> int:
        due, sent, last = time.monotonic(), 0, None
        for frame in play(reader, self.options.loop, self.options.frames, self.options.width):
            self._spin_until(due if not reader.live else 0.0)
            if self.options.follow and last is not None:
                self._wait_for_answer(last)
            message = self._message(frame)
            self._images.publish(message)
            sent += 1
            last = stamp_of(message)
            if reader.live:
                reader.rate = self.options.rate
            due = max(due + 1.0 / (self.options.rate or reader.fps), time.monotonic())    # late: go on, no burst
        if self.options.follow and last is not None:
            self._wait_for_answer(last)
        return sent

    def _message(self, frame: TimedImage) -> Image:
        now = self.get_clock().now()
        self._start = self._start or now
        if self.options.stamps != 'clock':
            position_s = frame.position_s if self.options.stamps == 'source' else frame.pass_position_s
            now = self._start + Duration(nanoseconds=round(position_s * 1e9))
        return array_to_image(frame.image, 'rgb8', Header(stamp=now.to_msg(), frame_id=self.options.frame_id))

    def _wait_for_subscribers(self) -> None:
        def missing() -> str:
            if self._images.get_subscription_count() < self.options.wait_for_subscribers:
                return f'{self.options.wait_for_subscribers} subscriber(s) of {self._images.topic_name}'
            topic = self.options.follow
            return f'a publisher of {topic}' if topic and not self.count_publishers(topic) else ''
        text = missing()
        if text:
            self.get_logger().info(f'waiting for {text}')
        while missing():
            turn(self._executor, 0.05)
        if self.options.wait_for_subscribers or self.options.follow:
            self._spin_until(time.monotonic() + SETTLE_S)

    def _wait_for_answer(self, stamp: Stamp) -> None:
        began = time.monotonic()
        # A lost image must not cost the whole patience once it is known how long an answer takes.
        patience = self.options.follow_timeout_s
        if self._slowest_s:
            patience = min(patience, max(1.0, 8 * self._slowest_s))
        while self._stamp_answered != stamp:
            left = began + patience - time.monotonic()
            if left <= 0:
                self.get_logger().warning(f'no answer on {self.options.follow} within {patience:.1f} s: going on')
                return
            turn(self._executor, min(left, TURN_S))
        self._slowest_s = max(self._slowest_s, time.monotonic() - began)

    def _spin_until(self, due: float) -> None:
        turn(self._executor, 0.0)
        while (left := due - time.monotonic()) > 0:
            turn(self._executor, min(left, TURN_S))

    def _on_answer(self, answer: Any) -> None:
        self._stamp_answered = stamp_of(answer)


def command_line(arguments: list[str]) -> dict[str, Any]:
    """Return the options that a command line sets, by parameter name."""
    parser = argparse.ArgumentParser(
        prog='tar-vis-video',
        description='Publish a video file, a folder of images, a camera or the built-in photographs on the ROS topic '
                    "'image'. What follows --ros-args goes to ROS (remaps, parameters).")
    flags = dict(TABLE.options)
    parser.add_argument('source', nargs='?', metavar='SOURCE', help=flags.pop('source').description)
    add_flags(parser, flags)
    given = vars(parser.parse_args(arguments))
    return {name: TABLE.check(name, value) for name, value in given.items() if value is not None}


def main(args: Sequence[str] | None = None) -> int:
    """Send all frames. Return 0, or 1 after one line on stderr about an error.

    ``args`` is the whole command line, program name included.
    """
    return run_node('tar-vis-video', command_line, VideoSource, args, run=VideoSource.run, bad_input=1)


if __name__ == '__main__':
    sys.exit(main())
