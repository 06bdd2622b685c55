"""``tar-vis bench``: the whole step, with and without temporal routing, interleaved in one run, and what it costs.

Timed is :meth:`VideoSegmenter.step` as a camera's frame meets it: host image in, resize and normalise, image encoder,
decoder, classification, masks at the image's size, run lengths, matching and identities; on a GPU the device is
synchronised at each stage's end. Not timed: reading the video. Beside it stand parameters, floating point operations
(twice the multiply-accumulates) and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from tar_vis_core.cli import add_model_options, make_segmenter
from tar_vis_core.device import pick_device
from tar_vis_core.errors import TarVisError
from tar_vis_core.evaluation.cost import STAGES, clock_of, gflops_by_stage, memory, metered, parameters_by_part
from tar_vis_core.frames import open_frames, play
from tar_vis_core.instances import FrameResult
from tar_vis_core.models.video_model import build_model, input_size
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter

STEPS = ('preprocess', 'encoder', 'decoder', 'masks', 'tracker', 'total')
MARKDOWN_HEAD = (
    '| model | source, network input | parameters, M: all (backbone + pixel decoder + decoder + tracker + TAR) '
    '| GFLOPs a frame: all (backbone + pixel decoder + decoder + tracker) '
    '| ms a frame, median: whole step (backbone + pixel decoder + decoder + tracker) | peak memory, GB |\n'
    '|---|---|---|---|---|---|\n')

Measured = tuple[FrameResult, dict[str, float]]   # a step's result, and the milliseconds of the model's stages


def bench(segmenter: VideoSegmenter, images: list[np.ndarray], rate: float, routings: tuple[str, ...],
          warm_up: int) -> dict[str, list[Measured]]:
    """Every image through each routing in turn, a state each; what came after ``warm_up`` frames."""
    states = {routing: segmenter.new_state() for routing in routings}
    results: dict[str, list[Measured]] = {routing: [] for routing in routings}
    with metered(segmenter, clock_of(segmenter.device)) as spent:
        for index, image in enumerate(tqdm(images, unit='frame', desc='bench')):
            # which one goes first alternates, so that neither always finds a warm cache
            for routing in routings if index % 2 else routings[::-1]:
                segmenter.options = SegmenterOptions(routing=routing)
                spent.update(dict.fromkeys(spent, 0.0))
                result = segmenter.step(image, states[routing], index / rate)
                results[routing].append((result, dict(spent)))
    return {routing: found[warm_up:] for routing, found in results.items()}


def summary(measured: list[Measured]) -> dict:
    """Median and 95th percentile of each stage in ms, and what was computed."""
    results = [result for result, _ in measured]
    times = {s: np.array([getattr(r.times, s) for r in results]) for s in STEPS}
    # the encoder's two halves; the others are in the step's own times
    times |= {s: np.array([spent[s] for _, spent in measured]) for s in ('backbone', 'pixel_decoder')}
    executed = np.array([r.routing.executed for r in results])
    return {
        'frames': len(results), 'median_ms': {s: float(np.median(t)) for s, t in times.items()},
        'p95_ms': {s: float(np.percentile(t, 95)) for s, t in times.items()},
        'fps': float(1e3 / np.median(times['total'])), 'executed_layers': float(executed.sum(1).mean()),
        # layers 1, 4, 7 read stride 32, layers 2, 5, 8 stride 16, layers 3, 6, 9 stride 8
        'executed_by_stride': {str(s): float(executed[:, k::3].sum(1).mean()) for k, s in enumerate((32, 16, 8))},
        'instances': float(np.mean([sum(i.area > 0 for i in r.instances) for r in results])),
    }


def measure(segmenter: VideoSegmenter, images: list[np.ndarray], rate: float, routings: tuple[str, ...],
            warm_up: int, memory_before: int) -> dict:
    """All figures of a model; ``memory_before`` are the bytes that the process held before it was built."""
    found = {routing: summary(r) for routing, r in bench(segmenter, images, rate, routings, warm_up).items()}
    risen = memory(segmenter.device)[1] - memory_before
    for routing, figures in found.items():
        segmenter.options = SegmenterOptions(routing=routing)
        # all frames cost the same but those of TAR, of which one plain pass and those that follow it are a cycle
        cycle = 1 + (segmenter.options.refresh_frames if routing == 'adaptive' else 1)
        figures['gflops'] = gflops_by_stage(segmenter, images[:cycle], rate)
    return {'parameters': parameters_by_part(segmenter.model), 'peak_memory_gb': risen / 1e9, 'routing': found}


def print_figures(figures: dict) -> None:
    """Two tables: the step's stages by routing, then the model's parts."""
    print(f'{"routing":<10}' + ''.join(f'{s:>17}' for s in STEPS) + f'{"frames/s":>10}{"layers":>8}{"instances":>11}')
    for routing, row in figures['routing'].items():
        cells = ''.join(f'{row["median_ms"][s]:>9.1f} ({row["p95_ms"][s]:5.1f})' for s in STEPS)
        print(f'{routing:<10}{cells}{row["fps"]:>10.1f}{row["executed_layers"]:>8.2f}{row["instances"]:>11.1f}')
    print(f'\n{"part":<14}{"parameters":>12}' + ''.join(f'{r + " GFLOPs":>17}{"ms":>9}' for r in figures['routing']))
    for part, count in figures['parameters'].items():
        cells = ''.join(f'{row["gflops"][part]:>17.2f}{row["median_ms"][part]:>9.1f}'
                        for row in figures['routing'].values() if part in STAGES)
        print(f'{part:<14}{count / 1e6:>10.2f} M{cells}')
    cells = ''.join(f'{sum(row["gflops"].values()):>17.2f}' + ' ' * 9 for row in figures['routing'].values())
    print(f'{"all":<14}{sum(figures["parameters"].values()) / 1e6:>10.2f} M{cells.rstrip()}')
    print(f'peak memory: {figures["peak_memory_gb"]:.2f} GB above what the process held before the model was made')


def markdown_rows(figures: dict) -> str:
    """A row of :data:`MARKDOWN_HEAD`'s table for each routing."""
    def parts(values: list[float], total: float, digits: int) -> str:
        return f'{total:.{digits}f} ({" + ".join(f"{value:.{digits}f}" for value in values)})'

    rows = ''
    millions = [count / 1e6 for count in figures['parameters'].values()]
    for routing, row in figures['routing'].items():
        gflops, times = list(row['gflops'].values()), row['median_ms']
        rows += (f'| {figures["preset"]}{", TAR" if routing == "adaptive" else ""} '
                 f'| {figures["size"]}, {figures["input"]} | {parts(millions, sum(millions), 2)} '
                 f'| {parts(gflops, sum(gflops), 2)} | {parts([times[s] for s in STAGES], times["total"], 0)} '
                 f'| {figures["peak_memory_gb"]:.2f} |\n')
    return rows


