"""Worth of a decoder layer, frame by frame: how much greater the loss is without it. No figure of the paper.

Routers can choose better than chance only if the worth of a layer differs from frame to frame, and if the queries show
it. This study measures both, on frames with one of several gaps between them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from tar_vis_core.data import transforms as tf
from tar_vis_core.data.clips import labelled_scene, resizing
from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.models.class_sets import plain_name
from tar_vis_core.models.masked_decoder import FrameMemory
from tar_vis_core.models.temporal_routing import EXECUTE
from tar_vis_core.models.video_model import MAX_LONG_SIDE, VideoInstanceModel
from tar_vis_core.preprocess import small_grey
from tar_vis_core.state import TemporalState
from tar_vis_core.studies.bootstrap import spearman, with_interval
from tar_vis_core.studies.inputs import described, open_model, open_videos
from tar_vis_core.studies.report import write_report
from tar_vis_core.training.losses import LossWeights, Target, make_target, set_losses, total_loss
from tar_vis_core.training.objective import person_class


@dataclass(frozen=True)
class RoutedFrame:
    """One routed frame; losses are the weighted sums of training."""

    video: int
    gap: int
    mse: float
    loss: float                 # behind the synchronizer with all layers
    stopped: np.ndarray         # (routers,) where the frame ends before that layer, the first: with the warm-up alone
    without: np.ndarray         # (routers,) with all layers but that one
    probability: np.ndarray     # (routers,) of the router before each layer, all layers executed
    compared: np.ndarray        # (routers, F) what that router compares, mean over queries: Q, Q_{t-1}, |Q - Q_{t-1}|

    @property
    def distance(self) -> np.ndarray:
        """Return the mean |Q - Q_{t-1}| that each router compares, ``(routers,)``."""
        return self.compared[:, self.compared.shape[1] // 3 * 2:].mean(1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's own options."""
    parser.add_argument('--gaps', type=int, nargs='+', default=[0, 1, 3, 8], metavar='N',
                        help='frames from one that is looked at to the next, drawn each time (default: 0 1 3 8)')
    parser.add_argument('--resamples', type=int, default=1000, help='bootstrap samples (default: 1000)')


class Losses:
    """The loss of a frame's queries against its truth."""

    def __init__(self, model: VideoInstanceModel, mask_features: Tensor, target: Target):
        self.model, self.mask_features, self.target = model, mask_features, target
        self.weights, self.person = LossWeights(), person_class(model)

    def __call__(self, queries: Tensor) -> float:
        decoder = self.model.decoder
        normed = decoder.decoder_norm(queries)
        terms = set_losses([decoder.class_embed(normed)], [decoder.mask_embed(normed)], self.mask_features,
                           [self.target], self.weights, person=self.person)
        return float(total_loss(terms, self.weights))


def walk(video: int, record: VideoRecord, gaps: list[int]) -> Iterator[tuple[int, int]]:
    """Return (gap, frame) from the first frame to the end of a video, the same in every run.

    If all gaps are 0, there are as many as frames."""
    rng, frame = np.random.default_rng(video), 0
    yield 0, 0
    for _ in range(len(record.paths) - 1):
        gap = int(rng.choice(gaps))
        frame += gap
        if frame >= len(record.paths):
            return
        yield gap, frame


