"""``tar-vis-follow``: an example agent, which drives a robot after the nearest person at a set distance.

It shows how to use :mod:`tar_vis_ros.client`. It knows nothing of obstacles: put a collision monitor behind it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from geometry_msgs.msg import Twist
from rclpy.duration import Duration
from rclpy.node import Node

from tar_vis_ros.client import InstanceClient
from tar_vis_ros.msg import Instance3D, Instance3DArray
from tar_vis_ros.process.options import Option, declare, table
from tar_vis_ros.process.run import no_arguments, run_node

WATCH_S = 0.1    # how often the age of what was last seen is looked at

OPTIONS = (
    Option('source', 'tar_vis', 'namespace of instances_3d: tar_vis, or tar_vis/CAMERA'),
    Option('class_name', 'person', 'what to follow', live=True),
    Option('distance', 1.5, 'metres to keep from it', 0.3, 20.0, live=True),
    Option('max_speed', 0.5, 'metres per second forward at most; it never drives back', 0.0, 5.0, live=True),
    Option('max_turn', 1.0, 'radians per second at most', 0.0, 6.0, live=True),
    Option('speed_gain', 0.8, 'metres per second for each metre too far', 0.0, 10.0, live=True),
    Option('turn_gain', 1.5, 'radians per second for each radian off', 0.0, 10.0, live=True),
    Option('timeout_s', 0.5, 'age of the last image, seconds, at which it stops', 0.05, 10.0, live=True),
)
USAGE = f"""Drives after the nearest person, and stops when nobody is seen or the images are old.

  tar-vis-follow --ros-args -r cmd_vel:=/robot/cmd_vel

The camera looks ahead from the robot's middle, and a node tar_vis and a depth_lifter run.

subscribed:
  tar_vis/instances_3d   tar_vis_ros/Instance3DArray
published:
  cmd_vel                geometry_msgs/Twist   for every 3-D image, and stops while there is none

parameters (name, default, meaning):
{table(OPTIONS)}
"""


class FollowPerson(Node):
    """Answers every 3-D image with a velocity."""

    def __init__(self, **kwargs) -> None:
        super().__init__('follow_person', **kwargs)
        declare(self, OPTIONS)
        self._track: tuple[int, int] | None = None    # epoch and id of whom it follows
        self._commands = self.create_publisher(Twist, 'cmd_vel', 1)
        self._client = InstanceClient(self, self.source, on_frame_3d=self._on_frame)
        self.create_timer(WATCH_S, self._watch)

    def finish(self) -> None:
        """Stops the robot."""
        self._commands.publish(Twist())
        self._commands.wait_for_all_acked(Duration(seconds=1))

    def _on_frame(self, frame: Instance3DArray) -> None:
        target = None if self._old() else self._target(frame)
        self._commands.publish(Twist() if target is None else self._towards(target))

    def _watch(self) -> None:
        if self._old():
            self._commands.publish(Twist())

    def _old(self) -> bool:
        frame = self._client.frame_3d
        return frame is None or abs(self._client.age_s(frame.header)) > self.timeout_s

    def _target(self, frame: Instance3DArray) -> Instance3D | None:
        """Whom it has followed, while in sight; else the nearest."""
        candidates = [instance for instance in frame.instances if instance.class_name == self.class_name]
        candidates.sort(key=lambda instance: (frame.track_epoch, instance.track_id) != self._track)   # nearest first
        if not candidates:
            return None
        self._track = frame.track_epoch, candidates[0].track_id
        return candidates[0]

    def _towards(self, target: Instance3D) -> Twist:
        ahead, right = target.position.z, target.position.x    # optical frame: x right, z forward (REP-103)
        bearing = math.atan2(-right, ahead)                    # positive to the left, as angular.z is
        too_far = math.hypot(ahead, right) - self.distance
        command = Twist()
        command.linear.x = min(max(self.speed_gain * too_far * math.cos(bearing), 0.0), self.max_speed)
        command.angular.z = min(max(self.turn_gain * bearing, -self.max_turn), self.max_turn)
        return command


def main(args: Sequence[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM; gives the exit code."""
    return run_node('tar-vis-follow', no_arguments('tar-vis-follow', USAGE), lambda _: FollowPerson(), args)


if __name__ == '__main__':
    sys.exit(main())
