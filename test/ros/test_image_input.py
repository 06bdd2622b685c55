"""Images come from a real graph with the QoS that was asked for, and what keeps them from coming is told with names."""

import signal
import subprocess
import sys
import time
from array import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
import rclpy
from node_process import PATIENCE_S, picture, wait_until
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from tar_vis_ros.conversions.images import to_rgb
from tar_vis_ros.node import image_input
from tar_vis_ros.node.image_input import ImageInput
from tar_vis_ros.process.parameters import ParameterError

BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
CAMERA = '''
import sys, rclpy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node('mortal', namespace='/cameras')
images = node.create_publisher(Image, sys.argv[1], 1)
node.create_timer(0.05, lambda: images.publish(Image(width=1)))
rclpy.spin(node)
'''


class Taker:
    """A node with an ImageInput, and what that said."""

    def __init__(self, context: rclpy.Context, topic: str, transport: str = 'raw', reliability: str = 'best_effort',
                 arguments: list[str] | None = None, **qos: object) -> None:
        """``arguments`` are of the command line; ``qos`` are overrides of this topic's, by policy."""
        self.node = rclpy.create_node(
            f'taker_of{topic.replace("/", "_")}', context=context, cli_args=['--ros-args', *(arguments or ())],
            parameter_overrides=[Parameter(f'qos_overrides.{topic}.subscription.{policy.removeprefix("qos_")}',
                                           value=value) for policy, value in qos.items()])
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)
        self.images, self.missed, self.told = [], [], []
        self.listen(topic, transport, reliability)

    def listen(self, topic: str, transport: str = 'raw', reliability: str = 'best_effort') -> None:
        self.input = ImageInput(self.node, topic, transport, reliability, self._on_image,
                                lambda kind, text: self.told.append((kind, text)))

    def _on_image(self, message: object, arrived: float, missed: int) -> None:
        self.images.append(message)
        self.missed.append(missed)

    def until(self, done, what: str) -> None:
        def spin() -> None:
            self._executor.spin_once(timeout_sec=0.02)
        wait_until(lambda: (spin(), done())[1], f'{what}; it told {self.told}', turn=lambda: None)

    def heard(self, publisher: object, message: object) -> object:
        """The next image, which is published until it comes."""
        count = len(self.images)
        self.until(lambda: (publisher.publish(message), len(self.images) > count)[1], 'image')
        return self.images[-1]

    def burst(self, publisher: object) -> tuple[list[int], int]:
        """Publishes five images while the node does not look; gives those that came and how many it calls missed.

        One goes before them, that comes alone: reliably, so that nothing older is on its way still.
        """
        self.heard(publisher, Image(width=1))
        publisher.publish(Image(width=10))
        self.until(lambda: self.images[-1].width == 10, 'the one before')
        count = len(self.images)
        for width in range(11, 16):
            publisher.publish(Image(width=width))
        self.until(lambda: self.images[-1].width == 15, 'newest image')
        return [image.width for image in self.images[count:]], sum(self.missed[count:])

    @property
    def entities(self) -> tuple[int, int, int]:
        return tuple(len(list(things)) for things in (self.node.subscriptions, self.node.timers, self.node.waitables))

    def close(self) -> None:
        self.input.close()
        self._executor.shutdown()
        self.node.destroy_node()


@pytest.fixture(scope='module')
def contexts():
    """Two DDS participants that know each other: of takers, and of publishers."""
    taking, publishing = rclpy.Context(), rclpy.Context()
    for context in (taking, publishing):
        rclpy.init(context=context)
    keepers = [rclpy.create_node(name, context=context)
               for name, context in (('keeper', taking), ('outsider', publishing))]
    wait_until(lambda: 'outsider' in keepers[0].get_node_names(), 'discovery')
    yield SimpleNamespace(taking=taking, publishing=publishing)
    for keeper, context in zip(keepers, (taking, publishing), strict=True):
        keeper.destroy_node()
        context.try_shutdown()


@pytest.fixture
def graph(contexts, request, monkeypatch):
    """``taker(...)``, ``publisher(node, type, qos)`` and a ``topic`` of this test's own."""
    monkeypatch.setattr(image_input, 'LOOK_S', 0.1)
    monkeypatch.setattr(image_input, 'PATIENCE_S', PATIENCE_S)   # for those tests that are not about it
    takers, nodes, topic = [], [], '/' + request.node.originalname

    def taker(*arguments, **options):
        takers.append(Taker(contexts.taking, *(arguments or (topic,)), **options))
        return takers[-1]

    def publisher(name, message=Image, qos=RELIABLE, topic=topic):
        nodes.append(rclpy.create_node(name, namespace='/cameras', context=contexts.publishing))
        return SimpleNamespace(to=nodes[-1].create_publisher(message, topic, qos), leave=nodes[-1].destroy_node)

    yield SimpleNamespace(taker=taker, publisher=publisher, topic=topic, node=lambda: nodes[-1])
    for taker_ in takers:
        taker_.close()
    for node in nodes:
        node.destroy_node()


