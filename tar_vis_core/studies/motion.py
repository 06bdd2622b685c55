"""Executed layers against how much the picture changes (the paper's Figure 5).

The hypothesis (abstract, conclusion and axis of the figure; the paper's text once says the opposite): if less changes
from frame to frame, fewer layers run. So the rank correlation of the two is positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from tqdm import tqdm

from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.evaluation.videos import encode_picture
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.options import option
from tar_vis_core.preprocess import small_grey
from tar_vis_core.state import TemporalState
from tar_vis_core.studies.bootstrap import spearman, with_interval
from tar_vis_core.studies.inputs import PAPER, StudyInputs, inputs_text, open_model, open_videos
from tar_vis_core.studies.report import with_bounds, write_report

PARTS = 5       # of the frames, by rising difference


@dataclass(frozen=True, kw_only=True)
class MotionStudy(StudyInputs):
    """Executed layers against inter-frame difference (Figure 5)."""

    skip_bias: float = option(0.0, "added to the routers' skip score")
    resamples: int = option(1000, 'bootstrap samples', low=1)


@torch.inference_mode()
def measure_video(model: VideoInstanceModel, record: VideoRecord, skip_bias: float) -> np.ndarray:
    """Return inter-frame MSE and executed layers, ``(frames - 1, 2)``, of all frames except the first.

    The MSE is in squared grey levels of pictures that are 64 pixels wide."""
    state, previous, seen = TemporalState(), None, []
    for image in record.frames():
        mse = state.frame_mse(small_grey(image))
        out = model.decode(encode_picture(model, image, model.config.short_side).features, previous, 'adaptive',
                           skip_bias=skip_bias)
        previous = out.past
        seen.append((mse, out.trace.executed_layers))
    return np.array(seen[1:], np.float64).reshape(-1, 2)


def correlations(videos: list[np.ndarray], times: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return Spearman's coefficient over all frames, and its mean over single videos, each with an interval."""
    alone = np.array([spearman(*v.T) for v in videos])

    def pooled(chosen: np.ndarray) -> float:
        return spearman(*np.concatenate([videos[i] for i in chosen]).T)

    def within(chosen: np.ndarray) -> float:
        values = alone[chosen][~np.isnan(alone[chosen])]
        return float(values.mean()) if len(values) else math.nan

    names = 'Spearman', 'Spearman: low', 'Spearman: high'
    return tuple(dict(zip(names, with_interval(m, len(videos), times))) for m in (pooled, within))


def rows_of(videos: list[np.ndarray], times: int) -> list[dict[str, object]]:
    """Return the rows of the table: all frames, single videos, and frames by their difference."""
    frames = np.concatenate(videos)
    pooled, within = correlations(videos, times)
    nothing = dict.fromkeys(pooled, math.nan)

    def row(name: str, chosen: np.ndarray, correlation: dict[str, float], direction: str | None) -> dict[str, object]:
        return {'frames': name, 'count': len(chosen), 'median MSE': float(np.median(chosen[:, 0])),
                'executed layers': float(chosen[:, 1].mean()), **correlation, 'paper Spearman': None,
                'paper direction': direction}

    order = np.argsort(frames[:, 0], kind='stable')
    parts = [part for part in np.array_split(order, PARTS) if len(part)]
    return [row('all', frames, pooled, 'positive'), row('of one video, mean of videos', frames, within, None),
            *(row(f'part {k} of {len(parts)} by MSE', frames[part], nothing, None) for k, part in enumerate(parts, 1))]


def run(asked: MotionStudy) -> None:
    """Run ``tar-vis study motion``."""
    model, records = open_model(asked), open_videos(asked)
    if not model.config.routing:
        raise ValueError('these weights hold no routers, so every frame runs all layers; give weights or an adapter '
                         'with TAR')
    videos = [measure_video(model, record, asked.skip_bias) for record in tqdm(records, unit='video')]
    videos = [video for video in videos if len(video)]
    if not videos:
        raise ValueError('no video has a second frame')
    rows, frames = rows_of(videos, asked.resamples), np.concatenate(videos)

    def draw(axes: Axes) -> None:
        jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(frames))    # layers are whole numbers
        axes.scatter(frames[:, 0], frames[:, 1] + jitter, s=6, alpha=0.4, label='a frame (spread out vertically)')
        axes.plot([row['median MSE'] for row in rows[2:]], [row['executed layers'] for row in rows[2:]], 'o-',
                  color='C1', label='mean of a fifth of the frames')
        axes.set_xscale('symlog', linthresh=1.0)
        axes.set_xlabel('inter-frame MSE, grey levels squared')
        axes.set_ylabel('executed decoder layers')
        axes.legend(fontsize=8, title=f'Spearman {with_bounds(rows[0], "Spearman")}', title_fontsize=8)

    write_report(asked.out, 'Executed layers against inter-frame difference', rows, [
        inputs_text(asked, records) + f' Skip bias {asked.skip_bias:g}; first frames of videos, which run all layers, '
        f'are left out. Intervals: 95 %, {asked.resamples} bootstrap samples of whole videos, seed 0.',
        PAPER + ' It gives no coefficient; the direction is that of its Figure 5.',
        'It shows whether these routers follow the difference of frames at all, and how surely. It cannot show that '
        'motion is why: videos that move more may differ in other ways, which the figure for single videos leaves out. '
        'With routers that hardly vary, or a model whose layers do little, the coefficient means nothing.'], draw)
