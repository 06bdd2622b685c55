"""Times of a frame: shares by stage (the paper's Figure 1), and speed by what saves time (its Table 4)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from tar_vis_core.benchmark.contenders import Contender, take_turns
from tar_vis_core.benchmark.cost import STAGES
from tar_vis_core.benchmark.reference import ReferenceDecoder, in_reference_style, unfused_attention
from tar_vis_core.instances import FrameResult
from tar_vis_core.models.masked_decoder import MaskedDecoder
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.options import option
from tar_vis_core.runtime.device import PRECISIONS
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.studies.inputs import PAPER, StudyInputs, first_frames, inputs_text, open_model, open_videos
from tar_vis_core.studies.report import write_report

PAPER_SHARE = {'backbone': 17, 'pixel_decoder': 28, 'decoder': 52, 'tracker': 3, 'all': 100}     # percent
PAPER_MS = {'all': 40.5}


@dataclass(frozen=True, kw_only=True)
class TimingStudy(StudyInputs):
    """Time of a frame: shares by stage (Figure 1), or frames a second by what saves time (Table 4)."""

    timed: int = option(60, 'frames that are timed', low=1)
    warm_up: int = option(10, 'frames before, not timed', low=1)
    precision: str = option('float32', 'arithmetic of the model', choices=tuple(PRECISIONS))


def run_profile(asked: TimingStudy) -> None:
    """Run ``tar-vis study profile``."""
    model, records = open_model(asked), open_videos(asked)
    segmenter = VideoSegmenter.from_model(model, asked.device, asked.precision)
    routings = ('full', 'adaptive') if model.config.routing else ('full',)
    lines = {routing: Contender(segmenter, SegmenterOptions(routing)) for routing in routings}
    measured = take_turns(lines, list(first_frames(records, asked.timed + asked.warm_up)), 15, asked.warm_up)
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

    write_report(asked.out, 'Shares of the time of a frame', rows, [
        inputs_text(asked, records) + f' {asked.precision}; medians of {asked.timed} frames (from the start again if '
        f'the videos have fewer), {asked.warm_up} before them; full (all layers) and adaptive (TAR) take turns; no '
        'seed matters but that of the videos.',
        PAPER + ' Its stages are not synchronised with the device: its decoder waits for queued work of the image '
        'encoder, which counts as decoder.',
        'It shows where the time of this model goes on this machine, so what skipping decoder layers can save here at '
        'most. It cannot show the shares of another model or machine: on a CPU the encoder weighs more than on a GPU, '
        'where the decoder is bound by the number of its kernels.'], draw)


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
                  for form in (in_reference_style(model, {MaskedDecoder: ReferenceDecoder}), model)]
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


def run_operations(asked: TimingStudy) -> None:
    """Run ``tar-vis study operations``."""
    model, records = open_model(asked), open_videos(asked)
    lines = lines_of(model, asked.device, asked.precision)
    measured = take_turns(lines, list(first_frames(records, asked.timed + asked.warm_up)), 15, asked.warm_up)
    rows = [row_of(variant, [frame.result for frame in frames]) for variant, frames in measured.items()]

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

    write_report(asked.out, 'Frames a second by what is switched on', rows, [
        inputs_text(asked, records) + f' {asked.precision}; medians (quartiles) of {asked.timed} frames (from the '
        f'start again if the videos have fewer), {asked.warm_up} before them, the variants taking turns; image '
        'encoder, decoder and matching are timed; no seed matters but that of the videos.',
        PAPER + ' Its rows: none, FlashAttention-2, operation fusion, TAR, and all three; FlashAttention-2 and fusion '
        'without TAR it does not report. Its fusion is not the same operations as our small masks.',
        'Reference style: attention as separate products, all heads and full-size masks before each layer and after '
        'the last; deformable attention is the same in all rows. Fused attention: one kernel; small masks: attention '
        'masks at the size of their level, heads only where they are used. The weights and, up to rounding, the '
        'results are the same. It shows what each saves of this model on this machine, and what TAR still adds to an '
        'optimised decoder. It cannot show the speed of the published implementations, and says nothing of accuracy.'],
        draw)
