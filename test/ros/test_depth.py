"""An instance is placed where it is, whatever holes its depth has and however badly its mask's border fits."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from tar_vis_ros.depth.geometry import Pinhole, Rules, locate

HEIGHT, WIDTH = 240, 320
CAMERA = Pinhole(fx=300.0, fy=280.0, cx=155.5, cy=121.0)
RULES = Rules(border_px=3, rejection=3.0, min_points=30)


def boxed(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The tight crop of a mask and its box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y, x = int(rows[0]), int(columns[0])
    crop = mask[y:rows[-1] + 1, x:columns[-1] + 1]
    return np.ascontiguousarray(crop), (x, y, crop.shape[1], crop.shape[0])


def located(mask: np.ndarray, metres: np.ndarray, rules: Rules = RULES, encoding: type = np.float32):
    """Where the instance of ``mask`` is in a scene of depths in metres."""
    if encoding is np.uint16:
        with np.errstate(invalid='ignore'):
            stored = np.where(np.isfinite(metres), np.round(metres * 1000), 0).astype(np.uint16)
        return locate(*boxed(mask), stored, 0.001, CAMERA, rules)
    return locate(*boxed(mask), metres.astype(np.float32), 1.0, CAMERA, rules)


def plane(x: float, y: float, z: float, width: float, height: float) -> np.ndarray:
    """Which pixels show an upright rectangle; its centre and size are in metres."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    return (np.abs((u - CAMERA.cx) * z / CAMERA.fx - x) <= width / 2) \
        & (np.abs((v - CAMERA.cy) * z / CAMERA.fy - y) <= height / 2)


def shifted(mask: np.ndarray, by: tuple[int, int]) -> np.ndarray:
    moved = np.zeros_like(mask)
    dy, dx = by
    moved[max(dy, 0):HEIGHT + min(dy, 0), max(dx, 0):WIDTH + min(dx, 0)] = \
        mask[max(-dy, 0):HEIGHT + min(-dy, 0), max(-dx, 0):WIDTH + min(-dx, 0)]
    return moved


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)).astype(bool)


@pytest.mark.parametrize('encoding', [np.uint16, np.float32])
@pytest.mark.parametrize('seed', range(25))
def test_position_and_extent_in_spite_of_holes_noise_and_misfit(seed, encoding):
    """A rectangle before a wall: noise of 1 %, up to half of it holes, a mask too wide and off by some pixels."""
    random = np.random.default_rng(seed)
    z = random.uniform(0.8, 3.5)
    size = random.uniform(0.25, 0.6, 2) * z * (WIDTH / CAMERA.fx, HEIGHT / CAMERA.fy)
    x, y = random.uniform(-0.15, 0.15, 2) * z
    wall = z + random.uniform(0.6, 3.0)
    thing = plane(x, y, z, *size)
    metres = np.where(thing, z, wall) * random.normal(1, 0.01, (HEIGHT, WIDTH))
    metres[random.random((HEIGHT, WIDTH)) < random.uniform(0, 0.5)] = random.choice([0, np.nan, np.inf])
    off = tuple(random.integers(-3, 4, 2))
    mask = shifted(grown(thing, random.integers(0, 5)), off)

    surface = located(mask, metres, encoding=encoding)
    pixel = z / min(CAMERA.fx, CAMERA.fy)
    assert abs(surface.position[2] - z) < 0.002 * z
    assert np.abs(surface.position[:2] - (x, y)).max() < 4 * pixel + 0.01 * size.max()
    assert np.abs(surface.extent[:2] - size).max() < 5 * pixel + 0.03 * size.max()
    assert surface.extent[2] < 0.06 * z, 'the wall is not part of it'
    counted = np.isfinite(metres) & (metres > 0) & thing & mask
    assert surface.points == pytest.approx(counted.sum(), rel=0.02)
    assert surface.share == pytest.approx(counted.sum() / mask.sum(), rel=0.02)


