"""Ways of decoding, evaluated on the same bootstrap samples of videos; rows of tables from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from tar_vis_core.benchmark.cost import metered_parts
from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.evaluation.decodings import Decoding
from tar_vis_core.evaluation.videos import VideoRow, evaluate_videos
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime.device import elapsed_ms, mark
from tar_vis_core.studies.bootstrap import Precision, interval
from tar_vis_core.studies.inputs import Stopwatch

Row = dict[str, object]


@dataclass(frozen=True)
class Sampled:
    """One way of decoding, over all videos and over each bootstrap sample of them."""

    row: VideoRow
    ms: float                # a frame, median: image encoder and decoder
    ap: np.ndarray           # (1 + samples,) percent, all videos first
    executed: np.ndarray     # (1 + samples,) layers a frame


def sample(model: VideoInstanceModel, records: list[VideoRecord], ways: Mapping[str, Decoding], samples: np.ndarray,
           tracker: str = 'auto') -> list[Sampled]:
    """Evaluate the ways, all on the same bootstrap samples of videos ``(samples, videos)``, and time them."""
    device = model.pixel_mean.device
    watches = {name: Stopwatch(way, device) for name, way in ways.items()}
    with metered_parts(model, lambda: mark(device)) as marks:
        rows = evaluate_videos(model, records, watches, tracker=tracker)
    encoder_ms = float(np.median([elapsed_ms(*backbone) + elapsed_ms(*pixels) for backbone, pixels in zip(
        marks['backbone'], marks['pixel_decoder'], strict=True)]))
    chosen = [np.arange(len(records)), *samples]
    made = []
    for row in tqdm(rows, desc='bootstrap', unit='way'):
        precision = Precision(records, row.predictions)
        layers, frames = np.array([(e.sum(), len(e)) for e in row.executed]).T
        made.append(Sampled(row, encoder_ms + watches[row.name].median,
                            np.array([100 * precision(c) for c in chosen]),
                            np.array([layers[c].sum() / frames[c].sum() for c in chosen])))
    return made


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
