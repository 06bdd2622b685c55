"""Measure how well one track follows a labelled object: the mean mask IoU over the frames that show it.

The measure joins masks and identities and does not count false positives. So it also holds on videos in which not every
object is labelled. Three ways to choose the track:

    track   by the truth, among all tracks, whatever they are called: the mean IoU of the one that follows it best
    named   the same among the tracks that carry the object's class
    found   without the truth: of the tracks of that class the one with the greatest total score. If further
            objects of the class are visible but not labelled, this may be one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.evaluation.identity_measures import MATCH, overlaps
from tar_vis_core.evaluation.tubes import TubePrediction, check_tubes


@dataclass(frozen=True)
class TrackIoU:
    """One labelled object. Means 0..1 are over the frames that show it; a frame without an answer counts 0."""

    video: str
    category: str
    frames: int            # that show the object
    track: float
    named: float
    found: float
    frame: float           # of the best mask of each frame, whatever its track: what masks are worth without identities
    identities: int        # different tracks that are the best of a frame (IoU at least one half)


def track_ious(records: Sequence[VideoRecord], predictions: Sequence[TubePrediction]) -> list[TrackIoU]:
    """Compare every labelled object that is no crowd with the tubes of its video.

    Raise ValueError for a prediction that does not fit its video.
    """
    check_tubes(predictions, records)
    results = []
    for record in records:
        objects = [track for track in record.tracks if not track.crowd]
        tubes = [tube for tube in predictions if tube.video_id == record.id]
        ious, seen, shown = overlaps([t.rles for t in objects], [t.rles for t in tubes], len(record.paths))
        scores = np.array([tube.score for tube in tubes]) * shown.sum(0)
        for number, track in enumerate(objects):
            rows = ious[seen[:, number], number]                     # (frames that show it, tubes)
            mean = rows.sum(0) / max(len(rows), 1)
            same = np.array([tube.category == track.category for tube in tubes], bool)
            best = rows.max(1, initial=0)
            results.append(TrackIoU(
                record.name, track.category, len(rows), float(mean.max(initial=0)), float(mean[same].max(initial=0)),
                float(mean[same][scores[same].argmax()]) if same.any() else 0.0,
                float(best.sum() / max(len(rows), 1)), len(set(rows[best >= MATCH].argmax(1))) if len(tubes) else 0))
    return results


def as_table(results: Sequence[TrackIoU]) -> str:
    """Return a text table in percent: one line for each object, and the mean."""
    lines = [f'{"video":<20}{"category":<14}{"frames":>7}{"track":>8}{"named":>8}{"found":>8}{"frame":>8}{"ids":>5}']
    lines += [f'{r.video:<20}{r.category:<14}{r.frames:>7}' + _cells(_means(r)) + f'{r.identities:>5}' for r in results]
    if results:
        lines.append(f'{"mean":<34}{"":>7}' + _cells(np.mean([_means(r) for r in results], axis=0)))
    return '\n'.join(lines)


def _means(result: TrackIoU) -> tuple[float, ...]:
    return result.track, result.named, result.found, result.frame


def _cells(values: Sequence[float]) -> str:
    return ''.join(f'{100 * value:>8.1f}' for value in values)
