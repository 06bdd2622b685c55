"""The position of an instance from the depth pixels inside its mask: plain geometry on arrays, no ROS.

Two things spoil depth inside a mask: holes, where the sensor saw nothing, and pixels of the background, where the mask
is too wide or the sensor's edges differ from the image's. So the distance is the median over the mask's core, without
its border. Then every pixel of the mask counts that lies near that distance. The core's own spread (median absolute
deviation) decides what is near.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

NORMAL = 1.4826        # of a normal distribution, standard deviation over median absolute deviation
LEAST_TOLERANCE_M = 0.05    # surfaces without spread, as rounded depth makes them, still have a thickness
SAMPLE = 2039          # points that statistics look at; a prime, so that even steps through a box meet all its columns
LIMITS = {np.dtype(np.uint16): (1.0, 65535.0),
          np.dtype(np.float32): (float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max))}


@dataclass(frozen=True)
class Pinhole:
    """The camera of CameraInfo's K (REP-104), in pixels: u = fx x / z + cx, v = fy y / z + cy."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True)
class Rules:
    """Which depth pixels of a mask count."""

    border_px: int         # width of the mask's border that the distance is not taken from
    rejection: float       # standard deviations from the median distance beyond which a pixel is background
    min_points: int        # fewer pixels than this are no evidence


@dataclass(frozen=True)
class Surface:
    """The visible surface of an instance; metres, optical frame (REP-103: x right, y down, z forward)."""

    position: np.ndarray   # (3,) median of the points, each axis by itself
    extent: np.ndarray     # (3,) from the 1st to the 99th percentile of the points
    points: int            # depth pixels that count
    share: float           # of the mask's pixels, 0..1


def locate(mask: np.ndarray, box: tuple[int, int, int, int], depth: np.ndarray, unit_m: float, camera: Pinhole,
           rules: Rules) -> Surface | None:
    """Return the surface of one instance, None if fewer than ``min_points`` depth pixels support it.

    ``mask`` is boolean ``(box height, box width)``; ``box`` (x, y, width, height) lies inside ``depth`` ``(H, W)``,
    uint16 or float32 in units of ``unit_m`` metres. 0, negative and not finite depths are holes (REP-118).
    """
    x, y, width, height = box
    inside, z = mask.view(np.uint8), np.ascontiguousarray(depth[y:y + height, x:x + width])
    low, high = _near(inside, z, unit_m, rules)
    found = _indices(inside & cv2.inRange(z, low, high))
    if found.size < rules.min_points:
        return None
    rows, columns = np.divmod(_thin(found), width)
    forward = z[rows, columns] * np.float64(unit_m)
    points = np.stack([(columns + (x - camera.cx)) * forward / camera.fx,
                       (rows + (y - camera.cy)) * forward / camera.fy, forward])
    points.sort(axis=1)
    last = points.shape[1] - 1
    return Surface(points[:, last // 2], points[:, last - last // 100] - points[:, last // 100], int(found.size),
                   found.size / np.count_nonzero(mask))


def _near(inside: np.ndarray, z: np.ndarray, unit_m: float, rules: Rules) -> tuple[float, float]:
    """Return the interval of depths around the distance of the mask's core, in units of ``z``; empty without depth."""
    least, most = LIMITS[z.dtype]
    seen = inside & cv2.inRange(z, least, most)      # not so with NaN
    kernel = np.ones((2 * rules.border_px + 1,) * 2, np.uint8)
    core = seen & cv2.erode(inside, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    for candidates in (core, seen):     # a thin instance is all border
        found = _indices(candidates)
        if found.size >= rules.min_points:
            values = z.reshape(-1)[_thin(found)].astype(np.float64)
            middle = np.median(values)
            spread = NORMAL * np.median(np.abs(values - middle))
            tolerance = max(rules.rejection * spread, LEAST_TOLERANCE_M / unit_m)
            return max(middle - tolerance, least), min(middle + tolerance, most)
    return 1.0, 0.0


def _indices(ones: np.ndarray) -> np.ndarray:
    """Return where an array of 0 and 1 is 1, row-major."""
    return np.flatnonzero(ones.view(bool))


def _thin(indices: np.ndarray) -> np.ndarray:
    """Return at most SAMPLE of the indices, evenly spaced."""
    if indices.size <= SAMPLE:
        return indices
    return indices[np.arange(SAMPLE) * indices.size // SAMPLE]
