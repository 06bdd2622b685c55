"""Instances as the standard messages of vision_msgs, for tools that read those, if that package is installed.

A detection has no mask: its id is the track id of the InstanceMask of the same stamp. Its class_id is a number as
text; LabelInfo has the names.
"""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header

from tar_vis_core.instances import FrameResult, Instance, TrackStatus
from tar_vis_ros.conversions.label_images import class_ids

try:
    from vision_msgs.msg import (
        BoundingBox2D,
        Detection2D,
        Detection2DArray,
        LabelInfo,
        ObjectHypothesis,
        ObjectHypothesisWithPose,
        VisionClass,
    )
    available = True
except ImportError:
    available = False

LABELS_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)   # reliable, and late listeners get it


def encode_detections(result: FrameResult, header: Header) -> Detection2DArray:
    """Return the visible instances of a frame, in its order, with the image's header; LOST ones are not detections."""
    return Detection2DArray(header=header, detections=[
        _encode_detection(instance, header) for instance in result.instances if instance.status != TrackStatus.LOST])


def _encode_detection(instance: Instance, header: Header) -> Detection2D:
    x, y, width, height = instance.box
    box = BoundingBox2D(size_x=float(width), size_y=float(height))
    # Pixels are squares whose upper left corner has whole coordinates, as in vision_msgs/create_aabb.hpp.
    box.center.position.x, box.center.position.y = x + width / 2, y + height / 2
    hypothesis = ObjectHypothesis(class_id=str(instance.class_id), score=float(instance.score))
    return Detection2D(header=header, id=str(instance.track_id), bbox=box,
                       results=[ObjectHypothesisWithPose(hypothesis=hypothesis)])


def label_info(class_names: Sequence[str], score_threshold: float, header: Header) -> LabelInfo:
    """Return the names of ``class_id`` of InstanceMask, to be published once with LABELS_QOS."""
    return LabelInfo(header=header, threshold=float(score_threshold), class_map=[
        VisionClass(class_id=number, class_name=name) for number, name in class_ids(class_names).items()])
