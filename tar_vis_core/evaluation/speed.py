"""``tar-vis bench``: the whole step, with and without temporal routing, interleaved in one run.

Timed is :meth:`VideoSegmenter.step` as a camera's frame meets it: host image in, resize and normalise, image encoder,
decoder, classification, masks at the image's size, run lengths, matching and identities; on a GPU the device is
synchronised at each stage's end. Not timed: reading the video.
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

from tar_vis_core.cli import add_model_options
from tar_vis_core.errors import TarVisError
from tar_vis_core.frames import open_frames, play
from tar_vis_core.instances import FrameResult
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter

STAGES = ('preprocess', 'encoder', 'decoder', 'masks', 'tracker', 'total')
WARM_UP = 10


def bench(segmenter: VideoSegmenter, images: list[np.ndarray], rate: float) -> dict[str, list[FrameResult]]:
    """Every image through each routing in turn, a state each; results after :data:`WARM_UP` frames."""
    routings = ('full', 'adaptive') if segmenter.model.config.routing else ('full',)
    states = {routing: segmenter.new_state() for routing in routings}
    results: dict[str, list[FrameResult]] = {routing: [] for routing in routings}
    for index, image in enumerate(tqdm(images, unit='frame', desc='bench')):
        # which one goes first alternates, so that neither always finds a warm cache
        for routing in routings if index % 2 else routings[::-1]:
            segmenter.options = SegmenterOptions(routing=routing)
            results[routing].append(segmenter.step(image, states[routing], index / rate))
    return {routing: found[WARM_UP:] for routing, found in results.items()}


def summary(results: list[FrameResult]) -> dict:
    """Median and 95th percentile of each stage in ms, and what was computed."""
    times = {s: np.array([getattr(r.times, s) for r in results]) for s in STAGES}
    executed = np.array([r.routing.executed for r in results])
    return {
        'frames': len(results), 'median_ms': {s: float(np.median(t)) for s, t in times.items()},
        'p95_ms': {s: float(np.percentile(t, 95)) for s, t in times.items()},
        'fps': float(1e3 / np.median(times['total'])), 'executed_layers': float(executed.sum(1).mean()),
        # layers 1, 4, 7 read stride 32, layers 2, 5, 8 stride 16, layers 3, 6, 9 stride 8
        'executed_by_stride': {str(s): float(executed[:, k::3].sum(1).mean()) for k, s in enumerate((32, 16, 8))},
        'instances': float(np.mean([sum(i.area > 0 for i in r.instances) for r in results])),
    }


def main(argv: list[str] | None = None) -> int:
    """``tar-vis bench``."""
    parser = argparse.ArgumentParser(prog='tar-vis bench', description=__doc__.split('\n\n')[0],
                                     epilog=__doc__.split('\n\n')[1])
    parser.add_argument('--source', default='photographs', help='video, folder, or photographs (default)')
    parser.add_argument('--frames', type=int, default=110, help=f'frames, of which {WARM_UP} warm up (default: 110)')
    parser.add_argument('--size', default='640x480', metavar='WxH', help='size of the source image (default: 640x480)')
    parser.add_argument('--json', type=Path, help='write the figures here, too')
    add_model_options(parser)
    args = parser.parse_args(argv)
    try:
        width, _, height = args.size.partition('x')
        if not (width.isdigit() and height.isdigit()):
            raise ValueError(f'--size is {args.size!r}, expected WIDTHxHEIGHT such as 640x480')
        if args.frames <= WARM_UP:
            raise ValueError(f'--frames is {args.frames}, expected more than the {WARM_UP} that warm up')
        routing = SegmenterOptions(routing='full')
        segmenter = VideoSegmenter(args.preset, args.weights, args.device, args.precision, routing, args.threads)
        with open_frames(args.source) as reader:
            rate = reader.fps
            images = [cv2.resize(f.image, (int(width), int(height)), interpolation=cv2.INTER_AREA)
                      for f in play(reader, limit=args.frames)]
        if len(images) <= WARM_UP:
            raise ValueError(f'{args.source} has {len(images)} frames, expected more than {WARM_UP}')
        found = {routing: summary(results) for routing, results in bench(segmenter, images, rate).items()}
    except (TarVisError, ValueError) as error:
        print(f'tar-vis bench: {error}', file=sys.stderr)
        return 1
    where = {'preset': args.preset, 'size': args.size, 'source': args.source, 'device': str(segmenter.device),
             'precision': args.precision, 'threads': torch.get_num_threads(), 'cores': os.cpu_count(),
             'torch': torch.__version__, 'host': platform.processor() or platform.machine(),
             'options': asdict(SegmenterOptions())}
    print(f'{args.preset}, {args.size} {args.source}, {segmenter.device}, {args.precision}, '
          f'{where["threads"]} threads, torch {torch.__version__}; median (p95) ms of {len(images) - WARM_UP} frames')
    print(f'{"routing":<10}' + ''.join(f'{s:>17}' for s in STAGES) + f'{"frames/s":>10}{"layers":>8}{"instances":>11}')
    for routing, figures in found.items():
        cells = ''.join(f'{figures["median_ms"][s]:>9.1f} ({figures["p95_ms"][s]:5.1f})' for s in STAGES)
        print(f'{routing:<10}{cells}{figures["fps"]:>10.1f}{figures["executed_layers"]:>8.2f}'
              f'{figures["instances"]:>11.1f}')
    if args.json:
        args.json.write_text(json.dumps({**where, 'routing': found}, indent=1) + '\n')
        print(f'figures: {args.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
