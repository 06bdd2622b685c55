"""A robot's depth camera in a made-up world, with the masks that a perfect segmenter would give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from std_msgs.msg import Header

from tar_vis_core.instances import TrackStatus, encode_runs
from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.depth.lifting import DEPTHS
from tar_vis_ros.msg import InstanceMask, InstanceMaskArray

HEIGHT, WIDTH, FOCAL = 240, 320, 260.0
K = [FOCAL, 0.0, (WIDTH - 1) / 2, 0.0, FOCAL, (HEIGHT - 1) / 2, 0.0, 0.0, 1.0]
WALL_M = 9.0
FRAME = 'camera_optical'


def mask_message(mask: np.ndarray, track_id: int, class_name: str = 'person',
                 status: TrackStatus = TrackStatus.TRACKED) -> InstanceMask:
    """The message of a mask ``(H, W)`` that has a pixel at least."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y, x = int(rows[0]), int(columns[0])
    crop = mask[y:rows[-1] + 1, x:columns[-1] + 1] & (status != TrackStatus.LOST)
    return InstanceMask(
        track_id=track_id, status=int(status), age=1, class_name=class_name, score=0.9, area=int(crop.sum()),
        roi=RegionOfInterest(x_offset=x, y_offset=y, width=crop.shape[1], height=crop.shape[0]),
        runs=encode_runs(crop).tolist())


@dataclass
class Thing:
    """An upright ellipse that faces the camera; metres, in the world (x, y on the floor)."""

    track_id: int
    x: float
    y: float
    class_name: str = 'person'
    width: float = 0.5
    height: float = 1.7


@dataclass
class Robot:
    """A differential drive whose camera looks ahead from 1 m above the floor."""

    x: float = 0.0
    y: float = 0.0
    heading: float = 0.0    # radians, counter-clockwise

    def drive(self, speed: float, turn: float, seconds: float) -> None:
        """One step of metres and radians per second."""
        self.heading += turn * seconds
        self.x += speed * np.cos(self.heading) * seconds
        self.y += speed * np.sin(self.heading) * seconds

    def sees(self, thing: Thing) -> tuple[float, float]:
        """Distance, metres, and bearing, radians and positive to the left."""
        dx, dy = thing.x - self.x, thing.y - self.y
        bearing = np.arctan2(dy, dx) - self.heading
        return float(np.hypot(dx, dy)), float((bearing + np.pi) % (2 * np.pi) - np.pi)


def render(robot: Robot, things: list[Thing], random: np.random.Generator) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Depth in metres with noise of 1 % and a tenth of holes, and a mask for each thing in view, by track id.

    Masks are two pixels too wide, as those of real segmenters are.
    """
    depth = np.full((HEIGHT, WIDTH), WALL_M)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    masks: dict[int, np.ndarray] = {}
    for thing in sorted(things, key=lambda thing: -robot.sees(thing)[0]):     # the nearest is drawn last
        distance, bearing = robot.sees(thing)
        x, z = -distance * np.sin(bearing), distance * np.cos(bearing)
        if z < 0.2:
            continue
        across = (u - K[2] - FOCAL * x / z) * z / FOCAL / (thing.width / 2)
        down = (v - K[5] - FOCAL * (1 - thing.height / 2) / z) * z / FOCAL / (thing.height / 2)
        wide = 2 * z / FOCAL     # two pixels, metres
        depth[across ** 2 + down ** 2 < 1] = z
        mask = (across / (1 + 2 * wide / thing.width)) ** 2 + (down / (1 + 2 * wide / thing.height)) ** 2 < 1
        for hidden in masks.values():
            hidden &= ~mask
        masks[thing.track_id] = mask
    depth *= random.normal(1, 0.01, depth.shape)
    depth[random.random(depth.shape) < 0.1] = 0
    return depth, {track_id: mask for track_id, mask in masks.items() if mask.any()}


def messages(stamp: Time, robot: Robot, things: list[Thing],
             random: np.random.Generator) -> tuple[InstanceMaskArray, Image, CameraInfo]:
    """What the camera and a perfect segmenter publish of one moment."""
    header = Header(stamp=stamp, frame_id=FRAME)
    metres, masks = render(robot, things, random)
    classes = {thing.track_id: thing.class_name for thing in things}
    instances = [mask_message(mask, track_id, classes[track_id]) for track_id, mask in masks.items()]
    return (InstanceMaskArray(header=header, height=HEIGHT, width=WIDTH, instances=instances),
            array_to_image(np.round(metres * 1000).astype(np.uint16), '16UC1', header, DEPTHS),
            CameraInfo(header=header, height=HEIGHT, width=WIDTH, k=K))
