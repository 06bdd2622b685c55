"""How well one track follows a labelled object: mean mask IoU over a video, the track chosen by the truth.

It says what masks and identities are worth together and charges no false positives, so it also holds on videos in
which not every object is labelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tar_vis_core.data.ytvis import Track, VideoRecord, load_ytvis

Follow = Callable[[Iterable[np.ndarray]], Iterable[Mapping[int, np.ndarray]]]


@dataclass(frozen=True)
class TrackIoU:
    """One labelled object. Means are over the frames that show it; a frame without an answer counts 0."""

    video: str
    category: str
    frames: int            # that show the object
    best_track: float      # IoU of the one track that follows it best
    best_frame: float      # IoU of the best mask of each frame, whatever its identity
    identities: int        # different tracks that are the best of a frame (IoU at least one half)


def score_tracks(follow: Follow, videos: str | Path | list[VideoRecord], progress: bool = True) -> list[TrackIoU]:
    """Follow every video and compare with its labelled objects.

    ``follow`` takes a video's frames, ``(h, w, 3)`` uint8 RGB in time order, and yields for each frame the masks
    ``(h, w)`` bool by track id. Raises ValueError where it yields another number of frames.
    """
    records = load_ytvis(videos) if isinstance(videos, (str, Path)) else videos
    results: list[TrackIoU] = []
    for record in tqdm(records, desc='following', unit='video', disable=not progress):
        overlaps: list[list[dict[int, float]]] = [[] for _ in record.tracks]
        count = 0
        for count, masks in enumerate(follow(record.frames()), 1):
            if count > len(record.paths):
                break
            for track, rows in zip(record.tracks, overlaps, strict=True):
                truth = track.mask(count - 1)
                if truth is not None and truth.any():
                    rows.append({identity: mask_iou(mask, truth) for identity, mask in masks.items()})
        if count != len(record.paths):
            raise ValueError(f'{record.name}: {count} answers for {len(record.paths)} frames')
        results += [_summary(record, track, rows) for track, rows in zip(record.tracks, overlaps, strict=True)]
    return results


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean masks; 0 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def _summary(record: VideoRecord, track: Track, rows: list[dict[int, float]]) -> TrackIoU:
    identities = {identity for row in rows for identity in row}
    total = max(len(rows), 1)
    best = [max(row, key=row.get) for row in rows if row and max(row.values()) >= 0.5]
    return TrackIoU(
        record.name, track.category, len(rows),
        best_track=max((sum(row.get(i, 0.0) for row in rows) / total for i in identities), default=0.0),
        best_frame=sum(max(row.values(), default=0.0) for row in rows) / total, identities=len(set(best)))


def as_table(results: list[TrackIoU]) -> str:
    """A text table in percent with the mean over the objects."""
    lines = [f'{"video":<20}{"category":<14}{"frames":>7}{"track":>8}{"frame":>8}{"ids":>5}']
    lines += [f'{r.video:<20}{r.category:<14}{r.frames:>7}{100 * r.best_track:>8.1f}{100 * r.best_frame:>8.1f}'
              f'{r.identities:>5}' for r in results]
    if results:
        track, frame = np.mean([(r.best_track, r.best_frame) for r in results], axis=0)
        lines.append(f'{"mean":<34}{"":>7}{100 * track:>8.1f}{100 * frame:>8.1f}')
    return '\n'.join(lines)