def follow(model: VideoInstanceModel, video: int, record: VideoRecord, gaps: list[int]) -> Iterator[RoutedFrame]:
    """Yield the frames of a walk through a video except the first; all layers run from frame to frame."""
    decoder, state, previous = model.decoder, TemporalState(), None
    labels = None
    if not model.config.semantic_classes:
        labels = {plain_name(name): label for label, name in enumerate(model.config.class_names)}
    view, size = resizing((record.height, record.width), model.config.short_side, MAX_LONG_SIDE)
    first = decoder.warmup_layers
    for gap, frame in walk(video, record, gaps):
        sample = tf.to_sample(tf.warp_scene(labelled_scene(record, frame, labels), view, size))
        mse = state.frame_mse(small_grey(sample.image.permute(1, 2, 0).numpy()))
        images = model.normalize(sample.image[None].to(model.pixel_mean.device))
        features = model.encode(images)
        if previous is None:
            previous = model.decode(features).queries
            continue
        losses = Losses(model, features.mask_features, make_target(sample, images.shape[-2:], device=images.device))
        memory = FrameMemory(features.mask_features, features.levels, decoder.level_embed)

        def run(x: Tensor, layers: range, position: Tensor | None = None, memory: FrameMemory = memory) -> Tensor:
            for i in layers:
                x = decoder.run_layer(i, x, memory, position)
            return x

        x, position = decoder.begin(1, features.proposals)
        x, position, previous = decoder.synchronize(run(x, range(first), position), previous, position, memory)
        along = [x]
        for i in range(first, len(decoder.layers)):
            along.append(run(along[-1], range(i, i + 1), position))
        without = [losses(run(before, range(i, len(decoder.layers)), position))
                   for i, before in enumerate(along[:-1], first + 1)]
        scores = torch.stack([decoder.scores(x, previous, i, i + 1)[0, 0] for i, x in enumerate(along[:-1])])
        now = torch.cat(along[:-1])
        compared = torch.cat((now, previous.expand_as(now), (now - previous).abs()), -1).mean(1)
        yield RoutedFrame(
            video, gap, mse, losses(along[-1]), np.array([losses(x) for x in along[:-1]]), np.array(without),
            scores.softmax(-1)[:, EXECUTE].numpy(force=True), compared.numpy(force=True))
        previous = along[-1]


def read_out(compared: np.ndarray, worth: np.ndarray, videos: np.ndarray, folds: int = 5) -> np.ndarray:
    """Return ``worth (n,)`` as a linear map of ``compared (n, F)`` predicts it on videos outside the fit, ``(n,)``.

    Ridge regression on standardised features, its weight the number of frames; NaN if all videos are in one fold.
    """
    x = (compared - compared.mean(0)) / (compared.std(0) + 1e-6)
    foretold = np.full(len(worth), math.nan)
    for fold in range(folds):
        held = videos % folds == fold
        if held.any() and not held.all():
            known, mean = x[~held], worth[~held].mean()
            curvature = known.T @ known + len(known) * np.eye(x.shape[1])
            weights = np.linalg.solve(curvature, known.T @ (worth[~held] - mean))
            foretold[held] = mean + x[held] @ weights
    return foretold


