"""Masks and depth that belong together become instances in 3-D and markers; those that do not are refused by name."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo
from simulated_camera import mask_message
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from tar_vis_core.instances import TrackStatus
from tar_vis_ros.conversions.images import ImageError, array_to_image
from tar_vis_ros.depth.geometry import Rules
from tar_vis_ros.depth.lifting import DEPTHS, LiftError, lift
from tar_vis_ros.depth.markers import markers
from tar_vis_ros.msg import InstanceMaskArray

HEIGHT, WIDTH, FOCAL = 90, 120, 100.0
HEADER = Header(stamp=Time(sec=3, nanosec=7), frame_id='camera_optical')
RULES = Rules(border_px=2, rejection=3.0, min_points=10)


def square(u: int, v: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[v:v + side, u:u + side] = True
    return mask


def scene(**changes) -> tuple[InstanceMaskArray, object, CameraInfo]:
    """Three squares at 3, 1 and 2 m (the last with no depth) and a lost one; ``changes`` spoil it."""
    masks = InstanceMaskArray(header=HEADER, height=HEIGHT, width=WIDTH, frame_index=4, track_epoch=2, instances=[
        mask_message(square(10, 10), 5, class_name='dog'), mask_message(square(60, 30), 7),
        mask_message(square(90, 60), 8), mask_message(square(40, 60), 9, status=TrackStatus.LOST)])
    metres = np.full((HEIGHT, WIDTH), 6.0, np.float32)
    for u, v, z in ((10, 10, 3.0), (60, 30, 1.0), (90, 60, np.nan)):
        metres[square(u, v)] = z
    header = Header(stamp=HEADER.stamp, frame_id=changes.pop('frame_id', HEADER.frame_id))
    depth = array_to_image(metres, '32FC1', header, DEPTHS)
    info = CameraInfo(header=HEADER, height=HEIGHT, width=WIDTH,
                      k=[FOCAL, 0.0, 60.0, 0.0, FOCAL, 45.0, 0.0, 0.0, 1.0])
    for name, value in changes.items():
        target = depth if name in ('encoding', 'data') else info if name == 'k' else masks
        setattr(target, name, value)
    return masks, depth, info


def test_the_nearest_comes_first_and_what_has_no_depth_is_named():
    answer = lift(*scene(), RULES)
    answer = deserialize_message(serialize_message(answer), type(answer))
    assert answer.header == HEADER and (answer.frame_index, answer.track_epoch) == (4, 2)
    assert [(i.track_id, i.class_name) for i in answer.instances] == [(7, 'person'), (5, 'dog')]
    assert list(answer.without_depth) == [8]
    near = answer.instances[0]
    assert (near.position.x, near.position.y, near.position.z) == pytest.approx((0.095, -0.055, 1.0), abs=0.006)
    assert (near.extent.x, near.extent.y, near.extent.z) == pytest.approx((0.19, 0.19, 0.0), abs=0.006)
    assert near.point_count == 400 and near.mask_share == 1.0 and near.score == np.float32(0.9)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'width': 640, 'height': 480}, 'the depth image is of 120x90 pixels, the masks of 640x480'),
    ({'frame_id': 'depth_optical'}, "the depth image is in frame 'depth_optical', the masks in 'camera_optical'"),
    ({'k': [0.0] * 9}, 'camera_info has no calibration'),
    ({'k': [np.nan] * 9}, 'camera_info has no calibration'),
    ({'k': [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]}, 'camera_info has no calibration'),   # a driver's default
    ({'k': [1e-320, 0.0, 60.0, 0.0, FOCAL, 45.0, 0.0, 0.0, 1.0]}, 'camera_info has no calibration'),
    ({'k': [FOCAL, 0.0, 60.0, 0.0, 1e300, 45.0, 0.0, 0.0, 1.0]}, 'camera_info has no calibration'),
])
def test_messages_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(LiftError, match=words) as caught:
        lift(*scene(**changes), RULES)
    assert '\n' not in str(caught.value)


def test_camera_info_of_another_size_is_refused():
    masks, depth, info = scene()
    info.width *= 2
    with pytest.raises(LiftError, match='camera_info is of 240x90'):
        lift(masks, depth, info, RULES)


@pytest.mark.parametrize('changes', [{'encoding': 'mono8'}, {'data': b'short'}])
def test_depth_images_that_cannot_be_read_are_refused(changes):
    with pytest.raises(ImageError):
        lift(*scene(**changes), RULES)


def test_nobody_is_an_answer_too():
    masks, depth, info = scene()
    masks.instances = []
    answer = lift(masks, depth, info, RULES)
    assert answer.header == HEADER and not answer.instances and not answer.without_depth


def test_markers_stand_for_the_instances_and_delete_those_before():
    answer = lift(*scene(), RULES)
    answer.instances[0].track_id = 2**32 - 1
    array = markers(answer)
    array = deserialize_message(serialize_message(array), type(array))
    first, *rest = array.markers
    assert first.action == Marker.DELETEALL
    boxes, texts = ([m for m in rest if m.type == kind] for kind in (Marker.CUBE, Marker.TEXT_VIEW_FACING))
    assert len(boxes) == len(texts) == len(answer.instances) == len(rest) / 2
    assert len({(m.ns, m.id) for m in rest}) == len(rest) and all(m.id >= 0 for m in rest)
    for instance, box, text in zip(answer.instances, boxes, texts, strict=True):
        assert box.header == text.header == HEADER and box.action == text.action == Marker.ADD
        assert box.pose.position == instance.position
        assert box.scale.x == instance.extent.x and box.scale.z >= max(instance.extent.z, 0.01)
        assert text.text == f'{instance.class_name} #{instance.track_id} {instance.position.z:.2f} m'
        assert text.pose.position.y < instance.position.y - instance.extent.y / 2, 'above: y points down'
