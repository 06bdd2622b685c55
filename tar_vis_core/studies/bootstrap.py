"""Uncertainty of a figure: bootstrap over videos, because frames are not independent; and rank correlation.

It needs no model: whoever compares recorded figures does not wait for torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.evaluation.tubes import TubePrediction, by_video_and_category, is_evaluated
from tar_vis_core.evaluation.ytvis_ap import Matches, average_precision, match_video

Row = dict[str, object]
LEVEL = 0.95


def resamples(videos: int, times: int, seed: int = 0) -> np.ndarray:
    """Return indices ``(times, videos)`` drawn with replacement: the videos of each bootstrap sample."""
    return np.random.default_rng(seed).integers(videos, size=(times, videos))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the middle 95 % of bootstrap values without those that are NaN; NaN if none is left."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def with_interval(measure: Callable[[np.ndarray], float], videos: int, times: int, seed: int = 0
                  ) -> tuple[float, float, float]:
    """Return ``measure`` of all videos and the bounds of its bootstrap interval. It takes the videos' indices."""
    return measure(np.arange(videos)), *interval([measure(chosen) for chosen in resamples(videos, times, seed)])


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; ties have their mean rank. NaN if one of the two does not vary."""
    if len(x) < 2:
        return math.nan
    ranks = np.stack([rankdata(x), rankdata(y)])
    ranks -= ranks.mean(1, keepdims=True)
    spread = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / spread if spread else math.nan


class Precision:
    """Average precision (YouTube-VIS) of one set of predictions over any selection of the videos."""

    def __init__(self, records: Sequence[VideoRecord], predictions: Sequence[TubePrediction]):
        found = by_video_and_category(predictions)
        names = sorted({track.category for record in records for track in record.tracks})
        # by category, then video; None if the video has no labels of the category
        self._matches = [[_of_all_sizes(match_video(record, name, found.get((record.id, name), [])))
                          if is_evaluated(record, name) else None for record in records] for name in names]

    def __call__(self, videos: np.ndarray) -> float:
        """Return the AP, 0..1: the mean over the categories with an object in those videos, NaN if there is none."""
        values = []
        for category in self._matches:
            chosen = [category[i] for i in videos if category[i] is not None]
            if chosen and sum(m.objects[0] for m in chosen):
                values.append(average_precision(chosen).mean())
        return float(np.mean(values)) if values else math.nan


def _of_all_sizes(matches: Matches) -> Matches:
    return Matches(matches.scores, matches.matched[:1], matches.ignored[:1], matches.objects[:1])


def spread(title: str, values: np.ndarray) -> dict[str, float]:
    """Return a figure and its interval. The first of ``values`` is of all videos, the others are bootstrap samples."""
    low, high = interval(values[1:])
    return {title: float(values[0]), f'{title}: low': low, f'{title}: high': high}


def mean_rows(rows: Sequence[Row], group: Sequence[str], label: str) -> list[Row]:
    """Return the mean row of the rows that agree in the columns ``group``; column ``label`` says of how many.

    Low and high are the least and the greatest value.
    """
    made = []
    for key in dict.fromkeys(tuple(row[name] for name in group) for row in rows):
        same = [row for row in rows if tuple(row[name] for name in group) == key]
        mean = {name: float(np.mean([row[name] for row in same])) if isinstance(value, (int, float)) else value
                for name, value in same[0].items()}
        for name in [name for name in mean if f'{name}: low' in mean]:
            values = [row[name] for row in same]
            mean |= {f'{name}: low': float(np.min(values)), f'{name}: high': float(np.max(values))}
        made.append({**mean, label: f'mean of {len(same)}'})
    return made
