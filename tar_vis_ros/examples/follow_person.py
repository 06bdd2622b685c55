"""``tar-vis-follow``: an example agent, which drives a robot after the nearest person at a set distance.

It shows how to use :mod:`tar_vis_ros.client`. It knows nothing of obstacles: put a collision monitor behind it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from geometry_msgs.msg import Twist
from rclpy.duration import Duration

from tar_vis_core.options import option
from tar_vis_ros.client import InstanceClient, has_position
from tar_vis_ros.msg import Instance3D, Instance3DArray
from tar_vis_ros.process.parameters import ParameterNode, Table
from tar_vis_ros.process.run import no_arguments, run_node

WATCH_S = 0.1    # how often the age of what was last seen is looked at

@dataclass(frozen=True)
class FollowSettings:
    """The parameters of the node."""

    source: str = option('tar_vis', 'namespace of instances_3d: tar_vis, or tar_vis/CAMERA')
    class_name: str = option('person', 'class to follow')
    distance: float = option(1.5, 'distance to keep, metres', low=0.3, high=20)
    max_speed: float = option(0.5, 'fastest speed forward, metres per second; it never drives back', low=0, high=5)
    max_turn: float = option(1.0, 'fastest turn, radians per second', low=0, high=6)
    speed_gain: float = option(0.8, 'metres per second for each metre too far', low=0, high=10)
    turn_gain: float = option(1.5, 'radians per second for each radian off', low=0, high=10)
    timeout_s: float = option(0.5, 'age of the last image at which it stops, seconds', low=0.05, high=10)


TABLE = Table(FollowSettings, at_start=frozenset({'source'}))
USAGE = f"""Drives after the nearest person, and stops when nobody is seen or the images are old.

  tar-vis-follow --ros-args -r cmd_vel:=/robot/cmd_vel

The camera looks ahead from the robot's middle, and a node tar_vis and a depth_lifter run.

subscribed:
  tar_vis/instances_3d   tar_vis_ros/Instance3DArray
published:
  cmd_vel                geometry_msgs/Twist   for every 3-D image, and stops while there is none

parameters (name, default, meaning):
{TABLE.text()}
"""


class FollowPerson(ParameterNode):
    """Answers every 3-D image with a velocity."""

    TABLE = TABLE

    def __init__(self, **kwargs) -> None:
        super().__init__('follow_person', **kwargs)
        self._track: tuple[int, int] | None = None    # epoch and id of whom it follows
        self._commands = self.create_publisher(Twist, 'cmd_vel', 1)
        self._client = InstanceClient(self, self.options.source, on_frame_3d=self._on_frame)
        self.create_timer(WATCH_S, self._watch)

    def finish(self) -> None:
        """Stop the robot."""
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
        return frame is None or abs(self._client.age_s(frame.header)) > self.options.timeout_s

    def _target(self, frame: Instance3DArray) -> Instance3D | None:
        """Return the instance that it follows, while in sight; else the nearest."""
        if self._track is not None and frame.track_epoch != self._track[0]:
            self.get_logger().info(f'track ids begin anew (epoch {frame.track_epoch}): the nearest is followed')
            self._track = None
        candidates = [instance for instance in frame.instances
                      if instance.class_name == self.options.class_name and has_position(instance)]
        candidates.sort(key=lambda instance: (frame.track_epoch, instance.track_id) != self._track)   # nearest first
        if not candidates:
            return None
        self._track = frame.track_epoch, candidates[0].track_id
        return candidates[0]

    def _towards(self, target: Instance3D) -> Twist:
        ahead, right = target.position.z, target.position.x    # optical frame: x right, z forward (REP-103)
        bearing = math.atan2(-right, ahead)                    # positive to the left, as angular.z is
        too_far = math.hypot(ahead, right) - self.options.distance
        command = Twist()
        command.linear.x = min(max(self.options.speed_gain * too_far * math.cos(bearing), 0.0), self.options.max_speed)
        command.angular.z = min(max(self.options.turn_gain * bearing, -self.options.max_turn), self.options.max_turn)
        return command


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM. Return the exit code."""
    return run_node('tar-vis-follow', no_arguments('tar-vis-follow', USAGE), lambda _: FollowPerson(), args)


if __name__ == '__main__':
    sys.exit(main())
