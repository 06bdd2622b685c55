"""``tar-vis bench``: a model's whole step in three lines, taking turns in one run, and what it costs.

The lines are a reference-style baseline (the plain model as published implementations compute: all layers, full-size
masks and all heads after every layer, unfused attention, deformable attention by grid_sample, the pixel decoder in
float32), ours with all layers, and ours with TAR. --compare sets two files of figures side by side; --guard measures a
file's configuration again and fails where ratios between lines have fallen.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import cv2
import numpy as np
import torch

from tar_vis_core.benchmark.compare import TOLERANCE, fallen, print_comparison, ratios, read_figures
from tar_vis_core.benchmark.contenders import (
    FULL,
    REFERENCE,
    Line,
    Measured,
    Turns,
    costs,
    make_lines,
    reference_line,
    summary,
    take_turns,
)
from tar_vis_core.benchmark.cost import memory, parameters_by_part
from tar_vis_core.benchmark.machine import machine, power_draw
from tar_vis_core.benchmark.reference import reference_style
from tar_vis_core.benchmark.report import MARKDOWN_HEAD, TIMED, markdown_rows, plot, print_figures
from tar_vis_core.commands.options import add_model_options
from tar_vis_core.errors import TarVisError
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import write_text
from tar_vis_core.media.frames import open_frames, play
from tar_vis_core.models.packed import inference_form
from tar_vis_core.models.video_model import VideoInstanceModel, build_model, input_size
from tar_vis_core.runtime.device import pick_device, pick_precision
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

# what is measured: the options that a file of figures keeps
CONFIGURATION = ('preset', 'untrained', 'weights', 'adapter', 'tracker', 'device', 'precision', 'threads', 'source',
                 'size', 'short_side', 'frames', 'warm_up')

POWER_S = 5.0       # for so long a GPU's power is watched


def command_line() -> argparse.ArgumentParser:
    """The options of ``tar-vis bench``."""
    parser = argparse.ArgumentParser(prog='tar-vis bench', description=__doc__, epilog=TIMED,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--source', default='photographs', help='video, folder, or photographs (default)')
    parser.add_argument('--frames', type=int, default=110, help='frames, warm-up included (default: 110)')
    parser.add_argument('--warm-up', type=int, default=10, help='first frames, not timed (default: 10)')
    parser.add_argument('--size', default='640x480', metavar='WxH', help='size of the source image (default: 640x480)')
    parser.add_argument('--short-side', type=int, default=0,
                        help="pixels of the network input's shorter edge (default: the preset's)")
    parser.add_argument('--untrained', action='store_true',
                        help='fresh weights (seed 0) in place of a file, routers set: cost without a checkpoint')
    add_model_options(parser)
    parser.add_argument('--json', type=user_path, metavar='FILE', help='write the figures here, too')
    parser.add_argument('--plot', type=user_path, metavar='FILE', help='draw the lines, stacked by stage')
    parser.add_argument('--markdown', type=user_path, metavar='FILE', help='append a row for each line to a table')
    other = parser.add_mutually_exclusive_group()
    other.add_argument('--compare', type=user_path, nargs=2, metavar=('A', 'B'),
                       help='two files of --json; nothing is run')
    other.add_argument('--guard', type=user_path, metavar='FILE',
                       help='run the configuration of this file of --json again; exit code 1 where a ratio has fallen')
    parser.add_argument('--tolerance', type=float, default=TOLERANCE,
                        help=f'share by which --guard lets a ratio fall (default: {TOLERANCE})')
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


def plain_model(args: argparse.Namespace) -> VideoInstanceModel:
    """The model of the command line; ValueError where both weights and none are asked for."""
    if args.threads < 0:
        raise ValueError(f'--threads is {args.threads}, expected a whole number >= 0')
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.untrained:
        return load_model(args.preset, args.weights or packaged_weights(args.preset), args.adapter)
    if args.weights or args.adapter:
        raise ValueError('--untrained excludes --weights and --adapter; give one of them')
    torch.manual_seed(0)
    model = build_model(args.preset)
    if model.config.tracker == 'dynamic_anchors':
        without_tracks(model)
    return model


def without_tracks(model: VideoInstanceModel) -> None:
    """Let a fresh DVIS-DAQ open no track; left alone it opens one for each anchor of each frame."""
    with torch.no_grad():
        for part in (model.decoder, model.tracker):
            part.class_embed.bias[-1] = 100


def taken(args: argparse.Namespace, line: str, images: list[np.ndarray]) -> tuple[int, float | None, int | None]:
    """What a model and a few frames take: bytes by which the peak memory of this process, a fresh one, rises, and
    the mean of the watts that a GPU draws, and the bytes that it has lent to all processes then."""
    device = pick_device(args.device)
    before, model = memory(device)[0], plain_model(args)
    if line != REFERENCE:
        model = inference_form(model, device, pick_precision(args.precision))
    options = SegmenterOptions('full', input_short_side=args.short_side)
    segmenter = VideoSegmenter.from_model(model, args.device, args.precision, options, args.tracker)
    state = segmenter.new_state()
    shown = Line(segmenter, options, reference_style) if line == REFERENCE else Line(segmenter, options)
    for index, image in enumerate(images):
        shown.step(image, state, float(index))
    if device.type == 'cpu':
        return memory(device)[1] - before, None, None
    torch.cuda.empty_cache()        # what choosing algorithms took is not taken again
    torch.cuda.reset_peak_memory_stats(device)
    shown.step(images[-1], state, float(len(images)))
    rise = memory(device)[1] - before
    with power_draw(device) as watts:
        end = time.monotonic() + POWER_S
        while time.monotonic() < end:
            shown.step(images[0], segmenter.new_state(), 0.0)
    free, total = torch.cuda.mem_get_info(device)
    return rise, float(np.mean(watts)) if watts else None, total - free


def memory_and_power(args: argparse.Namespace, images: list[np.ndarray]) -> dict[str, dict[str, float | None]]:
    """What the baseline's model and ours take, each in a process of its own: what one keeps, the next would use."""
    found = {}
    for line in (REFERENCE, FULL):
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as fresh:
            found[line] = fresh.submit(taken, args, line, images).result()
    return {'peak_memory_gb': {line: peak / 1e9 for line, (peak, _, _) in found.items()},
            'device_memory_gb': {line: lent and lent / 1e9 for line, (_, _, lent) in found.items()},
            'power_w': {line: watts for line, (_, watts, _) in found.items()}}