def command_line() -> argparse.ArgumentParser:
    """The options of ``tar-vis bench``."""
    parser = argparse.ArgumentParser(prog='tar-vis bench', description=__doc__.split('\n\n')[0],
                                     epilog=__doc__.split('\n\n')[1])
    parser.add_argument('--source', default='photographs', help='video, folder, or photographs (default)')
    parser.add_argument('--frames', type=int, default=110, help='frames, warm-up included (default: 110)')
    parser.add_argument('--warm-up', type=int, default=10, help='first frames, not timed (default: 10)')
    parser.add_argument('--size', default='640x480', metavar='WxH', help='size of the source image (default: 640x480)')
    parser.add_argument('--untrained', action='store_true',
                        help='fresh weights (seed 0) in place of a file, all layers: cost without a checkpoint')
    parser.add_argument('--json', type=Path, help='write the figures here, too')
    parser.add_argument('--markdown', type=Path, help="append the model's row to the table in this file")
    add_model_options(parser)
    return parser


def read_images(args: argparse.Namespace) -> tuple[list[np.ndarray], float]:
    """The source's frames at ``--size`` and their rate; ValueError for a wrong option or too few frames."""
    width, _, height = args.size.partition('x')
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f'--size is {args.size!r}, expected WIDTHxHEIGHT such as 640x480')
    if args.warm_up < 1:
        raise ValueError(f'--warm-up is {args.warm_up}, expected at least 1')
    if args.frames <= args.warm_up:
        raise ValueError(f'--frames is {args.frames}, expected more than the {args.warm_up} that warm up')
    with open_frames(args.source) as reader:
        images = [cv2.resize(f.image, (int(width), int(height)), interpolation=cv2.INTER_AREA)
                  for f in play(reader, limit=args.frames)]
        if len(images) <= args.warm_up:
            raise ValueError(f'{args.source} has {len(images)} frames, expected more than {args.warm_up}')
        return images, reader.fps


def segmenter_of(args: argparse.Namespace) -> VideoSegmenter:
    """The model of the command line; ValueError where both weights and none are asked for."""
    options = SegmenterOptions(routing='full')
    if not args.untrained:
        return make_segmenter(args, options)
    if args.weights:
        raise ValueError('--untrained and --weights exclude each other; give one of them')
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return VideoSegmenter.from_model(build_model(args.preset), args.device, args.precision, options, args.tracker)


def main(argv: list[str] | None = None) -> int:
    """``tar-vis bench``."""
    args = command_line().parse_args(argv)
    try:
        images, rate = read_images(args)
        memory_before = memory(pick_device(args.device))[0]
        segmenter = segmenter_of(args)
        # what fresh routers skip means nothing
        tar = segmenter.model.config.routing and not args.untrained
        figures = measure(segmenter, images, rate, ('full', 'adaptive') if tar else ('full',), args.warm_up,
                          memory_before)
    except (TarVisError, ValueError) as error:
        print(f'tar-vis bench: {error}', file=sys.stderr)
        return 1
    height, width = input_size(*images[0].shape[:2], segmenter.model.config.short_side)
    figures = {
        'preset': args.preset, 'untrained': args.untrained, 'size': args.size, 'input': f'{width}x{height}',
        'source': args.source, 'device': str(segmenter.device), 'precision': args.precision,
        'threads': torch.get_num_threads(), 'cores': os.cpu_count(), 'torch': torch.__version__,
        'host': platform.processor() or platform.machine(), 'options': asdict(SegmenterOptions()), **figures}
    print(f'{args.preset}, {args.size} {args.source}, network input {figures["input"]}, {segmenter.device}, '
          f'{args.precision}, {figures["threads"]} threads, torch {torch.__version__}; median (p95) ms of '
          f'{len(images) - args.warm_up} frames')
    if args.untrained:
        print('freshly initialised weights: time, operations and memory hold, instances do not, so "masks" has '
              'little to do')
    print_figures(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + '\n')
        print(f'figures: {args.json}')
    if args.markdown:
        new = not args.markdown.exists()
        with args.markdown.open('a') as file:
            file.write((MARKDOWN_HEAD if new else '') + markdown_rows(figures))
        print(f'row: {args.markdown}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
