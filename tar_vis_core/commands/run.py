"""Segment a video, a folder or a camera. Write an overlay video, and one line of JSON for each frame."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tar_vis_core.errors import TarVisError
from tar_vis_core.flags import add_flags, chosen
from tar_vis_core.foreign.foreign_segmenter import open_segmenter
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import make_folder
from tar_vis_core.media.frames import open_frames, play
from tar_vis_core.media.overlay import Trails, draw_overlay
from tar_vis_core.media.recording import JsonLines, OverlayVideo, result_line
from tar_vis_core.models.presets import FOREIGN, PRESETS
from tar_vis_core.options import OPTIONS, EngineOptions, SegmenterOptions, option, options_of


@dataclass(frozen=True, kw_only=True)
class RunModel(EngineOptions):
    """The model of a command line."""

    preset: str = option('nano', ', '.join(PRESETS) + ''.join(
        f'; {name}: your own, --weights is {what}' for name, what in FOREIGN.items()))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog='tar-vis run', description=__doc__)
    made.add_argument('source', help="video file, folder of images, camera (0), or 'photographs'")
    made.add_argument('--out', type=user_path, default=Path('results'),
                      help='folder for the results (default: results)')
    made.add_argument('--frames', type=int, default=0, help='end after so many frames (default: all)')
    add_flags(made.add_argument_group('model'), options_of(RunModel))
    add_flags(made.add_argument_group('segmenter'), OPTIONS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Segment a source of frames, and write the results to a folder."""
    args = parser().parse_args(argv)
    model = chosen(args, RunModel)
    segmenter = open_segmenter(
        model.preset, model.weights or None, model.device, model.precision, chosen(args, SegmenterOptions),
        model.threads, model.tracker, model.adapter or None, model.engine)
    state, tracks, executed, spent, reused = segmenter.new_state(), set(), [], [], 0
    trails = Trails()
    make_folder(args.out)
    with open_frames(args.source) as reader, closing(OverlayVideo(args.out / 'overlay.mp4')) as video, \
            closing(JsonLines(args.out / 'instances.jsonl')) as lines:
        try:
            for frame in tqdm(play(reader, limit=args.frames), total=args.frames or reader.count, unit='frame'):
                began = time.perf_counter()
                result = segmenter.step(frame.image, state, frame.position_s)
                spent.append(time.perf_counter() - began)
                executed.append(result.routing.executed_layers)
                reused += result.encoder_reused
                tracks.update((result.track_epoch, i.track_id) for i in result.instances)
                lines.write({'position_s': round(frame.position_s, 6), **result_line(result)})
                video.add(frame.position_s, draw_overlay(frame.image, result.instances,
                                                           trails=trails.follow(result)))
        except KeyboardInterrupt:
            print('interrupted; the results so far are kept', file=sys.stderr)
    if not spent:
        raise TarVisError(f'{args.source}: no frame was read')
    layers = f'{np.mean(executed):.2f} of {segmenter.num_layers} layers, ' if segmenter.num_layers else ''
    still = f' ({reused} stood still)' if reused else ''
    print(f'{len(spent)} frames{still}, {len(tracks)} tracks, {layers}'
          f'{1e3 * np.mean(spent):.0f} ms a frame (mean; median {1e3 * np.median(spent):.0f})\n'
          f'{video.path}\n{args.out / "instances.jsonl"}')
    return 0
