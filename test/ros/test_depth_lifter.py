"""The real depth_lifter on a real graph: it answers equal stamps and says why it does not answer others."""

from __future__ import annotations

import itertools
import signal

import numpy as np
import pytest

pytest.importorskip('rclpy')

import rclpy
from builtin_interfaces.msg import Time
from camera_graph import CameraGraph, values
from diagnostic_msgs.msg import DiagnosticStatus
from node_process import wait_until
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage
from simulated_camera import Robot, Thing, messages
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.depth.lifting import DEPTHS
from tar_vis_ros.process.children import ChildProcess

PEOPLE = [Thing(4, 3.0, 0.4), Thing(6, 4.5, -0.8)]


@pytest.fixture(scope='module')
def graph():
    graph = CameraGraph()
    graph.connect()
    yield graph
    graph.close()


@pytest.fixture
def moment(request):
    """Function that gives the three messages of a later moment at each call."""
    random, clock = np.random.default_rng(0), request.getfixturevalue('clock')
    return lambda: list(messages(Time(sec=next(clock), nanosec=5), Robot(), PEOPLE, random))


@pytest.fixture
def alone():
    """Function that starts a depth_lifter that nobody talks to."""
    children: list[ChildProcess] = []

    def start(*arguments: str) -> ChildProcess:
        children.append(ChildProcess('depth_lifter', 'tar_vis_ros.depth.node', list(arguments)))
        return children[-1]

    yield start
    for child in children:
        child.end()


@pytest.fixture(scope='module')
def clock():
    return itertools.count(100)


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_an_answer_comes_in_whatever_order_the_messages_do(graph, moment, order):
    sent = moment()
    answer = graph.ask(*(sent[n] for n in order))
    assert answer.header == sent[0].header
    assert [i.track_id for i in answer.instances] == [4, 6]
    for instance, person in zip(answer.instances, PEOPLE, strict=True):
        position = instance.position
        assert (position.z, position.x) == pytest.approx((person.x, -person.y), abs=0.03)
        for size, true in ((instance.extent.x, person.width), (instance.extent.y, person.height)):
            assert 0.9 * true < size < true, 'an ellipse has hardly a point at its ends'


def test_a_late_answer_of_the_model_finds_its_depth_image(graph, moment):
    late, _, _ = first = moment()
    graph.publish(*first[1:])
    for _ in range(8):      # the camera goes on
        graph.publish(*moment()[1:])
    assert graph.ask(*first).header == late.header


def test_depth_of_another_size_is_refused_by_name_and_the_next_is_taken(graph, moment):
    def another_size() -> None:
        masks, _, info = moment()
        graph.publish(masks, array_to_image(np.ones((480, 640), np.float32), '32FC1', masks.header, DEPTHS), info)
    status = graph.status_where(lambda text, _: '640x480' in text, 'refusal', another_size)
    assert status.level == DiagnosticStatus.WARN
    assert 'expected depth registered to the image of the masks' in status.message
    assert any('640x480' in line for line in graph.lifter.complaints)
    sent = moment()
    assert graph.ask(*sent).header == sent[0].header


def test_stamps_that_never_match_are_said(graph, moment):
    def off_by_a_nanosecond() -> None:
        masks, depth, info = moment()
        stamp = masks.header.stamp
        depth.header = Header(stamp=Time(sec=stamp.sec, nanosec=stamp.nanosec + 1), frame_id=masks.header.frame_id)
        graph.publish(masks, depth, info)
    status = graph.status_where(lambda text, _: 'no equal stamps' in text, 'warning', off_by_a_nanosecond)
    assert status.level == DiagnosticStatus.WARN
    assert all(topic in status.message for topic in ('/tar_vis/instances', '/camera/depth', '/camera/camera_info'))
    assert 'must carry the stamp of the image' in status.message
    assert any('no equal stamps' in line for line in graph.lifter.complaints)


def test_masks_that_come_too_late_are_told_apart(graph, moment):
    early = itertools.cycle([moment() for _ in range(60)])

    def far_behind() -> None:
        graph.publish(*moment()[1:])
        graph.publish(next(early)[0])
    status = graph.status_where(lambda text, _: 'raise images_kept' in text, 'warning', far_behind)
    assert 'no equal stamps' in status.message


