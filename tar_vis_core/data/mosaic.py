"""Four pictures on one canvas: each takes a quarter or so, and its instances are about half as large as alone.

A small network on a small input misses small persons, and stills hold few labelled ones. A mosaic shows four times as
many instances for the same arithmetic (YOLOv4, Bochkovskiy et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tar_vis_core.data import transforms as tf
from tar_vis_core.data.transforms import Scene

CUT = 0.35, 0.65        # of the canvas: where the four meet


def random_mosaic(rng: np.random.Generator, scenes: Sequence[Scene], size: tuple[int, int]) -> Scene:
    """Return four scenes on a canvas ``size`` (height, width), each in a random view that fills its cell.

    If one of them labels persons only, so does the whole.
    """
    height, width = size
    y, x = round(height * rng.uniform(*CUT)), round(width * rng.uniform(*CUT))
    cells = ((0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width))
    parts = []
    for scene, (top, left, bottom, right) in zip(scenes, cells, strict=True):
        cell = bottom - top, right - left
        parts.append(tf.warp_scene(scene, tf.random_view(rng, scene, cell, fill=True), cell))
    counts = [len(part.masks) for part in parts]
    image = np.empty((height, width, 3), np.uint8)
    masks = np.zeros((sum(counts), height, width), bool)
    ignore, inside = np.zeros((2, height, width), bool)
    own_masks = np.split(masks, np.cumsum(counts)[:-1])       # views
    for part, own, (top, left, bottom, right) in zip(parts, own_masks, cells, strict=True):
        cell = np.s_[top:bottom, left:right]
        image[cell], ignore[cell], inside[cell] = part.image, part.ignore, part.inside
        own[:, top:bottom, left:right] = part.masks
    return Scene(image, masks, *(np.concatenate([getattr(part, name) for part in parts])
                                 for name in ('labels', 'trusted')),
                 ignore, inside, all(part.exhaustive for part in parts), np.concatenate([p.boxed for p in parts]))