class Baseline:
    """Line 1 in a process of its own, which gives free memory back to the system as any program does.

    That ours does not (``runtime/allocator.py``) is one of the things that make it faster. It holds process-wide.
    """

    turns: Turns    # in that process

    @classmethod
    def begin(cls, args: argparse.Namespace) -> None:
        """Makes the model; the first call in a new process."""
        with mock.patch('tar_vis_core.segmenter.keep_freed_memory'):
            cls.turns = Turns(reference_line(plain_model(args), args.device, args.precision, args.tracker,
                                             args.short_side))

    @classmethod
    def take(cls, image: np.ndarray, stamp_s: float) -> Measured:
        """The next frame, see :class:`Turns`."""
        return cls.turns.take(image, stamp_s)


def measured_lines(args: argparse.Namespace, lines: dict[str, Line], images: list[np.ndarray], rate: float,
                   ) -> dict[str, list[Measured]]:
    """All lines frame by frame in turn, the first one elsewhere."""
    for name, line in lines.items():
        if name != REFERENCE:       # as a node does at configure
            line.segmenter.options = line.options
            line.segmenter.warm_up(*images[0].shape[:2])
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as apart:
        apart.submit(Baseline.begin, args).result()

        def take(image: np.ndarray, stamp_s: float) -> Measured:
            return apart.submit(Baseline.take, image, stamp_s).result()

        return take_turns(lines, images, rate, args.warm_up, {REFERENCE: take})