def kinds(taker: Taker) -> list[str]:
    return [kind for kind, _ in taker.told]


def test_a_best_effort_publisher_is_named_to_a_reliable_subscriber(graph):
    taker = graph.taker(reliability='reliable')
    wrong = graph.publisher('careless', qos=BEST_EFFORT)
    taker.until(lambda: any('/cameras/careless' in line for line in taker.input.problems()), 'problem')
    [line] = taker.input.problems()
    for word in ('best effort publisher and reliable subscription', graph.topic, 'image_reliability'):
        assert word in line
    right = graph.publisher('careful')
    taker.heard(right.to, Image(width=7))
    wrong.leave()
    taker.until(lambda: not taker.input.problems(), 'end of the problem')
    assert kinds(taker) == ['incompatible QoS'], 'told once'
    again = graph.publisher('careless', qos=BEST_EFFORT)
    taker.until(lambda: len(taker.told) == 2, 'second report')
    again.leave()


def test_the_middlewares_event_tells_without_waiting_for_the_next_look(graph, monkeypatch):
    monkeypatch.setattr(image_input, 'LOOK_S', 3600.0)
    taker = graph.taker(reliability='reliable')
    graph.publisher('careless', Image, BEST_EFFORT, '/elsewhere')
    taker.until(lambda: ('careless', '/cameras') in taker.node.get_node_names_and_namespaces(), 'node name')
    events = []

    def told() -> bool:
        """One of several publishers is told of: an event may come before the graph knows whose publisher it is."""
        if not events or time.monotonic() - events[-1] > 2:
            graph.node().create_publisher(Image, graph.topic, BEST_EFFORT)
            events.append(time.monotonic())
        return kinds(taker) == ['incompatible QoS']
    taker.until(told, 'problem')
    assert '/cameras/careless' in taker.told[0][1]


def test_a_volatile_publisher_is_named_to_a_subscriber_that_wants_what_was_before(graph):
    taker = graph.taker(reliability='reliable', qos_durability='transient_local')
    graph.publisher('forgetful')
    taker.until(lambda: kinds(taker) == ['incompatible QoS'], 'problem')
    assert '/cameras/forgetful' in taker.told[0][1] and 'transient local subscription' in taker.told[0][1]
    keeping = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    taker.heard(graph.publisher('mindful', qos=keeping).to, Image(width=7))


def test_two_publishers_are_named_until_one_leaves(graph):
    taker = graph.taker()
    first, second = graph.publisher('left'), graph.publisher('right')
    taker.until(lambda: taker.input.problems(), 'problem')
    [line] = taker.input.problems()
    assert '2 publishers' in line and '/cameras/left' in line and '/cameras/right' in line
    second.leave()
    taker.until(lambda: not taker.input.problems(), 'end of the problem')
    taker.heard(first.to, Image(width=7))
    assert kinds(taker) == ['several publishers']


def test_a_publisher_of_another_type_is_named(graph):
    taker = graph.taker()
    graph.publisher('squeezing', CompressedImage)
    taker.until(lambda: kinds(taker) == ['wrong type'], 'problem')
    for word in ('/cameras/squeezing', 'sensor_msgs/msg/CompressedImage', 'image_transport'):
        assert word in taker.told[0][1]


def test_a_topic_that_nobody_publishes_is_told_with_those_that_have_images(graph, monkeypatch):
    monkeypatch.setattr(image_input, 'PATIENCE_S', 0.3)
    graph.publisher('elsewhere', topic='/where_images_are')
    taker = graph.taker()
    taker.node.create_publisher(Image, '~/overlay', 1)
    taker.until(lambda: any('/where_images_are' in line for line in taker.input.problems()), 'hint')
    [line] = taker.input.problems()
    assert f'nobody publishes {graph.topic}' in line and 'overlay' not in line
    taker.heard(graph.publisher('late').to, Image(width=7))
    taker.until(lambda: not taker.input.problems(), 'end of the problem')
    assert kinds(taker) == ['no publisher']


