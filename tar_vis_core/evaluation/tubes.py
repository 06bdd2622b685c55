"""Tubes: the predicted masks of one object of a video, one or none in every frame, and how tubes overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.instances import FrameResult, TrackStatus

Rles = Sequence[dict | None]   # pycocotools' compressed run lengths, one a frame, None if nothing is seen


@dataclass(frozen=True)
class TubePrediction:
    """One predicted object of a video."""

    video_id: int
    category: str      # as the data set names it
    score: float
    rles: Rles


class TrackTubes:
    """Gathers the online tracks of one video, frame by frame, into tubes. LOST instances are not seen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], list[tuple[int, str, float, dict]]] = {}

    def add(self, frame: int, result: FrameResult) -> None:
        """Add the objects that were found in a frame."""
        for instance in result.instances:
            if instance.status != TrackStatus.LOST:
                mask = np.asfortranarray(instance.mask(result.height, result.width), np.uint8)
                self._seen.setdefault((result.track_epoch, instance.track_id), []).append(
                    (frame, instance.class_name, instance.score, coco_mask.encode(mask)))

    def tubes(self, frames: int) -> Iterator[tuple[str, float, list[dict | None]]]:
        """Yield class name (that of the greatest total score), mean score and run lengths of each track."""
        for sightings in self._seen.values():
            votes: dict[str, float] = {}
            rles: list[dict | None] = [None] * frames
            for t, name, score, rle in sightings:
                votes[name] = votes.get(name, 0) + score
                rles[t] = rle
            yield max(votes, key=votes.get), sum(votes.values()) / len(sightings), rles


def check_tubes(predictions: Sequence[TubePrediction], records: Sequence[VideoRecord]) -> None:
    """Raise ValueError that names a prediction without its video, with masks that do not fit it, or without a score."""
    videos = {record.id: record for record in records}
    for number, tube in enumerate(predictions):
        record = videos.get(tube.video_id)
        if record is None:
            raise ValueError(f'prediction {number} is of video {tube.video_id!r}, which is not in the data')
        if not math.isfinite(tube.score):
            raise ValueError(f'prediction {number} has the score {tube.score}; expected a finite number')
        if len(tube.rles) != len(record.paths):
            raise ValueError(f'prediction {number} has {len(tube.rles)} frames, its video {record.id} has '
                             f'{len(record.paths)}')
        size = [record.height, record.width]
        wrong = next((r['size'] for r in tube.rles if r is not None and list(r['size']) != size), None)
        if wrong is not None:
            raise ValueError(f'prediction {number} has a mask of size {list(wrong)}, its video {record.id} has {size}')


def by_video_and_category(predictions: Sequence[TubePrediction]) -> dict[tuple[int, str], list[TubePrediction]]:
    """Return the predictions of each (video id, category), in their order."""
    groups: dict[tuple[int, str], list[TubePrediction]] = {}
    for tube in predictions:
        groups.setdefault((tube.video_id, tube.category), []).append(tube)
    return groups


def is_evaluated(record: VideoRecord, category: str) -> bool:
    """Return whether the video is labelled for that category: one annotated for persons is not labelled for others."""
    return record.annotated == 'all' or category == record.annotated


def frame_areas(tubes: Sequence[Rles], frames: int) -> np.ndarray:
    """Return mask areas ``(N, frames)`` in pixels, float64, 0 if there is no mask."""
    areas = np.zeros((len(tubes), frames))
    for row, rles in zip(areas, tubes, strict=True):
        seen = [t for t, rle in enumerate(rles) if rle is not None]
        for start in range(0, len(seen), 255):   # pycocotools 2.0.11 counts a list's items in 8 bits
            few = seen[start:start + 255]
            row[few] = coco_mask.area([rles[t] for t in few])
    return areas


def frame_intersections(a: Sequence[Rles], b: Sequence[Rles], area_a: np.ndarray) -> np.ndarray:
    """Return the common pixels ``(frames, A, B)`` of every pair, float64 whole numbers; ``area_a (A, frames)``."""
    common = np.zeros((area_a.shape[1], len(a), len(b)))
    for t, pairs in enumerate(common):
        rows = [i for i, rles in enumerate(a) if rles[t] is not None]
        columns = [j for j, rles in enumerate(b) if rles[t] is not None]
        if rows and columns:
            # with a crowd pycocotools divides by the first mask's area alone, so the count can be had back exactly
            share = coco_mask.iou([a[i][t] for i in rows], [b[j][t] for j in columns], [1] * len(columns))
            pairs[np.ix_(rows, columns)] = np.rint(share * area_a[rows, t, None])
    return common