def rows_of(frames: list[RoutedFrame], first: int, times: int) -> list[dict[str, object]]:
    """Return all routed layers together, over all frames and by gap; from each layer on; then each layer alone."""
    videos = np.array([seen.video for seen in frames])
    of_video = [np.flatnonzero(videos == video) for video in np.unique(videos)]

    def row(name: str, chosen: np.ndarray, worth: np.ndarray, probability: np.ndarray, router: int,
            foretold: np.ndarray | None = None) -> dict[str, object]:
        parts = [np.intersect1d(part, chosen) for part in of_video]
        parts = [part for part in parts if len(part)]
        if foretold is None:
            foretold = read_out(compared[:, router], worth, videos)

        def mean(selected: np.ndarray) -> float:
            return float(worth[np.concatenate([parts[i] for i in selected])].mean())

        def with_worth(values: np.ndarray) -> Callable[[np.ndarray], float]:
            def correlation(selected: np.ndarray) -> float:
                index = np.concatenate([parts[i] for i in selected])
                return spearman(values[index], worth[index])
            return correlation

        out: dict[str, object] = {'without': name, 'frames': len(chosen)}
        for key, measure in (('worth', mean), ('Spearman with probability', with_worth(probability)),
                             ('Spearman with read-out', with_worth(foretold)), ('Spearman with MSE', with_worth(mses))):
            bounds = with_interval(measure, len(parts), times) if parts else (math.nan,) * 3
            out |= dict(zip((key, f'{key}: low', f'{key}: high'), bounds))
        nothing = not len(chosen)
        return out | {
            'spread of worth': math.nan if nothing else float(worth[chosen].std()),
            'frames better without, %': math.nan if nothing else float(100 * (worth[chosen] < 0).mean()),
            'execute probability': math.nan if nothing else float(probability[chosen].mean()),
            'distance of queries': math.nan if nothing else float(distance[chosen, router].mean()),
            'loss': math.nan if nothing else float(np.mean([frames[i].loss for i in chosen])),
            'MSE': math.nan if nothing else float(mses[chosen].mean())}

    following, single = (np.stack([getattr(s, name) - s.loss for s in frames]) for name in ('stopped', 'without'))
    probability, compared, distance = (np.stack([getattr(s, name) for s in frames])
                                       for name in ('probability', 'compared', 'distance'))
    gaps, mses = np.array([s.gap for s in frames]), np.array([s.mse for s in frames])
    everything = np.arange(len(frames))
    together, mean, count = following[:, 0], probability.mean(1), single.shape[1]
    foretold = read_out(compared[:, 0], together, videos)
    return [row('all routed layers', everything, together, mean, 0),
            *(row(f'all, gap {gap}', np.flatnonzero(gaps == gap), together, mean, 0, foretold)
              for gap in np.unique(gaps)),
            *(row(f'layers {first + 1 + k} to {first + count}', everything, following[:, k], probability[:, k], k)
              for k in range(1, count - 1)),
            *(row(f'layer {first + 1 + k}', everything, single[:, k], probability[:, k], k) for k in range(count))]


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Run ``tar-vis study worth``."""
    if min(args.gaps) < 0:
        raise ValueError(f'--gaps are {args.gaps}, expected whole numbers from 0')
    model = open_model(args).eval()
    if not model.config.routing:
        raise ValueError('these weights hold no routers; give weights or an adapter with TAR')
    records = open_videos(args)
    frames = [seen for video, record in enumerate(tqdm(records, unit='video'))
              for seen in follow(model, video, record, args.gaps)]
    if not frames:
        raise ValueError('no video has a second frame at these gaps')
    rows = rows_of(frames, model.config.warmup_layers, args.resamples)

    def draw(axes: Axes) -> None:
        worth, mean = [s.stopped[0] - s.loss for s in frames], [s.probability.mean() for s in frames]
        gaps = sorted({s.gap for s in frames})
        for colour, gap in enumerate(gaps):
            chosen = [i for i, s in enumerate(frames) if s.gap == gap]
            axes.scatter([worth[i] for i in chosen], [mean[i] for i in chosen], s=6, alpha=0.5, color=f'C{colour}',
                         label=f'gap {gap}')
        axes.set_xscale('symlog', linthresh=0.1)
        axes.set_xlabel('loss without the routed layers less that with them')
        axes.set_ylabel('mean execute probability')
        axes.legend(fontsize=8)

    write_report(args.out, 'What the routed layers are worth', rows, [
        described(args, records) + ' First frames of videos are left out. All layers run from frame to frame; worth is '
        "a frame's loss as in training (class, mask, dice) without a layer, without it and all that follow, or without "
        f'all routed ones, less that with all. Intervals: 95 %, {args.resamples} bootstrap samples of whole videos, '
        'seed 0.',
        'A gap is how many frames lie between the last picture and this one; 0 shows the same picture again. Distance: '
        'mean |Q - Q_{t-1}| of what the router before the (first) layer left out compares.',
        'It shows whether there is anything for routers to choose: a worth that is the same on all frames asks for a '
        'fixed number of layers, one that differs for routers, and Spearman says whether these routers follow it. The '
        'read-out says what a router could: a linear map, fitted to the worth on other videos (five folds), of what '
        'that router compares (mean over queries of Q, Q_{t-1} and |Q - Q_{t-1}|). It cannot show what skipping does '
        'over many frames, where a poor frame makes the next one poorer.'], draw)
