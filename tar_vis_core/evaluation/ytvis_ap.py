"""The YouTube-VIS metric (Yang et al., ICCV 2019): COCO's average precision over tubes instead of masks.

Two tubes overlap by the sum over frames of their common pixels, divided by the sum over frames of their united ones;
a frame in which only one of them is seen adds to the union. All else is COCO's protocol, with three differences:
* the area of a tube is the mean over the frames that show it, and the bounds are 128^2 and 256^2;
* recall is at 1 and at 10 predictions per video and category;
* there are no crowd regions; an object marked ``crowd`` is ignored, neither found nor missed.
Beside the original: in a video that is not exhaustive a prediction of a labelled category that matches nothing may be
a real object and is ignored; a video annotated for persons counts for no other category.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.evaluation.tubes import (
    TubePrediction,
    by_video_and_category,
    check_tubes,
    frame_areas,
    frame_intersections,
    is_evaluated,
)

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREA_RANGES = np.array([[0, 1e10], [0, 128 ** 2], [128 ** 2, 256 ** 2], [256 ** 2, 1e10]])   # all, small, medium, large
MAX_DETECTIONS = 100
TITLES = {'ap': 'AP', 'ap50': 'AP50', 'ap75': 'AP75', 'ar1': 'AR1', 'ar10': 'AR10', 'small': 'small',
          'medium': 'medium', 'large': 'large'}


@dataclass(frozen=True)
class TubeAP:
    """Figures of one category, each 0..1, NaN if no object could count."""

    name: str
    videos: int          # in which the category counts
    tracks: int          # labelled objects
    ap: float            # mean over IoU 0.50 to 0.95
    ap50: float
    ap75: float
    ar1: float           # recall with one prediction per video, mean over IoU
    ar10: float
    small: float         # AP of objects by mean area
    medium: float
    large: float


@dataclass(frozen=True)
class VideoResult:
    """The result of :func:`evaluate_tubes`; ``str`` is a text table in percent."""

    categories: list[TubeAP]     # those with at least one labelled object

    def __getitem__(self, name: str) -> TubeAP:
        for category in self.categories:
            if category.name == name:
                return category
        raise KeyError(f'{name!r} was not evaluated, only {", ".join(c.name for c in self.categories)}')

    @property
    def mean(self) -> TubeAP:
        """Return the mean of each figure over the categories that have it: the metric's headline."""
        def mean(title: str) -> float:
            values = [v for c in self.categories if not math.isnan(v := getattr(c, title))]
            return float(np.mean(values)) if values else math.nan

        return TubeAP('mean', max((c.videos for c in self.categories), default=0),
                      sum(c.tracks for c in self.categories), *[mean(f.name) for f in fields(TubeAP)[3:]])

    def __str__(self) -> str:
        lines = [f'{"category":<16}{"videos":>7}{"tracks":>7}' + ''.join(f'{t:>8}' for t in TITLES.values())]
        for c in [*self.categories, self.mean]:
            lines.append(f'{c.name:<16}{c.videos:>7}{c.tracks:>7}' + table_cells(c))
        return '\n'.join(lines)


def table_cells(figures: TubeAP) -> str:
    """Return the eight figures in percent as columns of a table."""
    values = [getattr(figures, name) for name in TITLES]
    return ''.join(f'{"-":>8}' if math.isnan(v) else f'{100 * v:>8.1f}' for v in values)


def evaluate_tubes(records: Sequence[VideoRecord], predictions: Sequence[TubePrediction],
                   categories: Sequence[str] | None = None) -> VideoResult:
    """Score tubes against labelled videos; ``categories`` limits what counts (default: all that are labelled).

    Raise ValueError for a prediction that does not fit its video.
    """
    check_tubes(predictions, records)
    found = by_video_and_category(predictions)
    names = sorted({track.category for record in records for track in record.tracks})
    scored = []
    for name in names if categories is None else [n for n in names if n in categories]:
        matches = [match_video(record, name, found.get((record.id, name), []))
                   for record in records if is_evaluated(record, name)]
        if sum(m.objects[0] for m in matches):
            scored.append(summarise(name, matches))
    return VideoResult(scored)


@dataclass(frozen=True)
class Matches:
    """The predictions of one category in one video, D by falling score, at A area ranges and T thresholds."""

    scores: np.ndarray     # (D,)
    matched: np.ndarray    # (A, T, D) bool
    ignored: np.ndarray    # (A, T, D) bool: neither right nor wrong
    objects: np.ndarray    # (A,) labelled ones that count


