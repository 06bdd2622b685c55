"""Step response of the latency budget: off, tight, loose, impossible, in one stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpec
from tqdm import tqdm

from tar_vis_core.latency_budget import HIGHEST, p95
from tar_vis_core.options import option
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.studies.inputs import StudyInputs, described, open_model, open_videos, pictures
from tar_vis_core.studies.report import write_report

OPTIONS = SegmenterOptions(routing='adaptive', refresh_frames=0)


@dataclass(frozen=True)
class Phase:
    """Frames with one budget; arrays of ``(frames,)``."""

    name: str
    budget_ms: float | None
    ms: np.ndarray
    layers: np.ndarray
    bias: np.ndarray
    report: str

    @property
    def turns(self) -> int:
        """Return how often a rise of the bias follows a fall, or a fall a rise."""
        moves = np.sign(np.diff(self.bias))
        moves = moves[moves != 0]
        return int((moves[1:] != moves[:-1]).sum())


@dataclass(frozen=True, kw_only=True)
class BudgetStudy(StudyInputs):
    """Step time, bias and layers while the latency budget changes (not of the paper)."""

    phase: int = option(1000, 'frames with each budget', low=2)
    range_frames: int = option(200, 'frames before, to find out what times can be reached', low=2)


def reachable(segmenter: VideoSegmenter, images: Iterator[np.ndarray], count: int) -> tuple[float, float]:
    """Return p95 of the step in ms with all layers skipped and without bias; the two take turns frame by frame."""
    states = {bias: segmenter.new_state() for bias in (HIGHEST, 0.0)}
    spent: dict[float, list[float]] = {bias: [] for bias in states}
    for image in tqdm(itertools.islice(images, count), total=count, unit='frame', desc='range'):
        for bias, state in states.items():
            segmenter.options = replace(OPTIONS, skip_bias=bias)
            spent[bias].append(segmenter.step(image, state).times.total)
    first = min(10, count // 2)      # they warm up
    return p95(spent[HIGHEST][first:]), p95(spent[0.0][first:])


def run(asked: BudgetStudy) -> None:
    """Run ``tar-vis study budget``."""
    model, records = open_model(asked), open_videos(asked)
    if not model.config.routing:
        raise ValueError('these weights hold no routers, so nothing can be skipped; give weights or an adapter with '
                         'TAR')
    segmenter = VideoSegmenter.from_model(model, asked.device)
    images = pictures(records, asked.range_frames + 4 * asked.phase)
    least, most = reachable(segmenter, images, asked.range_frames)
    budgets = {'off': None, 'tight': round((least + most) / 2, 1), 'loose': round(1.25 * most, 1),
               'impossible': round(least / 2, 1)}
    phases = follow(segmenter, images, budgets, asked.phase)
    rows = [row_of(phase) for phase in phases]
    layers = segmenter.num_layers
    write_report(asked.out, 'A latency budget that changes, one stream', rows, [
        described(asked, records) + f' {asked.phase} frames with each budget; the table is of the second half of them. '
        f'Before, over {asked.range_frames} frames, the p95 of the step was {most:.1f} ms without bias and {least:.1f} '
        'ms with all skipped that can be, the two taking turns: no budget below that can be met. Tight lies halfway, '
        'loose a quarter above, impossible at half of it. refresh_frames is 0, and all videos are one stream: with '
        'plain passes in more than one of twenty frames the budget would hold for the others alone. The paper has no '
        'such controller; no seed matters but that of the videos.',
        'It shows whether the p95 gets below a budget, how fast, at how many layers, and that the bias comes to rest. '
        'It cannot show what the skipped layers cost in accuracy (that is the study layers), nor the times of another '
        'machine or model. On a machine that others use, the load moves the times more than layers do, and the '
        'controller follows the load.'], lambda axes: draw(axes, phases, layers))


def follow(segmenter: VideoSegmenter, images: Iterator[np.ndarray], budgets: dict[str, float | None],
           frames: int) -> list[Phase]:
    """Return one stream through all budgets, so many frames with each; None is none."""
    state, phases = segmenter.new_state(), []
    for name, budget_ms in budgets.items():
        segmenter.options = replace(OPTIONS, latency_budget_ms=budget_ms or 0.0)
        seen: list[tuple[float, int, float]] = []
        for image in tqdm(itertools.islice(images, frames), total=frames, unit='frame', desc=name):
            budget = state.budget_of(segmenter.options.latency_budget_ms)
            bias = budget.bias if budget else 0.0
            result = segmenter.step(image, state)
            seen.append((result.times.total, result.routing.executed_layers, bias))
        phases.append(Phase(name, budget_ms, *np.array(seen).T, state.budget.report if state.budget else ''))
    return phases


def row_of(phase: Phase) -> dict[str, object]:
    """Return a phase as a table row: the figures of its second half, and how often the bias turned in all of it."""
    half = len(phase.ms) // 2
    ms = phase.ms[half:]
    late = float('nan') if phase.budget_ms is None else 100 * float((ms > phase.budget_ms).mean())
    return {'budget': phase.name, 'budget ms': phase.budget_ms, 'p95 ms': p95(ms), 'median ms': float(np.median(ms)),
            'percent late': late, 'layers': float(phase.layers[half:].mean()), 'bias at the end': float(phase.bias[-1]),
            'turns of the bias': phase.turns, 'report': phase.report}


def draw(axes: Axes, phases: list[Phase], layers: int) -> None:
    """Draw step time with the budgets, bias and layers over frames, one below the other."""
    figure, grid = axes.figure, GridSpec(3, 1, axes.figure, height_ratios=(2, 1, 1))
    figure.set_size_inches(8, 7)
    axes.set_subplotspec(grid[0])
    below, lowest = (figure.add_subplot(grid[k], sharex=axes) for k in (1, 2))
    start = 0
    for phase in phases:
        frames = np.arange(start, start + len(phase.ms))
        axes.plot(frames, phase.ms, '.', markersize=2, color='C0')
        running = [p95(phase.ms[max(0, k - 99):k + 1]) for k in range(len(frames))]
        axes.plot(frames, running, color='C1', label='' if start else 'p95 of the last 100 frames')
        if phase.budget_ms:
            axes.hlines(phase.budget_ms, frames[0], frames[-1], 'C3')
        axes.annotate(f' {phase.name}' + (f', {phase.budget_ms:.0f} ms' if phase.budget_ms else ''),
                      (frames[0], 0.97), xycoords=axes.get_xaxis_transform(), va='top', fontsize=9)
        below.step(frames, phase.bias, color='C2', where='post')
        lowest.plot(frames, phase.layers, '.', markersize=2, color='C4')
        for panel in (axes, below, lowest):
            panel.axvline(start, color='0.6', linewidth=0.8)
        start += len(phase.ms)
    shown = [np.percentile(phase.ms, 99) for phase in phases] + [phase.budget_ms or 0 for phase in phases]
    axes.set_ylim(0, 1.2 * max(shown))
    axes.set_ylabel('step, ms (line: budget)')
    axes.legend(fontsize=8, loc='lower left')
    below.set_yscale('symlog', linthresh=0.1)
    below.set_ylim(0, 2 * HIGHEST)
    below.set_ylabel('bias')
    lowest.set_ylim(0, layers + 0.5)
    lowest.set_ylabel('executed layers')
    lowest.set_xlabel('frame')
