"""The example agent drives a simulated robot: real nodes and topics, and time goes on by messages."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy')

import rclpy
from builtin_interfaces.msg import Time
from follow_world import DISTANCE, World
from geometry_msgs.msg import Point, Twist
from simulated_camera import Thing, messages

from tar_vis_ros.examples.follow_person import FollowPerson
from tar_vis_ros.msg import Instance3D, Instance3DArray


@pytest.fixture
def world():
    worlds = []

    def make(*things: Thing) -> World:
        worlds.append(World(*things))
        worlds[-1].begin()
        return worlds[-1]

    yield make
    for one in worlds:
        one.close()


def test_it_keeps_the_distance_to_a_walking_person_and_stops_when_she_is_gone(world):
    person, bystander = Thing(1, 3.0, 1.2), Thing(2, 6.0, -1.5)
    sim = world(person, bystander)
    first, _ = sim.robot.sees(person)
    for n in range(60):     # she walks along a bend
        person.x, person.y = person.x + 0.03, person.y + 0.03 * np.sin(n / 12)
        sim.step()
    assert sim.robot.x > 1.0, 'it went along'
    for _ in range(60):     # she waits
        sim.step()
    distance, bearing = sim.robot.sees(person)
    assert first > 3.0 and distance == pytest.approx(DISTANCE, abs=0.05)
    assert bearing == pytest.approx(0, abs=0.02)
    assert max(abs(c.linear.x) for c in sim.commands) <= 0.5 and min(c.linear.x for c in sim.commands) >= 0

    person.x += 2.0
    sim.step_until(lambda command: command.linear.x > 0.1)
    sim.things.clear()      # everybody is gone, the camera is not
    sim.insist(lambda: sim.stands, 'stop', *messages(later(sim), sim.robot, sim.things, sim.random))


def later(sim: World) -> Time:
    """A stamp a nanosecond on: the clock itself stands still, nothing is old."""
    sim.now_ns += 1
    return sim.stamp


def test_it_stops_when_the_images_stop(world):
    sim = world(Thing(1, 4.0, 0.5))
    sim.step_until(lambda command: command.linear.x > 0.1)
    for ticks in itertools.count(1):     # time goes on without a camera
        sim.tick()
        seen = len(sim.commands)
        if ticks > 5:      # timeout_s is over, and the next look at the clock is due
            sim.until(lambda n=seen: sim.say_time() or len(sim.commands) > n or sim.stands, 'command')
        if sim.stands:
            break
        assert ticks <= 8
    assert ticks > 4, 'half a second of old news is taken'
    place = sim.robot.x
    for _ in range(10):
        sim.tick()
    assert sim.robot.x == place

    late = Time(sec=sim.now_ns // 10**9 - 1)     # an image that took a second, with the person on the left
    sim.things[0].y = 1.5
    seen = len(sim.commands)
    sim.ask(*messages(late, sim.robot, sim.things, sim.random))
    sim.things[0].y = -1.5
    sim.wait_for(lambda command: command.angular.z < 0)
    assert not any(command.angular.z > 0 for command in sim.commands[seen:])


def test_it_stays_with_whom_it_follows(world):
    person, other = Thing(1, 3.5, 0.9), Thing(2, 5.0, -0.9)
    sim = world(person, other)
    sim.step_until(lambda command: command.angular.z > 0)    # towards the nearer one, on the left
    person.x, other.x = 5.0, 3.0      # now the other one is nearer
    for _ in range(3):
        sim.step()
    assert sim.commands[-1].angular.z > 0, 'still the first'
    sim.things.remove(person)
    sim.step_until(lambda command: command.angular.z < 0)


def test_only_its_class_is_followed(world):
    dog, person = Thing(1, 2.5, 0.9, class_name='dog'), Thing(2, 4.0, -0.9)
    sim = world(dog, person)
    sim.step_until(lambda command: command.angular.z < 0)
    sim.things.remove(person)
    sim.step_until(lambda command: command == Twist())
    for _ in range(3):
        sim.step()
        assert sim.stands


def test_it_stops_the_robot_when_it_ends(world):
    sim = world(Thing(1, 4.0, 0.0))
    sim.step_until(lambda command: command.linear.x > 0.1)
    agent = sim.children.pop()
    agent.interrupt()
    sim.until(lambda: sim.stands, 'stop')
    agent.end()
    assert agent.code == 0


@pytest.fixture
def agent():
    """An agent of this process, its commands in a list."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = FollowPerson(context=context)
    commands = []
    node._commands = SimpleNamespace(publish=commands.append)

    def see(epoch: int, *people: tuple[int, float, float], **stamp: int) -> Twist:
        """What it does about people: track id, metres to the right and ahead."""
        frame = Instance3DArray(track_epoch=epoch, instances=[
            Instance3D(track_id=number, class_name='person', position=Point(x=x, z=z)) for number, x, z in people])
        frame.header.stamp = Time(**stamp) if stamp else node.get_clock().now().to_msg()
        node._client._take_3d(frame)
        return commands[-1]

    yield see
    node.destroy_node()
    context.try_shutdown()


@pytest.mark.parametrize('position', [
    (math.nan, 3.0), (0.2, math.nan), (math.inf, 3.0), (0.2, -math.inf), (0.3, -2.0), (0.0, 0.0)])
def test_what_is_no_position_is_nobody(agent, position):
    assert agent(1, (1, 0.5, 4.0)).linear.x > 0
    assert agent(1, (1, *position)) == Twist()
    assert agent(1, (1, *position), (2, -0.5, 5.0)).angular.z > 0, 'who has one is followed'


@pytest.mark.parametrize('stamp', [{'sec': -3}, {'sec': 5, 'nanosec': 4 * 10**9}])
def test_a_stamp_that_is_none_is_old(agent, stamp):
    assert agent(1, (1, 0.5, 4.0), **stamp) == Twist()


def test_after_a_restart_the_same_number_is_somebody_else(agent):
    assert agent(7, (1, 1.0, 3.0), (2, -1.0, 5.0)).angular.z < 0
    assert agent(7, (2, -1.0, 2.0), (1, 1.0, 3.0)).angular.z < 0, 'it stays with its person'
    assert agent(8, (2, -1.0, 2.0), (1, 1.0, 3.0)).angular.z > 0, 'whoever is nearest now'