def match_video(record: VideoRecord, category: str, predictions: Sequence[TubePrediction]) -> Matches:
    """Match one video's predictions of a category with its objects."""
    tracks = [track for track in record.tracks if track.category == category]
    scores = np.array([tube.score for tube in predictions], np.float64)
    order = np.argsort(-scores, kind='stable')[:MAX_DETECTIONS]
    tubes, truth = [predictions[i].rles for i in order], [track.rles for track in tracks]
    areas, true_areas = (frame_areas(rles, len(record.paths)) for rles in (tubes, truth))
    ious = tube_ious(frame_intersections(tubes, truth, areas).sum(0), areas, true_areas)
    skipped = outside_area_ranges(true_areas) | np.array([track.crowd for track in tracks], bool)
    matched, ignored = match_tubes(ious, skipped)
    may_be_real = bool(tracks) and not record.exhaustive
    ignored |= ~matched & (outside_area_ranges(areas)[:, None] | may_be_real)
    return Matches(scores[order], matched, ignored, (~skipped).sum(1))


def tube_ious(common: np.ndarray, areas: np.ndarray, true_areas: np.ndarray) -> np.ndarray:
    """Return IoU ``(D, G)`` from common pixels ``(D, G)`` and the areas by frame ``(D, frames)``, ``(G, frames)``."""
    union = areas.sum(1)[:, None] + true_areas.sum(1)[None] - common
    return common / np.maximum(union, 1)


def outside_area_ranges(areas: np.ndarray) -> np.ndarray:
    """Return ``(A, N)``: which tubes of areas ``(N, frames)`` are not of a size. The bounds belong to both sides."""
    mean = areas.sum(1) / np.maximum((areas > 0).sum(1), 1)
    return (mean < AREA_RANGES[:, :1]) | (mean > AREA_RANGES[:, 1:])


def match_tubes(ious: np.ndarray, skipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match as COCO does, greedily, at all area ranges and thresholds at once.

    ``ious (D, G)`` are by falling score; ``skipped (A, G)`` are the objects that do not count. Each prediction in turn
    takes the free object of the greatest overlap. An object that counts goes before one that does not. Of equal objects
    the last is taken. Return ``(A, T, D)`` twice: the prediction has a match; its match does not count.
    """
    count, objects = ious.shape
    shape = len(skipped), len(IOU_THRESHOLDS), count
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    if not objects:
        return matched, ignored
    least = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    skipped = np.broadcast_to(skipped[:, None], (*shape[:2], objects))
    free = np.ones(skipped.shape, bool)
    for d, overlaps in enumerate(ious):
        fits = free & (overlaps >= least)
        counting = fits & ~skipped
        fits = np.where(counting.any(-1, keepdims=True), counting, fits)
        best = objects - 1 - np.where(fits, overlaps, -1)[..., ::-1].argmax(-1)[..., None]
        hit = fits.any(-1)
        matched[..., d] = hit
        ignored[..., d] = hit & np.take_along_axis(skipped, best, -1)[..., 0]
        np.put_along_axis(free, best, np.take_along_axis(free, best, -1) & ~hit[..., None], -1)
    return matched, ignored


def running_positives(matches: Sequence[Matches], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return running true and false positives ``(A, T, N)`` by falling score, ``most`` from each video."""
    scores = np.concatenate([m.scores[:most] for m in matches])
    order = np.argsort(-scores, kind='stable')
    matched, ignored = (np.concatenate(parts, -1)[..., order] for parts in (
        [m.matched[..., :most] for m in matches], [m.ignored[..., :most] for m in matches]))
    return (np.cumsum(x & ~ignored, -1, dtype=np.float64) for x in (matched, ~matched))


def average_precision(matches: Sequence[Matches]) -> np.ndarray:
    """Return a category's average precision ``(A, T)`` over videos, NaN at area ranges without an object."""
    objects = sum(m.objects for m in matches)
    right, wrong = running_positives(matches, MAX_DETECTIONS)
    precision = right / np.maximum(right + wrong, 1)
    # at each recall the best precision that is had at this or any higher recall
    precision = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    ap = np.full(precision.shape[:2], math.nan)
    for area, count in enumerate(objects):
        for threshold in range(len(IOU_THRESHOLDS)) if count else ():
            at = np.searchsorted(right[area, threshold] / count, RECALLS, 'left')
            ap[area, threshold] = np.append(precision[area, threshold], 0)[at].mean()
    return ap


def summarise(name: str, matches: Sequence[Matches]) -> TubeAP:
    """Return a category's figures from the matches of all videos."""
    objects = sum(m.objects for m in matches)

    def recall(most: int) -> float:
        right, _ = running_positives(matches, most)
        return float(right[0, :, -1].mean() / objects[0]) if right.size else 0.0

    ap = average_precision(matches)
    every, small, medium, large = (float(row.mean()) for row in ap)
    return TubeAP(name, len(matches), int(objects[0]), every, float(ap[0, 0]), float(ap[0, 5]), recall(1), recall(10),
                  small, medium, large)
