"""Shares of a frame's time by stage (the paper's Figure 1): backbone, pixel decoder, decoder, tracker."""

from __future__ import annotations

import argparse

import numpy as np
from matplotlib.axes import Axes

from tar_vis_core.benchmark.contenders import Contender, take_turns
from tar_vis_core.benchmark.cost import STAGES
from tar_vis_core.runtime.device import PRECISIONS
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.studies.inputs import PAPER, described, open_model, open_videos, pictures
from tar_vis_core.studies.report import write_report

PAPER_SHARE = {'backbone': 17, 'pixel_decoder': 28, 'decoder': 52, 'tracker': 3, 'all': 100}     # percent
PAPER_MS = {'all': 40.5}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's own options."""
    parser.add_argument('--timed', type=int, default=60, help='frames that are timed (default: 60)')
    parser.add_argument('--warm-up', type=int, default=10, help='frames before, not timed (default: 10)')
    parser.add_argument('--precision', default='float32', help=f'{", ".join(PRECISIONS)} (default: float32)')


def check_counts(args: argparse.Namespace) -> None:
    """Raise ValueError for a number of frames that cannot be timed."""
    if args.timed < 1 or args.warm_up < 1:
        raise ValueError(f'--timed is {args.timed} and --warm-up {args.warm_up}, expected at least 1')


def run(args: argparse.Namespace) -> None:
    """Run ``tar-vis study profile``."""
    check_counts(args)
    model, records = open_model(args), open_videos(args)
    segmenter = VideoSegmenter.from_model(model, args.device, args.precision)
    routings = ('full', 'adaptive') if model.config.routing else ('full',)
    lines = {routing: Contender(segmenter, SegmenterOptions(routing)) for routing in routings}
    measured = take_turns(lines, list(pictures(records, args.timed + args.warm_up)), 15, args.warm_up)
    rows: list[dict[str, object]] = [{'stage': stage} for stage in (*STAGES, 'all')]
    for routing, results in measured.items():
        times = {stage: float(np.median([frame.times[stage] for frame in results])) for stage in STAGES}
        times['all'] = sum(times.values())
        for row in rows:
            ms = times[row['stage']]
            row |= {f'{routing} ms': ms, f'{routing} percent': 100 * ms / times['all']}
    for row in rows:
        row |= {'paper ms': PAPER_MS.get(row['stage']), 'paper percent': PAPER_SHARE[row['stage']]}

    def draw(axes: Axes) -> None:
        bars = {**{routing: f'{routing} percent' for routing in routings}, 'paper': 'paper percent'}
        left = np.zeros(len(bars))
        for row in rows[:-1]:
            width = np.array([row[name] for name in bars.values()], float)
            axes.barh(list(bars), width, left=left, label=row['stage'].replace('_', ' '))
            left += width
        axes.set_xlabel('percent of the four stages')
        axes.invert_yaxis()
        axes.legend(fontsize=8, ncols=4, loc='upper center', bbox_to_anchor=(0.5, -0.12))

    write_report(args.out, 'Shares of the time of a frame', rows, [
        described(args, records) + f' {args.precision}; medians of {args.timed} frames (from the start again where the '
        f'videos have fewer), {args.warm_up} before them; full (all layers) and adaptive (TAR) take turns; no seed '
        'matters but that of the videos.',
        PAPER + ' Its stages are not synchronised with the device: its decoder waits for queued work of the image '
        'encoder, which counts as decoder.',
        'It shows where the time of this model goes on this machine, so what skipping decoder layers can save here at '
        'most. It cannot show the shares of another model or machine: on a CPU the encoder weighs more than on a GPU, '
        'where the decoder is bound by the number of its kernels.'], draw)
