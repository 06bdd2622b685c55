"""Labelled videos without pictures, and predictions made from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from tar_vis_core.data.ytvis import Track, VideoRecord
from tar_vis_core.evaluation.tubes import TubePrediction

SIZE = 40, 60


def rle(mask: np.ndarray | None) -> dict | None:
    return None if mask is None else coco_mask.encode(np.asfortranarray(mask, np.uint8))


def square(x: int, y: int = 5, side: int = 10, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y:y + side, x:x + side] = True
    return mask


def tube(*places: int | None, y: int = 5, side: int = 10) -> list[dict | None]:
    """A square that is at column ``places[t]`` in frame t, None where it is not seen."""
    return [None if x is None else rle(square(x, y, side)) for x in places]


def video(number: int, *tracks: tuple[str, list[dict | None]], size: tuple[int, int] = SIZE, exhaustive: bool = True,
          annotated: str = 'all', frames: int = 0) -> VideoRecord:
    frames = frames or len(tracks[0][1])
    return VideoRecord(number, str(number), *size, [Path(f'{t}.jpg') for t in range(frames)], exhaustive,
                       [Track(i, name, rles) for i, (name, rles) in enumerate(tracks)], annotated)


def perfect(records: list[VideoRecord], score: float = 0.9) -> list[TubePrediction]:
    return [TubePrediction(r.id, t.category, score, t.rles) for r in records for t in r.tracks]
