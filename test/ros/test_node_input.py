"""The node's input on a real graph: compressed images, QoS by parameter, and what keeps images from coming."""

from array import array

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('tar_vis_core.segmenter')
from diagnostic_msgs.msg import DiagnosticStatus
from node_process import Client, NodeProcess, nano_weights, picture
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from tar_vis_ros.conversions.images import to_rgb


@pytest.fixture(scope='module')
def clients(tmp_path_factory):
    """Of two active nodes: one takes compressed images and reports no object, one overrides the QoS of its topics."""
    folder = tmp_path_factory.mktemp('input')
    common = dict(weights=nano_weights(folder) or "''", input_short_side=64, threads=1, image_timeout_s=1.0)
    processes = [
        NodeProcess(folder, 'squeezed', image_transport='compressed', score_threshold=1.0, **common),
        NodeProcess(folder, 'picky', '-p', 'qos_overrides./picky/image.subscription.reliability:=reliable',
                    '-p', 'qos_overrides./wrong/image.subscription.reliability:=certain', **common)]
    clients = [Client(process) for process in processes]
    try:
        for client in clients:
            assert client.transition('configure') and client.transition('activate'), client.process.output
        yield clients
    finally:
        for client in clients:
            client.close()
            assert client.process.end() == 0
            assert 'Traceback' not in client.process.output


@pytest.fixture(scope='module')
def squeezed(clients):
    client = clients[0]
    client.images = client.node.create_publisher(CompressedImage, '/squeezed/image/compressed', 1)
    return client


@pytest.fixture(scope='module')
def picky(clients):
    return clients[1]


def compressed(client: Client, pixels: np.ndarray, extension: str, text: str) -> CompressedImage:
    data = cv2.imencode(extension, pixels[..., ::-1])[1].tobytes()
    return CompressedImage(header=client.image(pixels).header, format=text, data=array('B', data))


@pytest.mark.parametrize(('extension', 'text', 'tolerance'), [
    ('.png', 'rgb8; png compressed bgr8', 0), ('.jpg', 'bgr8; jpeg compressed bgr8', 30)])
def test_compressed_images_are_answered(squeezed, extension, text, tolerance):
    pixels, overlays = cv2.GaussianBlur(picture(), (0, 0), 3), []
    subscription = squeezed.node.create_subscription(Image, '/squeezed/overlay', overlays.append, 1)
    message = compressed(squeezed, pixels, extension, text)
    result = squeezed.ask(message)
    assert (result.height, result.width) == (120, 160)

    def answered() -> bool:
        if not overlays:
            squeezed.ask(message)
        return bool(overlays)

    squeezed.until(answered, 'overlay')
    difference = np.abs(to_rgb(overlays[0]).astype(int) - pixels)
    assert overlays[0].header == message.header and difference.max() <= tolerance
    squeezed.node.destroy_subscription(subscription)


def test_a_damaged_image_is_refused_and_the_next_one_answered(squeezed):
    message = compressed(squeezed, picture(), '.jpg', 'jpeg')
    said, size = squeezed.process.output, len(message.data) // 2
    message.data = message.data[:size]
    squeezed.until(lambda: (squeezed.send(message), squeezed.process.lines('image refused', said))[1], 'refusal')
    line = squeezed.process.lines('image refused', said)[0]
    assert f'compressed image of {size} bytes' in line and 'expected a whole JPEG or PNG' in line
    values = squeezed.status_where(lambda values: int(values['images refused']) >= 1, 'count of refused images')
    assert 'cannot be decoded' in values['last error'] and squeezed.status.level == DiagnosticStatus.WARN
    squeezed.ask(compressed(squeezed, picture(), '.jpg', 'jpeg'))


def test_a_topic_without_publisher_is_told_with_those_that_have_images(squeezed):
    elsewhere = squeezed.node.create_publisher(Image, '/camera/image_raw', 1)
    squeezed.ask(compressed(squeezed, picture(), '.png', 'png'))
    squeezed.spin(1)      # until the node has heard of it
    said = squeezed.process.output
    squeezed.node.destroy_publisher(squeezed.images)
    line = squeezed.process.wait_for_line('nobody publishes', said)
    assert '/squeezed/image/compressed any more, /tester_of_squeezed did' in line and '/camera/image_raw' in line
    squeezed.status_where(lambda values: 'nobody publishes' in squeezed.status.message, 'warning')
    assert squeezed.status.level == DiagnosticStatus.WARN
    assert 'no image on /squeezed/image/compressed' in squeezed.status.message, 'after image_timeout_s'
    squeezed.node.destroy_publisher(elsewhere)
    squeezed.images = squeezed.node.create_publisher(CompressedImage, '/squeezed/image/compressed', 1)
    squeezed.ask(compressed(squeezed, picture(), '.png', 'png'))
    squeezed.status_where(lambda values: squeezed.status.level == DiagnosticStatus.OK, 'end of the warning')


def reliability(client: Client) -> list[ReliabilityPolicy]:
    return [info.qos_profile.reliability for info in client.node.get_subscriptions_info_by_topic('/picky/image')]


def test_overridden_qos_holds_through_deactivate_and_activate(picky):
    for _ in range(3):
        picky.ask(picky.image(picture()))
        assert reliability(picky) == [ReliabilityPolicy.RELIABLE]
        assert picky.transition('deactivate')
        picky.until(lambda: not reliability(picky), 'end of the subscription')
        assert picky.transition('activate')
    assert 'qos_overrides./picky' not in picky.process.output, 'no warning of an unknown parameter'


def test_a_publisher_with_incompatible_qos_is_named_in_the_log_and_the_diagnostics(picky):
    said = picky.process.output
    picky.node.destroy_publisher(picky.images)
    careless = picky.node.create_publisher(
        Image, '/picky/image', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    line = picky.process.wait_for_line('incompatible', said)
    picky.status_where(lambda values: 'incompatible' in picky.status.message, 'warning')
    assert picky.status.level == DiagnosticStatus.WARN
    for text in (line, picky.status.message):
        assert '/tester_of_picky' in text and 'best effort publisher and reliable subscription' in text
    picky.node.destroy_publisher(careless)
    picky.images = picky.node.create_publisher(Image, '/picky/image', 1)
    picky.ask(picky.image(picture()))
    picky.status_where(lambda values: picky.status.level == DiagnosticStatus.OK, 'end of the warning')
    assert len(picky.process.lines('incompatible', said)) == 1, 'logged once'


def test_an_override_that_cannot_be_is_said_in_one_line(picky):
    said = picky.process.output
    assert picky.transition('deactivate') and picky.transition('cleanup')
    assert picky.set(image_topics=['/wrong/image']) == ''
    assert picky.transition('configure') and not picky.transition('activate')
    line = picky.process.wait_for_line('cannot activate', said)
    assert 'qos_overrides./wrong/image.subscription.reliability' in line
    assert "'certain'" in line and 'expected one of best_effort, reliable' in line
    assert picky.state == 'inactive' and picky.transition('cleanup')
    assert picky.set(image_topics=['']) == '', 'none'
    assert picky.transition('configure') and picky.transition('activate')
    picky.ask(picky.image(picture()))


def test_a_qos_override_of_no_topic_is_told(clients):
    assert clients[1].process.wait_for_line("'qos_overrides./wrong/image.subscription.reliability' is ignored")
