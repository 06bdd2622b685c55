"""Speed with each way of saving time, alone and together (the paper's Table 4): attention kernel, masks, TAR."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from tqdm import tqdm

from tar_vis_core.benchmark.contenders import Contender
from tar_vis_core.benchmark.reference import ReferenceDecoder, unfused_attention, with_parts
from tar_vis_core.instances import FrameResult
from tar_vis_core.models.masked_decoder import MaskedDecoder
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.studies import timing
from tar_vis_core.studies.inputs import PAPER, described, open_model, open_videos, pictures
from tar_vis_core.studies.report import write_report
from tar_vis_core.studies.timing import check_counts

add_options = timing.add_options


@dataclass(frozen=True)
class Saving:
    """The parts that a row of the table switches on."""

    name: str
    fused: bool                  # one kernel for all of an attention
    small_masks: bool            # attention masks at the size of their level, heads only where they are used
    tar: bool
    paper_fps: float | None


VARIANTS = (
    Saving('reference style', False, False, False, 24.7), Saving('fused attention', True, False, False, 27.8),
    Saving('small masks', False, True, False, 27.2), Saving('TAR', False, False, True, 31.7),
    Saving('fused attention, small masks', True, True, False, None), Saving('all', True, True, True, 34.6))


def lines_of(model: VideoInstanceModel, device: str, precision: str) -> dict[Saving, Contender]:
    """Return a line for each variant that the model can be; no refreshing, as in the paper."""
    segmenters = [VideoSegmenter.from_model(form, device, precision)
                  for form in (with_parts(model, {MaskedDecoder: ReferenceDecoder}), model)]
    return {variant: Contender(segmenters[variant.small_masks],
                          SegmenterOptions(routing='adaptive' if variant.tar else 'full', refresh_frames=0),
                          contextlib.nullcontext if variant.fused else unfused_attention)
            for variant in VARIANTS if model.config.routing or not variant.tar}


def row_of(variant: Saving, results: list[FrameResult]) -> dict[str, object]:
    """Return medians over frames; bounds are the quartiles."""
    frame = np.array([r.times.encoder + r.times.decoder + r.times.tracker for r in results])
    low, ms, high = np.quantile(frame, [0.25, 0.5, 0.75])
    return {'variant': variant.name, 'layers': float(np.mean([r.routing.executed_layers for r in results])),
            'decoder ms': float(np.median([r.times.decoder for r in results])), 'frame ms': float(ms),
            'frame ms: low': float(low), 'frame ms: high': float(high), 'frames/s': 1e3 / float(ms),
            'paper frames/s': variant.paper_fps}


def run(args: argparse.Namespace) -> None:
    """Run ``tar-vis study operations``."""
    check_counts(args)
    model, records = open_model(args), open_videos(args)
    lines = lines_of(model, args.device, args.precision)
    variants, states = list(lines), {variant: line.segmenter.new_state() for variant, line in lines.items()}
    results: dict[Saving, list[FrameResult]] = {variant: [] for variant in lines}
    images = pictures(records, args.timed + args.warm_up)
    for index, image in enumerate(tqdm(images, total=args.timed + args.warm_up, unit='frame')):
        # they take turns, and none always comes first
        for variant in np.roll(np.array(variants, object), index):
            result = lines[variant].step(image, states[variant])
            if index >= args.warm_up:
                results[variant].append(result)
    rows = [row_of(variant, found) for variant, found in results.items()]

    def draw(axes: Axes) -> None:
        names, value = [row['variant'] for row in rows], np.array([row['frames/s'] for row in rows])
        paper = np.array([row['paper frames/s'] or np.nan for row in rows], float)
        axes.barh(np.arange(len(rows)) - 0.2, value / value[0], 0.4, label='ours')
        axes.barh(np.arange(len(rows)) + 0.2, paper / paper[0], 0.4, label='paper')
        axes.set_yticks(range(len(rows)), names)
        axes.axvline(1, color='black', linewidth=0.5)
        axes.set_xlabel('frames a second over those of the reference style')
        axes.invert_yaxis()
        axes.legend(fontsize=8)

    write_report(args.out, 'Frames a second by what is switched on', rows, [
        described(args, records) + f' {args.precision}; medians (quartiles) of {args.timed} frames (from the start '
        f'again where the videos have fewer), {args.warm_up} before them, the variants taking turns; image encoder, '
        'decoder and matching are timed; no seed matters but that of the videos.',
        PAPER + ' Its rows: none, FlashAttention-2, operation fusion, TAR, and all three; FlashAttention-2 and fusion '
        'without TAR it does not report. Its fusion is not the same operations as our small masks.',
        'Reference style: attention as separate products, all heads and full-size masks before each layer and after '
        'the last; deformable attention is the same in all rows. Fused attention: one kernel; small masks: attention '
        'masks at the size of their level, heads only where they are used. The weights and, up to rounding, the '
        'results are the same. It shows what each saves of this model on this machine, and what TAR still adds to an '
        'optimised decoder. It cannot show the speed of the published implementations, and says nothing of accuracy.'],
        draw)
