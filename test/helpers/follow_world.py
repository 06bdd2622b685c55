"""A simulated robot, its depth camera, and the real processes that drive it; time goes on by messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from builtin_interfaces.msg import Time
from camera_graph import AGAIN_S, CameraGraph
from geometry_msgs.msg import Twist
from rosgraph_msgs.msg import Clock
from simulated_camera import Robot, Thing, messages

from tar_vis_ros.conversions.stamps import stamp_of
from tar_vis_ros.process.children import ChildProcess

DISTANCE = 1.6


class World(CameraGraph):
    """A robot with a camera, a depth_lifter and a follow_person process, and whoever is in sight."""

    step_ns = 100_000_000

    def __init__(self, *things: Thing) -> None:
        super().__init__()
        self.robot, self.things, self.random = Robot(), list(things), np.random.default_rng(1)
        self.now_ns = 50 * 10**9
        self.commands: list[Twist] = []
        self.clock = self.node.create_publisher(Clock, '/clock', 10)
        self.node.create_subscription(Twist, '/cmd_vel', self.commands.append, 100)
        self.children.append(ChildProcess('follow_person', 'tar_vis_ros.examples.follow_person', [
            '--ros-args', '-p', 'use_sim_time:=true', '-p', f'distance:={DISTANCE}']))

    def begin(self) -> None:
        """Time stands still until the agent has heard of it, has seen somebody, and wants to move."""
        self.connect()
        self.wait_for(lambda command: command != Twist())

    def wait_for(self, done: Callable[[Twist], bool]) -> None:
        """A tick, and then time stands still until the agent says what it should."""
        self.tick()
        self.insist(lambda: self.say_time() or (self.commands and done(self.commands[-1])), 'command', *self.picture())

    def picture(self) -> Sequence:
        """The messages of now."""
        return messages(self.stamp, self.robot, self.things, self.random)

    def insist(self, done: Callable[[], object], what: str, *messages) -> None:
        """As :class:`CameraGraph` does, each time a nanosecond later: a stamp that was answered is no news."""
        first, due = stamp_of(messages[0]), 0.0

        def publish_at_times() -> None:
            nonlocal due
            if time.monotonic() > due:
                for message in messages if due else ():
                    message.header.stamp.nanosec += 1
                self.publish(*messages)
                due = time.monotonic() + AGAIN_S
            if stamp_of(messages[0]) in self.answers:
                self.answers.setdefault(first, self.answers[stamp_of(messages[0])])

        self.until(lambda: publish_at_times() or done(), what)

    def tick(self) -> None:
        """A moment in which the robot does as it was last told."""
        command = self.commands[-1] if self.commands else Twist()     # none yet: it stands
        self.robot.drive(command.linear.x, command.angular.z, self.step_ns * 1e-9)
        self.now_ns += self.step_ns
        self.say_time()

    def say_time(self) -> None:
        """Again and again while something waits for it: the clock is best effort."""
        self.clock.publish(Clock(clock=self.stamp))

    @property
    def stamp(self) -> Time:
        return Time(sec=self.now_ns // 10**9, nanosec=self.now_ns % 10**9)

    def step(self) -> None:
        """A tick, an image, and the agent's answer to it."""
        self.tick()
        told, stamp = len(self.commands), (self.stamp.sec, self.stamp.nanosec)
        self.insist(lambda: stamp in self.answers and len(self.commands) > told, 'command', *self.picture())

    def step_until(self, done: Callable[[Twist], bool]) -> None:
        """Steps until the agent's command is as it should be."""
        for _ in range(50):
            self.step()
            if done(self.commands[-1]):
                return
        raise AssertionError(f'50 steps, and still {self.commands[-1]}')

    @property
    def stands(self) -> bool:
        return self.commands[-1] == Twist()
