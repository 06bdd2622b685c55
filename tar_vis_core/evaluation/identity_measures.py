"""Identity measures: switches, IDF1 and HOTA of the same tubes that the average precision is computed from.

    switches   an object is matched with another tube than at its last match  (Bernardin and Stiefelhagen 2008)
    IDF1       2 IDTP / (labelled + predicted masks), one tube an object      (Ristani et al. 2016)
    HOTA       sqrt(DetA AssA), mean over the overlaps 0.05 to 0.95           (Luiten et al. 2021)

All count frames: a mask matches if its IoU with the labelled one reaches one half (HOTA: each overlap in turn).
Categories are kept apart and their counts added up. A tube below ``min_score`` does not take part. One half is the
score at which a softmax names one class for an object. In a video that is not exhaustive, a predicted mask that matches
nothing may be a real object, and counts nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.evaluation.tubes import (
    Rles,
    TubePrediction,
    by_video_and_category,
    check_tubes,
    frame_areas,
    frame_intersections,
    is_evaluated,
)
from tar_vis_core.runtime.assignment import linear_sum_assignment

OVERLAPS = np.linspace(0.05, 0.95, 19)
MATCH = 0.5
ROUNDING = 1e-9         # an overlap that is the limit itself passes


@dataclass(frozen=True)
class IdentityMeasures:
    """Figures are 0..1, NaN if nothing is labelled."""

    objects: int         # labelled ones
    masks: int           # labelled ones, over all frames
    predicted: int       # masks that took part
    switches: int
    idf1: float
    hota: float
    detection: float     # DetA
    association: float   # AssA

    def __str__(self) -> str:
        figures = ((self.hota, 'HOTA'), (self.detection, 'DetA'), (self.association, 'AssA'), (self.idf1, 'IDF1'))
        return (f'{self.objects} objects, {self.masks} masks; {self.predicted} masks predicted; '
                f'{self.switches} identity switches, '
                + ', '.join(f'{name} {"-" if math.isnan(v) else f"{100 * v:.1f}"}' for v, name in figures))


def identity_measures(records: Sequence[VideoRecord], predictions: Sequence[TubePrediction],
                      min_score: float = MATCH, categories: Sequence[str] | None = None) -> IdentityMeasures:
    """Return the identity measures of the tubes that score at least ``min_score``.

    ``categories`` are as in ``evaluate_tubes``. Raise ValueError for a prediction that does not fit its video.
    """
    check_tubes(predictions, records)
    answers = by_video_and_category(predictions)
    names = sorted({track.category for record in records for track in record.tracks})
    objects = masks = predicted = switches = found = 0
    hits, wanted, given, associated = np.zeros((4, len(OVERLAPS)))
    for record in records:
        for name in names if categories is None else [n for n in names if n in categories]:
            if not is_evaluated(record, name):
                continue
            truth = [t.rles for t in record.tracks if t.category == name and not t.crowd]
            tubes = [p.rles for p in answers.get((record.id, name), []) if p.score >= min_score]
            ious, seen, shown = overlaps(truth, tubes, len(record.paths))
            may_be_real = bool(truth) and not record.exhaustive
            counted = shown & (ious >= MATCH - ROUNDING).any(1) if may_be_real else shown
            objects += len(truth)
            masks += int(seen.sum())
            predicted += int(counted.sum())
            switches += identity_switches(ious)
            found += identity_true_positives(ious)
            matches = matched_frames(ious, seen.sum(0), shown.sum(0))
            shown_by = matches.sum(1) if may_be_real else shown.sum(0)[None]               # (overlaps or 1, P)
            union = np.maximum(seen.sum(0)[:, None] + shown_by[:, None] - matches, 1)
            hits += matches.sum((1, 2))
            associated += (matches * (matches / union)).sum((1, 2))
            wanted += seen.sum()
            given += shown_by.sum(1)
    if not masks:
        return IdentityMeasures(objects, masks, predicted, switches, *[math.nan] * 4)
    detection, association = hits / (wanted + given - hits), associated / np.maximum(hits, 1)
    return IdentityMeasures(objects, masks, predicted, switches, 2 * found / (masks + predicted),
                            float(np.sqrt(detection * association).mean()), float(detection.mean()),
                            float(association.mean()))


def overlaps(truth: Sequence[Rles], tubes: Sequence[Rles], frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mask IoU ``(frames, G, P)``, and if objects ``(frames, G)`` and tubes ``(frames, P)`` have a mask."""
    true_areas, areas = frame_areas(truth, frames), frame_areas(tubes, frames)
    common = frame_intersections(truth, tubes, true_areas)
    union = true_areas.T[:, :, None] + areas.T[:, None] - common
    return common / np.maximum(union, 1), true_areas.T > 0, areas.T > 0


def identity_switches(ious: np.ndarray) -> int:
    """Count the frames in which an object is matched with another tube than when it was last matched.

    An object keeps its last tube if that still fits. The others are matched for the greatest total overlap.
    """
    objects = np.arange(ious.shape[1])
    last = np.full(len(objects), -1)
    switches = 0
    for frame in ious:
        fits = frame >= MATCH - ROUNDING
        value = np.where(fits, frame, 0)
        kept = objects[last >= 0]
        value[kept, last[kept]] *= 1 + len(objects)      # more than all others can gain by taking it away
        rows, columns = linear_sum_assignment(-value)
        good = fits[rows, columns]
        rows, columns = rows[good], columns[good]
        switches += int(((last[rows] >= 0) & (last[rows] != columns)).sum())
        last[rows] = columns
    return switches


def identity_true_positives(ious: np.ndarray) -> int:
    """Return IDTP: frames that match if every object has one tube for the whole video, in the best assignment."""
    together = (ious >= MATCH - ROUNDING).sum(0)
    return int(together[linear_sum_assignment(-together)].sum())


def matched_frames(ious: np.ndarray, seen: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return in how many frames object and tube are matched at each overlap, float64 ``(overlaps, G, P)``.

    A frame's assignment favours the pairs that agree over the whole video; ``seen (G,)`` and ``shown (P,)`` are the
    frames with a mask.
    """
    matches = np.zeros((len(OVERLAPS), *ious.shape[1:]))
    # an overlap weighs less where the same masks overlap others, too
    rivals = ious.sum(1, keepdims=True) + ious.sum(2, keepdims=True) - ious
    together = np.divide(ious, rivals, out=np.zeros_like(ious), where=rivals > 0).sum(0)
    agreement = together / np.maximum(seen[:, None] + shown - together, 1e-9)
    for frame in ious:
        rows, columns = linear_sum_assignment(-agreement * frame)
        matches[:, rows, columns] += frame[rows, columns] >= OVERLAPS[:, None] - ROUNDING
    return matches