def test_a_silent_topic_is_named(graph, moment):
    status = graph.status_where(lambda text, _: 'no message on' in text and 'depth' not in text, 'warning',
                                lambda: graph.publish(moment()[1]))
    assert '/tar_vis/instances and /camera/camera_info' in status.message


def test_markers_are_made_only_while_somebody_listens(graph, moment):
    graph.ask(*moment())
    before = graph.status_where(lambda _, told: 'markers published' in told, 'status')
    assert values(before)['markers published'] == '0'
    seen: list[MarkerArray] = []
    listener = graph.node.create_subscription(MarkerArray, '/tar_vis/markers', seen.append, 10)
    graph.until(lambda: graph.ask(*moment()) and seen, 'markers')
    assert [m.action for m in seen[-1].markers] == [Marker.DELETEALL] + [Marker.ADD] * 2 * len(PEOPLE)
    graph.node.destroy_subscription(listener)


def test_parameters_change_while_it_runs(graph, moment):
    client = graph.node.create_client(SetParameters, '/tar_vis/depth_lifter/set_parameters')
    graph.until(client.service_is_ready, 'service')

    def change(name: str, value: object) -> str:
        future = client.call_async(SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()]))
        graph.until(future.done, 'answer')
        result = future.result().results[0]
        return '' if result.successful else result.reason

    assert change('min_points', 99_999) == ''
    assert sorted(graph.ask(*moment()).without_depth) == [4, 6]
    assert change('min_points', 30) == ''
    assert not graph.ask(*moment()).without_depth
    assert change('min_points', 0) != '' and change('images_kept', 5) != ''


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quietly(number, alone):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)     # as a shell does it in the background
    lifter = alone()
    signal.signal(signal.SIGINT, before)
    wait_until(lambda: lifter.lines, 'first line')
    lifter._process.send_signal(number)
    wait_until(lambda: lifter.code is not None, 'end')
    assert lifter.code == 0, chr(10).join(lifter.lines)
    assert len(lifter.lines) == 1 and 'waiting for' in lifter.lines[0], lifter.lines


@pytest.mark.parametrize(('argument', 'words'), [
    ('rejection:=0.1', "parameter 'rejection' is 0.1, expected a number from 0.5 to 100"),
    ('min_points:=many', "parameter 'min_points' is 'many', expected a whole number")])
def test_a_wrong_parameter_is_one_line(argument, words, alone):
    lifter = alone('--ros-args', '-p', argument)
    wait_until(lambda: lifter.code is not None, 'end')
    assert lifter.code == 2
    lifter.end()
    line, = lifter.lines
    assert line.startswith(f'tar-vis-depth: {words}')


def test_stamps_that_do_not_change_are_told_and_join_nothing(graph, moment):
    graph.ask(*moment())
    before = len(graph.answers)

    def publish() -> None:
        for message in moment():
            message.header.stamp = Time()
            graph.publish(message)
    status = graph.status_where(lambda text, _: 'the stamps are all 0 on' in text, 'word of the stamps', publish)
    assert status.level == DiagnosticStatus.WARN and 'header.stamp' in status.message
    assert len(graph.answers) == before
    assert graph.ask(*moment()), 'stamps that are some are answered again'


def test_a_depth_topic_of_another_type_is_named(alone):
    """A driver that compresses depth: messages flow, and nothing comes."""
    context = rclpy.Context()
    rclpy.init(context=context)
    driver = rclpy.create_node('packing_driver', context=context)
    try:
        driver.create_publisher(CompressedImage, '/packed/depth', 1)
        lifter = alone('--ros-args', '-r', '__ns:=/packed', '-r', 'depth:=/packed/depth', '-r',
                       'camera_info:=/packed/info')
        wait_until(lambda: any('packing_driver' in line for line in lifter.lines), 'the driver by its name')
        first = next(line for line in lifter.lines if 'packing_driver' in line)
        wait_until(lambda: any('for 5 s' in line for line in lifter.lines), 'the silence')
        second = next(line for line in lifter.lines if 'for 5 s' in line)
    finally:
        driver.destroy_node()
        context.try_shutdown()
    wrong = ('/packing_driver publishes sensor_msgs/msg/CompressedImage on /packed/depth, expected '
             'sensor_msgs/msg/Image')
    assert first.endswith(wrong), 'at once'
    assert wrong in second and 'nobody publishes /packed/info' in second
