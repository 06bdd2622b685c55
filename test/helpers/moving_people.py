"""Synthetic people that walk through a 640x480 picture: exact detections for the identity tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tar_vis_core.detection import Detection
from tar_vis_core.instances import encode_runs

HEIGHT, WIDTH = 480, 640
ROWS, COLUMNS = 64, 86     # the stride-4 grid of a 256x341 input
CLASSES = 3


@dataclass
class Person:
    """An upright ellipse; ``centre`` in source pixels. Later persons of a scene stand in front."""

    centre: tuple[float, float]
    size: tuple[float, float] = (80, 240)
    score: float = 0.8
    label: int = 0
    slot: int = 0
    look: int = 0              # persons of equal look have equal colours and embedding


def _ellipse(person: Person, height: int, width: int) -> np.ndarray:
    x = (np.arange(width) + 0.5) * WIDTH / width
    y = (np.arange(height)[:, None] + 0.5) * HEIGHT / height
    (cx, cy), (w, h) = person.centre, person.size
    return ((x - cx) / (w / 2)) ** 2 + ((y - cy) / (h / 2)) ** 2 <= 1


def _look(person: Person, dims: int) -> np.ndarray:
    vector = np.abs(np.random.default_rng(person.look).normal(size=dims)).astype(np.float32)
    return vector / np.linalg.norm(vector)


def scene(*people: Person, grid: tuple[int, int] = (ROWS, COLUMNS), min_visible: float = 0.25) -> list[Detection]:
    """What a perfect segmenter sees; who is hidden more than ``1 - min_visible`` is not seen."""
    detections = []
    for i, person in enumerate(people):
        full, cells = _ellipse(person, HEIGHT, WIDTH), _ellipse(person, *grid)
        whole = np.pi / 4 * person.size[0] * person.size[1]
        for other in people[i + 1:]:
            full &= ~_ellipse(other, HEIGHT, WIDTH)
            cells &= ~_ellipse(other, *grid)
        if full.sum() < min_visible * whole or not cells.any():
            continue
        rows, columns = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1))
        scores = np.zeros(CLASSES, np.float32)
        scores[person.label] = person.score
        crop = full[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        detections.append(Detection(person.slot, scores, cells, _look(person, 32), _look(person, 128), box,
                                    int(full.sum()), encode_runs(crop)))
    return detections