def measure(args: argparse.Namespace) -> dict:
    """All figures of a run, as ``--json`` writes them."""
    images, rate = read_images(args)
    model = plain_model(args)
    parameters = parameters_by_part(model)
    lines = make_lines(model, args.device, args.precision, args.tracker, args.short_side, args.untrained)
    segmenter = lines[FULL].segmenter
    found = {name: summary(measured) for name, measured in measured_lines(args, lines, images, rate).items()}
    for name, figures in costs(lines, images, rate).items():
        found[name] |= figures | {'routing': lines[name].routing}
    configuration = {name: getattr(args, name) for name in CONFIGURATION} | {
        'device': str(segmenter.device), 'threads': torch.get_num_threads(), 'tracker': segmenter.tracker_name}
    for name in ('weights', 'adapter'):
        configuration[name] = configuration[name] and str(configuration[name])
    height, width = input_size(*images[0].shape[:2], args.short_side or segmenter.model.config.short_side)
    title = (f'{args.preset}{", fresh weights" if args.untrained else ""}, {args.size} {args.source}, network input '
             f'{width}x{height}, {segmenter.device}, {args.precision}, {torch.get_num_threads()} threads')
    return {'title': title, 'date': datetime.date.today().isoformat(), 'machine': machine(segmenter.device),
            'remarks': list(segmenter.remarks),
            'configuration': configuration, 'input': f'{width}x{height}', 'parameters': parameters,
            **memory_and_power(args, images[:3]), 'lines': found}


def guarded(args: argparse.Namespace) -> tuple[argparse.Namespace, dict]:
    """The options of the file of ``--guard`` and its figures; ValueError where the command line has others."""
    usual, stored = command_line().parse_args([]), read_figures(args.guard)
    given = [name for name in CONFIGURATION if getattr(args, name) != getattr(usual, name)]
    if given:
        raise ValueError(f'--guard takes --{given[0].replace("_", "-")} from {args.guard}; leave it out')
    if not 0 < args.tolerance < 1:
        raise ValueError(f'--tolerance is {args.tolerance}, expected a share between 0 and 1')
    return argparse.Namespace(**vars(args) | stored['configuration']), stored


def report(args: argparse.Namespace, figures: dict) -> None:
    """Prints the figures, and writes the files that were asked for."""
    print_figures(figures)
    if args.json:
        write_text(args.json, json.dumps(figures, indent=1) + '\n')
        print(f'figures: {args.json}')
    if args.plot:
        plot(figures, args.plot)
        print(f'plot: {args.plot}')
    if args.markdown:
        new = not args.markdown.exists()
        with args.markdown.open('a') as file:
            file.write((MARKDOWN_HEAD if new else '') + markdown_rows(figures))
        print(f'rows: {args.markdown}')


def main(argv: list[str] | None = None) -> int:
    """``tar-vis bench``; exit code 1 for an error, and where the guard finds that a ratio has fallen."""
    args = command_line().parse_args(argv)
    try:
        if args.compare:
            print_comparison(tuple(args.compare))
            return 0
        args, stored = guarded(args) if args.guard else (args, None)
        figures = measure(args)
        report(args, figures)
        if stored is None:
            return 0
        worse = fallen(stored, figures, args.tolerance)
    except (TarVisError, ValueError, OSError) as error:
        print(f'tar-vis bench: {error}', file=sys.stderr)
        return 1
    before, now = ratios(stored), ratios(figures)
    print(f'\nguard, ratios stored on {stored["date"]}: '
          + '; '.join(f'{name} {now[name]:.2f}, stored {before[name]:.2f}' for name in before))
    for text in worse:
        print(f'tar-vis bench: {text}', file=sys.stderr)
    return 1 if worse else 0


if __name__ == '__main__':
    sys.exit(main())
