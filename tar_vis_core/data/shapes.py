"""Closed curves and textures for :mod:`tar_vis_core.data.synth`: four classes that only their outline tells apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from tar_vis_core.models.class_sets import CROWD

TILE = 128                      # side of a texture tile, pixels
POINTS = 64                     # corners of an outline


@dataclass(frozen=True)
class Shape:
    """One body: its class and the numbers that make it an individual."""

    label: int                  # index in CROWD
    traits: np.ndarray          # (6,) uniform in 0..1

    @staticmethod
    def draw(rng: np.random.Generator, label: int) -> Shape:
        """Return a random individual of a class."""
        return Shape(label, rng.random(6))

    def outline(self, phase: float) -> np.ndarray:
        """Return the closed curve about the origin, corners ``(n, 2)``, about 2 across (a worm 2.7).

        ``phase`` (radians) moves its parts.
        """
        return OUTLINES[CROWD[self.label]](self.traits, phase)


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _ribbon(x: np.ndarray, y: np.ndarray, half_width: np.ndarray) -> np.ndarray:
    """Return the outline of a band of varying width about the curve ``(x, y)``."""
    slope = np.gradient(y, x)
    normal = np.stack([-slope, np.ones_like(slope)], 1) / np.hypot(slope, 1)[:, None] * half_width[:, None]
    spine = np.stack([x, y], 1)
    return np.concatenate([spine + normal, (spine - normal)[::-1]])


def disc_outline(traits: np.ndarray, phase: float) -> np.ndarray:
    """Return the outline of a pebble: a circle with dents that travel round it."""
    angle = np.linspace(0, 2 * math.pi, POINTS, endpoint=False)
    radius = np.full(POINTS, 0.9)
    for order, size, place in zip((2, 3, 4), traits[:3], traits[3:], strict=True):
        radius += (0.03 + 0.07 * size) * np.cos(order * angle + 2 * math.pi * place + phase)
    return _polar(radius, angle)


def star_outline(traits: np.ndarray, phase: float) -> np.ndarray:
    """Return the outline of a star: five to seven pointed arms of uneven length that stretch in turn."""
    arms, depth = 5 + int(3 * traits[0]), 0.42 + 0.16 * traits[1]
    angle = np.linspace(0, 2 * math.pi, 2 * arms, endpoint=False)
    radius = np.where(np.arange(2 * arms) % 2, 1 - depth, 1.05)
    radius = radius * (1 + 0.14 * np.cos(2 * angle + 2 * math.pi * traits[2] + phase))
    return _polar(radius, angle + 0.2 * np.sin(angle + 2 * math.pi * traits[3] + phase))


def leaf_outline(traits: np.ndarray, phase: float) -> np.ndarray:
    """Return the outline of a leaf: a band pointed at both ends, broader on one side, that bends to and fro."""
    x = np.linspace(-1.15, 1.15, POINTS // 2)
    half_width = (0.38 + 0.12 * traits[0]) * (1 - (x / 1.15) ** 2) * (1 - 0.45 * traits[1] * x)
    bend = 0.35 * (2 * traits[2] - 1) + 0.3 * math.sin(2 * math.pi * traits[3] + phase)
    return _ribbon(x, bend * (x ** 2 - 0.4), half_width)


def worm_outline(traits: np.ndarray, phase: float) -> np.ndarray:
    """Return the outline of a worm: a long band with round ends along a travelling wave."""
    reach, thick = 1.35, 0.23 + 0.06 * traits[0]
    end = np.linspace(0, math.pi / 2, 8)
    trunk = np.linspace(-reach + thick, reach - thick, POINTS // 3)[1:-1]
    x = np.concatenate([-reach + thick * (1 - np.cos(end)), trunk, reach - thick * (1 - np.cos(end[::-1]))])
    half_width = thick * np.concatenate([np.sin(end), np.ones(POINTS // 3 - 2), np.sin(end[::-1])])
    wave = (0.22 + 0.18 * traits[1]) * np.sin((1.8 + 0.9 * traits[2]) * x + 2 * math.pi * traits[3] + phase)
    return _ribbon(x, wave, half_width)


OUTLINES = dict(zip(CROWD, (disc_outline, star_outline, leaf_outline, worm_outline), strict=True))


def smooth_noise(rng: np.random.Generator, feature: float) -> np.ndarray:
    """Return a ``(TILE, TILE)`` field of about 0..1 whose blobs are ``feature`` pixels wide."""
    cells = max(4, round(TILE / feature))
    return cv2.resize(rng.random((cells, cells), np.float32), (TILE, TILE), interpolation=cv2.INTER_CUBIC)


def draw_tile(rng: np.random.Generator, contrast: float = 1.0) -> np.ndarray:
    """Return a random texture ``(TILE, TILE, 3)`` uint8: mottles, spots or wavy stripes of two colours, with grain."""
    feature = rng.uniform(4, 12)
    field, kind = smooth_noise(rng, feature), rng.integers(3)
    if kind == 1:
        field = 1 / (1 + np.exp(-14 * (field - 0.6)))
    elif kind == 2:
        along = np.arange(TILE, dtype=np.float32)[:, None] / feature + 2.5 * smooth_noise(rng, 3 * feature)
        field = 0.5 + 0.5 * np.sin(2 * math.pi * along)
    base = rng.uniform(50, 205, 3)
    other = base + contrast * rng.uniform(25, 75) * rng.choice((-1, 1), 3)
    tile = base + field[..., None] * (other - base) + (20 * smooth_noise(rng, 2) - 10)[..., None]
    return np.clip(tile, 0, 255).astype(np.uint8)
