"""Masks, a depth image and a camera_info of one stamp to instances in 3-D."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np
from geometry_msgs.msg import Point, Vector3
from sensor_msgs.msg import CameraInfo, Image

from tar_vis_core.errors import TarVisError
from tar_vis_core.instances import Instance, TrackStatus
from tar_vis_ros.conversions.images import Encoding, image_to_array
from tar_vis_ros.conversions.messages import decode_instances
from tar_vis_ros.depth.geometry import Pinhole, Rules, Surface, locate
from tar_vis_ros.msg import Instance3D, Instance3DArray, InstanceMaskArray

DEPTHS = {'16UC1': Encoding(1, np.uint16, None), '32FC1': Encoding(1, np.float32, None)}   # REP-118
SHORTEST, LONGEST = 0.02, 1000   # focal lengths in sides of the image: views of 178 and of 0.06 degrees
UNIT_M = {'16UC1': 0.001, '32FC1': 1.0}


class LiftError(TarVisError):
    """Messages of one stamp that do not fit together; the message is one line."""


def lift(masks: InstanceMaskArray, depth: Image, info: CameraInfo, rules: Rules) -> Instance3DArray:
    """Return the visible instances in 3-D, the nearest first. ``depth`` is registered to the image of the masks.

    Raise LiftError if sizes or frames differ or the camera is not calibrated, ImageError (a ValueError) if the
    depth image cannot be read, ValueError for a broken mask.
    """
    camera = _pinhole(masks, depth, info)
    pixels, unit_m = image_to_array(depth, DEPTHS), UNIT_M[depth.encoding]
    placed, without = [], array('I')
    for instance in _visible(masks):
        surface = locate(instance.crop(), instance.box, pixels, unit_m, camera, rules)
        if surface is None:
            without.append(instance.track_id)
        else:
            placed.append((float(np.linalg.norm(surface.position)), _message(instance, surface)))
    placed.sort(key=lambda pair: pair[0])
    return Instance3DArray(header=masks.header, frame_index=masks.frame_index, track_epoch=masks.track_epoch,
                           instances=[message for _, message in placed], without_depth=without)


def _visible(masks: InstanceMaskArray) -> Iterator[Instance]:
    return (instance for instance in decode_instances(masks) if instance.status != TrackStatus.LOST and instance.area)


def _message(instance: Instance, surface: Surface) -> Instance3D:
    x, y, z = map(float, surface.position)
    width, height, depth = map(float, surface.extent)
    return Instance3D(
        track_id=instance.track_id, class_id=instance.class_id, class_name=instance.class_name, score=instance.score,
        position=Point(x=x, y=y, z=z), extent=Vector3(x=width, y=height, z=depth), point_count=surface.points,
        mask_share=surface.share)


def _pinhole(masks: InstanceMaskArray, depth: Image, info: CameraInfo) -> Pinhole:
    """Return the camera of the three messages, once it is clear that they are of one."""
    for name, message in (('the depth image', depth), ('camera_info', info)):
        if (message.width, message.height) != (masks.width, masks.height):
            raise LiftError(f'{name} is of {message.width}x{message.height} pixels, the masks of '
                            f'{masks.width}x{masks.height}: expected depth registered to the image of the masks')
        if message.header.frame_id != masks.header.frame_id:
            raise LiftError(f"{name} is in frame '{message.header.frame_id}', the masks in "
                            f"'{masks.header.frame_id}': expected depth registered to the image of the masks")
    fx, _, cx, _, fy, cy = info.k[:6]
    sides = (fx, info.width), (fy, info.height)
    if not (np.isfinite([fx, fy, cx, cy]).all() and all(
            SHORTEST * side < focal < LONGEST * side for focal, side in sides)):
        raise LiftError(f'camera_info has no calibration (focal lengths of {fx:g} and {fy:g} pixels for an image of '
                        f'{info.width}x{info.height}): calibrate the camera')
    return Pinhole(fx, fy, cx, cy)
