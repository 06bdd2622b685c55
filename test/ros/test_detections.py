"""vision_msgs/Detection2DArray tells the same ids, boxes, classes and scores as InstanceMaskArray of that stamp."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('vision_msgs')

import rclpy
from builtin_interfaces.msg import Time
from node_process import Client, NodeProcess, key, nano_weights, picture
from rclpy.executors import SingleThreadedExecutor
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from tar_vis_core.instances import FrameResult, Instance, RoutingTrace, StageTimes, TrackStatus, encode_runs
from tar_vis_ros.conversions import detections
from tar_vis_ros.conversions.detections import LABELS_QOS, encode_detections, label_info
from tar_vis_ros.conversions.messages import encode_instances

HEADER = Header(stamp=Time(sec=7, nanosec=123_456_789), frame_id='camera_optical')


def instance(track_id: int, box: tuple[int, int, int, int], status: TrackStatus, **values) -> Instance:
    mask = np.ones((box[3], box[2]), bool)
    return Instance(track_id=track_id, status=status, age=3, box=box, area=int(mask.sum()), runs=encode_runs(mask),
                    **{'class_id': 0, 'class_name': 'person', 'score': 0.75, **values})


def frame(*instances: Instance) -> FrameResult:
    return FrameResult(height=48, width=64, frame_index=4, track_epoch=1, instances=list(instances),
                       routing=RoutingTrace((True,), np.array([np.nan], np.float32)), frame_mse=1.0,
                       times=StageTimes(1, 1, 1, 1, 1, 5))


def over_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


def test_detections_agree_with_the_instances_of_the_same_image():
    result = frame(instance(4_000_000_000, (3, 5, 10, 7), TrackStatus.TRACKED),
                   instance(2, (0, 0, 64, 48), TrackStatus.NEW, class_id=1, class_name='dog', score=0.5),
                   instance(9, (30, 30, 4, 4), TrackStatus.LOST))
    masks, array = encode_instances(result, HEADER), over_the_wire(encode_detections(result, HEADER))
    assert array.header == masks.header
    visible = [mask for mask in masks.instances if mask.status != mask.LOST]
    assert len(array.detections) == len(visible) == 2
    for detection, mask in zip(array.detections, visible, strict=True):
        assert detection.header == HEADER
        assert detection.id == str(mask.track_id)
        assert [(r.hypothesis.class_id, r.hypothesis.score) for r in detection.results] == \
            [(str(mask.class_id), mask.score)]
        box, roi = detection.bbox, mask.roi
        assert (box.size_x, box.size_y, box.center.theta) == (roi.width, roi.height, 0)
        assert box.center.position.x - box.size_x / 2 == roi.x_offset
        assert box.center.position.y - box.size_y / 2 == roi.y_offset


def test_a_frame_with_nobody_is_an_empty_message():
    assert encode_detections(frame(), HEADER) == Detection2DArray(header=HEADER)


def test_labels_name_every_class_id():
    info = over_the_wire(label_info(('person', 'dog'), 0.5, HEADER))
    array = encode_detections(frame(instance(2, (0, 0, 9, 9), TrackStatus.NEW, class_id=1, class_name='dog')), HEADER)
    names = {str(entry.class_id): entry.class_name for entry in info.class_map}
    assert names[array.detections[0].results[0].hypothesis.class_id] == 'dog', 'as vision_msgs has it looked up'
    assert {entry.class_id: entry.class_name for entry in info.class_map} == {
        0: 'person', 1: 'dog', 255: 'background'}
    assert info.threshold == 0.5 and info.header == HEADER


def test_a_late_listener_gets_the_labels():
    assert detections.available
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node('labels', context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        sent, got = label_info(('person',), 0.5, HEADER), []
        node.create_publisher(LabelInfo, 'label_info', LABELS_QOS).publish(sent)
        node.create_subscription(LabelInfo, 'label_info', got.append, LABELS_QOS)
        deadline = time.monotonic() + 60
        while not got:
            assert time.monotonic() < deadline
            executor.spin_once(timeout_sec=0.1)
        assert got == [sent]
        executor.shutdown()
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)


def test_the_node_publishes_detections_and_labels_beside_its_masks(tmp_path):
    weights = nano_weights(tmp_path)
    node = NodeProcess(tmp_path, 'detecting', autostart=True, device='cpu', threads=1, score_threshold=0.25,
                       **{'weights': weights} if weights else {})
    client, arrays, labels = Client(node), {}, []
    try:
        client.node.create_subscription(Detection2DArray, '/detecting/detections',
                                        lambda array: arrays.__setitem__(key(array.header.stamp), array), 10)
        client.until(lambda: client.node.count_publishers('/detecting/detections'), 'detections')
        client.until(lambda: client.ask(client.image(picture())) and arrays, 'detections')
        stamp, array = arrays.popitem()
        instances = client.instances[stamp]
        assert array.header == instances.header
        seen = [mask for mask in instances.instances if mask.status != mask.LOST]
        assert {detection.id for detection in array.detections} == {str(mask.track_id) for mask in seen}
        assert weights or array.detections, 'the trained model sees the person'

        client.node.create_subscription(LabelInfo, '/detecting/label_info', labels.append, LABELS_QOS)
        client.until(lambda: labels, 'labels, although they were published before')
        names = {entry.class_id: entry.class_name for entry in labels[0].class_map}
        assert labels[0].threshold == 0.25
        assert all(names[i.class_id] == i.class_name for i in seen)
    finally:
        client.close()
        node.end()
