"""What the pages on Nav2 and SLAM print is what the running node gives: topics, types, QoS, stamps, sizes, names."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy')
pytest.importorskip('skimage')

from building import ROOT, BuiltProcess
from node_process import Client, NodeProcess, key, nano_weights, picture
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import Image

from tar_vis_core.instances import TrackStatus
from tar_vis_core.models.presets import PRESETS
from tar_vis_ros.conversions import detections
from tar_vis_ros.conversions.images import array_to_image, image_to_array
from tar_vis_ros.conversions.label_images import class_ids
from tar_vis_ros.depth.lifting import DEPTHS

HEIGHT, WIDTH = 240, 320
# What semantic_segmentation_layer subscribes with.
NAV2_LABELS = QoSProfile(history=HistoryPolicy.KEEP_ALL, reliability=ReliabilityPolicy.RELIABLE,
                         durability=DurabilityPolicy.TRANSIENT_LOCAL)


def block(page: str, language: str) -> str:
    text = (ROOT / f'docs/tutorials/{page}.md').read_text()
    return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)[0]


@pytest.fixture(scope='module')
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp('navigation')
    process = NodeProcess(folder, 'tar_vis', weights=nano_weights(folder) or "''", autostart='true', device='cpu',
                          threads=1, score_threshold=0.2)
    client = Client(process)
    try:
        process.wait_for_line('waiting for images')
        yield client
    finally:
        client.close()
        process.end()


def images_of_one_stamp(client: Client, stores: dict[str, dict]) -> tuple[Image, dict[str, Image]]:
    """Ask with new images until every store has an answer to one of them; return it and its answers."""
    for shift in range(30):
        image = client.image(picture(HEIGHT, WIDTH, shift))
        client.ask(image)
        client.spin(0.2)
        stamp = key(image.header.stamp)
        if all(stamp in store for store in stores.values()):
            return image, {name: store[stamp] for name, store in stores.items()}
    raise AssertionError(f'no images on {list(stores)}:\n{client.process.output}')


def test_the_layer_of_nav2_gets_what_it_subscribes_to(client):
    """As the layer does it: ids to names by label_info, names to the types of the page's parameters."""
    camera = yaml.safe_load(block('people_in_the_costmap', 'yaml'))['semantic_segmentation_layer']['camera']
    stores: dict[str, dict] = {'segmentation': {}, 'confidence': {}}
    subscriptions = [client.node.create_subscription(Image, camera[f'{name}_topic'], client._take(store),
                                                     qos_profile_sensor_data) for name, store in stores.items()]
    image, answers = images_of_one_stamp(client, stores)
    ids = {name: number for number, name in class_ids(PRESETS['nano'].class_names).items()}
    if detections.available:
        labels = []
        subscriptions.append(client.node.create_subscription(detections.LabelInfo, camera['labels_topic'],
                                                             labels.append, NAV2_LABELS))
        client.until(lambda: labels, 'labels')
        assert {entry.class_name: entry.class_id for entry in labels[0].class_map} == ids
    assert all(number == number & 0xFF for number in ids.values()), 'the layer keeps eight bits of them'
    types = {ids[name]: kind for kind in camera['class_types'] for name in camera[kind]['classes']}
    mask, confidence = image_to_array(answers['segmentation']), image_to_array(answers['confidence'])
    for answer in answers.values():
        assert answer.header == image.header and answer.encoding == 'mono8'
        assert (answer.height, answer.width, answer.step) == (HEIGHT, WIDTH, WIDTH)
    assert set(np.unique(mask)) <= set(ids.values())
    instances = client.instances[key(image.header.stamp)].instances
    people = [i for i in instances if i.class_name == 'person' and i.status != TrackStatus.LOST]
    assert (confidence == 0)[mask == ids['background']].all()
    best = max((i.score for i in instances if i.status != TrackStatus.LOST), default=0)
    assert confidence.max() == round(255 * best)
    if not nano_weights(client.process._output.parent):
        assert people and 0 < np.isin(mask, [i for i, kind in types.items() if kind == 'people']).mean() < 1
    for subscription in subscriptions:
        client.node.destroy_subscription(subscription)


def test_the_program_for_slam_cuts_what_moves_out_of_the_depth(client, ros_env, tmp_path):
    (tmp_path / 'static_depth.py').write_text(block('slam_without_people', 'python'))
    program = BuiltProcess([sys.executable, 'static_depth.py'], ros_env, tmp_path, 'static_depth')
    masks, depths = {}, {}
    node, random = client.node, np.random.default_rng(0)
    node.create_subscription(Image, '/tar_vis/static_mask', client._take(masks), 5)
    node.create_subscription(Image, '/camera/static_depth', client._take(depths), 5)
    sender = node.create_publisher(Image, '/camera/aligned_depth_to_color/image_raw', qos_profile_sensor_data)
    try:
        client.until(lambda: sender.get_subscription_count() or not program.running, 'the program')
        assert program.running, program.output
        assert client.set(moving_margin_px=12) == ''
        for shift in range(30):
            image = client.image(picture(HEIGHT, WIDTH, shift))
            sent = random.integers(300, 5000, (HEIGHT, WIDTH), np.uint16)
            sender.publish(array_to_image(sent, '16UC1', image.header, DEPTHS))
            client.ask(image)
            client.spin(0.2)
            if key(image.header.stamp) in depths and key(image.header.stamp) in masks:
                break
        depth, mask = depths[key(image.header.stamp)], image_to_array(masks[key(image.header.stamp)])
        assert depth.header == image.header
        np.testing.assert_array_equal(image_to_array(depth, DEPTHS), np.where(mask == 0, 0, sent))
        if not nano_weights(tmp_path):
            assert 0 < (mask == 0).mean() < 1
    finally:
        program.close()
