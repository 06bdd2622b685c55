"""Instances in 3-D as RViz markers: a box and a line of text each."""

from __future__ import annotations

from geometry_msgs.msg import Point, Pose, Vector3
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from tar_vis_core.media.overlay import track_colour
from tar_vis_ros.msg import Instance3D, Instance3DArray

TEXT_M = 0.12       # height of the letters
THINNEST_M = 0.01   # a flat box cannot be seen
IDS = 2**31         # ids of markers are signed


def markers(answer: Instance3DArray) -> MarkerArray:
    """Return the markers of one image. The first deletes those of the previous image."""
    drawn = [marker for instance in answer.instances for marker in (_box(instance), _text(instance))]
    for marker in drawn:
        marker.header = answer.header
    return MarkerArray(markers=[Marker(header=answer.header, action=Marker.DELETEALL), *drawn])


def _box(instance: Instance3D) -> Marker:
    size = instance.extent
    red, green, blue = track_colour(instance.track_id)
    return Marker(ns='box', id=instance.track_id % IDS, type=Marker.CUBE, pose=Pose(position=instance.position),
                  scale=Vector3(**{axis: max(getattr(size, axis), THINNEST_M) for axis in 'xyz'}),
                  color=ColorRGBA(r=red / 255, g=green / 255, b=blue / 255, a=0.4))


def _text(instance: Instance3D) -> Marker:
    at = instance.position
    above = Point(x=at.x, y=at.y - instance.extent.y / 2 - TEXT_M, z=at.z)   # y points down
    return Marker(ns='text', id=instance.track_id % IDS, type=Marker.TEXT_VIEW_FACING, pose=Pose(position=above),
                  scale=Vector3(z=TEXT_M), color=ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0),
                  text=f'{instance.class_name} #{instance.track_id} {at.z:.2f} m')