def test_a_publisher_that_ends_is_missed_by_name(graph, monkeypatch):
    monkeypatch.setattr(image_input, 'PATIENCE_S', 0.3)
    camera = subprocess.Popen([sys.executable, '-c', CAMERA, graph.topic], stderr=subprocess.DEVNULL)
    try:
        taker = graph.taker()
        taker.until(lambda: taker.images and taker.input._sources == ['/cameras/mortal'], 'image of a known node')
        before = len(taker.told)
        camera.send_signal(signal.SIGINT)
        camera.wait(PATIENCE_S)
        taker.until(taker.input.problems, 'problem')
    finally:
        camera.kill()
    assert len(taker.told) == before + 1 and taker.told[-1][0] == 'no publisher'
    assert 'any more, /cameras/mortal did' in taker.told[-1][1]


def test_images_that_the_queue_replaced_are_counted(graph):
    taker = graph.taker(reliability='reliable')
    source = graph.publisher('fast')
    missed = 0
    while not missed:
        came, missed = taker.burst(source.to)
        assert len(came) + missed == 5 and came == sorted(came)


@pytest.mark.parametrize('source', ['command line', 'parameter file'])
def test_start_up_parameters_override_the_qos(graph, tmp_path, source):
    """A queue of ten holds what came while the node was busy."""
    name = f'qos_overrides.{graph.topic}.subscription'
    yaml = tmp_path / 'qos.yaml'
    yaml.write_text(f'/**:\n  ros__parameters:\n    qos_overrides:\n      {graph.topic}:\n        subscription:\n'
                    '          reliability: reliable\n          depth: 10\n')
    arguments = ['--params-file', str(yaml)] if source == 'parameter file' else [
        '-p', f'{name}.reliability:=reliable', '-p', f'{name}.depth:=10']
    taker = graph.taker(arguments=arguments)
    camera = graph.publisher('fast')
    for _ in range(3):
        assert taker.burst(camera.to) == ([11, 12, 13, 14, 15], 0)
    [info] = graph.node().get_subscriptions_info_by_topic(graph.topic)
    assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    assert taker.node.get_parameter(f'{name}.depth').value == 10


@pytest.mark.parametrize(('policy', 'value', 'words'), [
    ('reliability', 'sure', ["'sure'", 'best_effort, reliable']),
    ('reliability', 1, ['best_effort, reliable']),
    ('depth', 0, ['is 0', 'from 1 to 10000']),
    ('depth', 2.0, ['is 2.0', 'from 1 to 10000']),
    ('depth', 'deep', ["'deep'", 'from 1 to 10000']),
    ('reliabilty', 'reliable', ["no QoS policy 'reliabilty'", 'history, depth, reliability, durability']),
])
def test_an_override_that_cannot_be_is_refused_with_one_line(graph, policy, value, words):
    with pytest.raises(ParameterError) as error:
        graph.taker(**{f'qos_{policy}': value})
    assert '\n' not in str(error.value) and f'qos_overrides.{graph.topic}.subscription.{policy}' in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_ten_inputs_one_after_the_other_in_one_node(graph):
    """What activate and deactivate do; nothing is left of those before, overrides hold, reliability may change."""
    taker = graph.taker(qos_depth=3)
    camera = graph.publisher('patient')
    before = taker.entities
    for turn in range(10):
        taker.input.close()
        taker.input.close()
        taker.images.clear()
        taker.listen(graph.topic, reliability=('best_effort', 'reliable')[turn % 2])
        taker.heard(camera.to, Image(width=7))
        assert taker.entities == before
        expected = (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE)[turn % 2]
        taker.until(lambda e=expected: [info.qos_profile.reliability for info in graph.node()
                    .get_subscriptions_info_by_topic(graph.topic)] == [e], 'subscription of the new kind')
    taker.input.close()
    taker.images.clear()
    camera.to.publish(Image(width=8))
    other = graph.taker()
    other.heard(camera.to, Image(width=9))
    assert not taker.images and not taker.input.problems() and not taker.told


def test_compressed_images_come_from_the_remapped_topic(graph):
    """As with image_transport: the topic is remapped, and /compressed comes behind it."""
    taker = graph.taker('image', 'compressed', arguments=['-r', f'image:={graph.topic}/image_raw'])
    assert taker.input.topic == f'{graph.topic}/image_raw/compressed'
    pixels = picture(48, 64)
    data = cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()
    message = CompressedImage(format='rgb8; png compressed bgr8', data=array('B', data))
    message.header.stamp.sec, message.header.frame_id = 5, 'optical'
    got = taker.heard(graph.publisher('squeezing', CompressedImage, topic=taker.input.topic).to, message)
    assert got.header == message.header
    np.testing.assert_array_equal(to_rgb(got), pixels)
