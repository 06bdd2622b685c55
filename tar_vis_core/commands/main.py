"""The command ``tar-vis``: run, train, eval, bench and weights, none of which needs ROS."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tar_vis_core.errors import TarVisError

# Subcommands that parse the rest of the line themselves: module with ``main(argv)``, one line of help.
ELSEWHERE = {
    'train': ('tar_vis_core.training.train', 'train a model by a recipe'),
    'eval': ('tar_vis_core.evaluation.stills', 'mask AP on stills or videos, by layers and by routing'),
    'data': ('tar_vis_core.commands.data', 'make videos of look-alike crowds, look at data sets'),
    'study': ('tar_vis_core.commands.study', "the paper's studies: table, plot, the paper's values beside ours"),
    'bench': ('tar_vis_core.benchmark.measurement', 'time of the whole step and of its stages'),
    'weights': ('tar_vis_core.commands.weights', 'list, get, verify and convert files of weights'),
}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it runs; the words are those of the node's parameters."""
    from tar_vis_core.models.presets import PRESETS, TRACKERS

    parser.add_argument('--preset', default='nano', help=f'{", ".join(PRESETS)} (default: nano)')
    parser.add_argument('--weights', type=Path, help="safetensors file (default: the preset's packaged weights)")
    parser.add_argument('--adapter', type=Path, help='safetensors file with TAR for weights without it')
    parser.add_argument('--tracker', default='auto', help=f"auto (the model's own), {', '.join(TRACKERS)}")
    parser.add_argument('--device', default='auto', help='auto, cpu or cuda:N')
    parser.add_argument('--precision', default='float32', help='float32, float16 or bfloat16')
    parser.add_argument('--threads', type=int, default=0, help="CPU threads (default: torch's own)")


def make_segmenter(args: argparse.Namespace, options):
    """The VideoSegmenter of :func:`add_model_options`, with SegmenterOptions."""
    from tar_vis_core.segmenter import VideoSegmenter

    return VideoSegmenter(args.preset, args.weights, args.device, args.precision, options, args.threads,
                          args.tracker, args.adapter)


def run(args: argparse.Namespace) -> int:
    """``tar-vis run``: a source of frames through the segmenter, results to a folder."""
    from tar_vis_core.media.frames import open_frames, play
    from tar_vis_core.media.overlay import Trails, draw_overlay
    from tar_vis_core.media.recording import OverlayVideo, result_line
    from tar_vis_core.segmenter import SegmenterOptions

    given = {name: getattr(args, name) for name in ('routing', 'score_threshold') if getattr(args, name) is not None}
    options = SegmenterOptions(**given)
    segmenter = make_segmenter(args, options)
    state, tracks, executed, spent = segmenter.new_state(), set(), [], []
    trails = Trails()
    args.out.mkdir(parents=True, exist_ok=True)
    with open_frames(args.source) as reader, (args.out / 'instances.jsonl').open('w') as lines:
        video = OverlayVideo(args.out / 'overlay.mp4')
        try:
            for frame in tqdm(play(reader, limit=args.frames), total=args.frames or reader.count, unit='frame'):
                began = time.perf_counter()
                result = segmenter.step(frame.image, state, frame.position_s)
                spent.append(time.perf_counter() - began)
                executed.append(result.routing.executed_layers)
                tracks.update((result.track_epoch, i.track_id) for i in result.instances)
                lines.write(json.dumps({'position_s': round(frame.position_s, 6), **result_line(result)}) + '\n')
                video.add(frame.position_s, draw_overlay(frame.image, result.instances,
                                                           trails=trails.follow(result)))
        except KeyboardInterrupt:
            print('interrupted; what was done so far is kept', file=sys.stderr)
        finally:
            video.close()
    if not spent:
        raise TarVisError(f'{args.source}: no frame was read')
    print(f'{len(spent)} frames, {len(tracks)} tracks, {np.mean(executed):.2f} of {segmenter.num_layers} layers, '
          f'{1e3 * np.median(spent):.0f} ms a frame (median)\n{video.path}\n{args.out / "instances.jsonl"}')
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog='tar-vis', description='Online video instance segmentation with TAR.')
    commands = made.add_subparsers(dest='command', required=True, metavar='COMMAND')
    running = commands.add_parser('run', help='a video, folder or camera to an overlay video and instances.jsonl')
    running.add_argument('source', help="video file, folder of images, camera (0), or 'photographs'")
    running.add_argument('--out', type=Path, default=Path('results'), help='folder for the results (default: results)')
    running.add_argument('--frames', type=int, default=0, help='end after so many frames (default: all)')
    running.add_argument('--routing', help='auto (default), adaptive, full or fixed')
    running.add_argument('--score-threshold', type=float, help='score that a new track needs, 0 to 1')
    add_model_options(running)
    running.set_defaults(call=run)
    for name, (_, text) in ELSEWHERE.items():
        commands.add_parser(name, help=f'{text}; tar-vis {name} --help', add_help=False)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; gives the exit code: 0, 1 after one line about what went wrong, 2 for a wrong command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in ELSEWHERE:
            from importlib import import_module

            return import_module(ELSEWHERE[words[0]][0]).main(words[1:])
        args = parser().parse_args(words)
        return args.call(args)
    except (TarVisError, ValueError, OSError) as error:
        print(f'tar-vis: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