def test_a_narrow_thing_with_a_wide_mask_is_not_taken_for_the_wall():
    thing = plane(0, 0, 1.0, 0.04, 0.4)      # 12 pixels wide: most of its mask is wall
    mask, metres = grown(thing, 7), np.where(thing, 1.0, 4.0)
    assert mask.sum() > 2 * thing.sum()
    rules = replace(RULES, border_px=7)
    assert located(mask, metres, rules).position[2] == pytest.approx(1.0)
    assert located(mask, metres, replace(RULES, border_px=0)).position[2] == pytest.approx(4.0), 'why there is a border'


def test_a_thing_that_is_all_border_is_placed_all_the_same():
    thing = plane(0.3, 0, 2.0, 0.02, 1.0)
    assert boxed(thing)[1][2] <= 2 * RULES.border_px
    assert located(thing, np.where(thing, 2.0, 5.0)).position == pytest.approx([0.3, 0, 2.0], abs=0.01)


def test_a_slanted_thing_keeps_its_depth():
    """A plane that recedes by 1 m over its width is no background to itself."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    slope = np.tan(np.radians(60))                          # z = 2 + slope * x along the ray of u
    z = 2 / (1 - slope * (u - CAMERA.cx) / CAMERA.fx)
    mask = (np.abs(v - CAMERA.cy) < 60) & (u > 110) & (u < 190)
    surface = located(mask, z)
    assert surface.points == mask.sum()
    assert surface.extent[2] == pytest.approx(z[mask].max() - z[mask].min(), rel=0.05)
    assert surface.extent[0] == pytest.approx(surface.extent[2] / slope, rel=0.01)


@pytest.mark.parametrize('hole', [0, np.nan, np.inf, -np.inf, -1.0])
def test_what_has_no_depth_is_not_placed(hole):
    thing = plane(0, 0, 1.5, 0.5, 0.5)
    metres = np.full((HEIGHT, WIDTH), 1.5)
    metres[thing] = hole
    assert located(thing, metres) is None
    seen = np.flatnonzero(thing)[::97]
    metres.ravel()[seen] = 1.5
    assert located(thing, metres, replace(RULES, min_points=len(seen) + 1)) is None
    assert located(thing, metres, replace(RULES, min_points=len(seen))).points == len(seen)


def test_the_same_in_millimetres_and_metres():
    random = np.random.default_rng(3)
    thing = plane(0.2, -0.1, 1.234, 0.6, 0.4)
    metres = np.where(thing, 1.234, 3.0) + random.normal(0, 0.01, (HEIGHT, WIDTH))
    one, other = located(thing, metres, encoding=np.uint16), located(thing, metres)
    np.testing.assert_allclose(one.position, other.position, atol=0.001)
    np.testing.assert_allclose(one.extent, other.extent, atol=0.002)


def test_things_at_the_edge_of_the_picture():
    thing = np.zeros((HEIGHT, WIDTH), bool)
    thing[-40:, -30:] = True
    surface = located(thing, np.full((HEIGHT, WIDTH), 2.0))
    assert surface.points == thing.sum()
    assert surface.position == pytest.approx(
        [(WIDTH - 15.5 - CAMERA.cx) * 2 / CAMERA.fx, (HEIGHT - 20.5 - CAMERA.cy) * 2 / CAMERA.fy, 2.0], abs=0.01)


@pytest.mark.parametrize(('width', 'height'), [(64, 1024), (300, 512), (640, 256), (1920, 1080), (333, 77)])
def test_a_sample_of_a_box_tells_its_width(width, height):
    """Points are taken at even steps: were they to meet few columns, the extent would be that of those."""
    mask, depth = np.ones((height, width), bool), np.ones((height, width), np.float32)
    surface = locate(mask, (0, 0, width, height), depth, 1.0, CAMERA, RULES)
    assert surface.extent[:2] == pytest.approx([0.98 * width / CAMERA.fx, 0.98 * height / CAMERA.fy], rel=0.03)
    assert surface.position[:2] == pytest.approx(
        [((width - 1) / 2 - CAMERA.cx) / CAMERA.fx, ((height - 1) / 2 - CAMERA.cy) / CAMERA.fy], abs=0.02)
