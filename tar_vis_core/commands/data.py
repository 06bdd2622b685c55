"""``tar-vis data``: make videos, describe a data set, hold out a part of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from tar_vis_core.data.label_fields import by_id, entries, holds_videos, read_labels
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import write_text
from tar_vis_core.media.pictures import write_picture


def synth(out: Path, videos: int, frames: int, size: tuple[int, int], gaps: list[int], seed: int) -> None:
    """Write made-up videos of look-alike crowds."""
    from tar_vis_core.data.synth import SynthVideos
    from tar_vis_core.data.ytvis_writer import write_ytvis
    from tar_vis_core.models.class_sets import CROWD

    made = SynthVideos(size, frames, length=videos, seed=seed, gaps=gaps)
    clips = (made[i] for i in tqdm(range(len(made)), unit='video'))
    path = write_ytvis(out, clips, CROWD, f'tar-vis data synth --videos {videos} ' + words(frames, size, gaps, seed))
    print(f'{path}: {videos} videos of {frames} frames')


def move(stills: Path, out: Path, frames: int, size: tuple[int, int], gaps: list[int], seed: int) -> None:
    """Write videos made of stills: a camera moves over them, and objects move in them."""
    from tar_vis_core.data.coco import CocoDataset, load_coco
    from tar_vis_core.data.pseudo_video import PseudoVideoDataset
    from tar_vis_core.data.ytvis_writer import write_ytvis

    records = load_coco(stills, False)
    names = tuple(sorted({a.category for record in records for a in record.annotations}))
    crowded = {record.id for record in records if any(a.crowd for a in record.annotations)}
    data = CocoDataset(stills, size, seed=seed, skip_image_ids=crowded,
                       labels={name: number for number, name in enumerate(names)})
    videos = PseudoVideoDataset(data, frames, gaps=gaps)
    clips = (videos[i] for i in tqdm(range(len(videos)), unit='video'))
    path = write_ytvis(out, clips, names, f'tar-vis data move {stills.name} ' + words(frames, size, gaps, seed))
    left_out = f'; {len(crowded)} with unlabelled crowds left out' if crowded else ''
    print(f'{path}: {len(videos)} videos of {frames} frames{left_out}')


def words(frames: int, size: tuple[int, int], gaps: list[int], seed: int) -> str:
    """Return the options that say what clips were made, for the file's description."""
    return f'--frames {frames} --size {size[0]}x{size[1]} --seed {seed} --gaps {" ".join(map(str, gaps))}'


def split(path: Path, every: int) -> None:
    """Write two files beside an annotation file: every N-th picture or video to choose by, the others to train on."""
    content = read_labels(path)
    listed, noun = ('videos', 'video') if holds_videos(content) else ('images', 'image')
    kind = 'COCO or YouTube-VIS file that can be split'
    listing = by_id(entries(path, content, listed, noun, kind), lambda entry: repr(entry.values.get('file_name')))
    marks = entries(path, content | {'annotations': content.get('annotations') or []}, 'annotations', 'annotation',
                    kind)
    held = set(list(listing)[::every])
    if unknown := next((mark for mark in marks if mark.id(f'{noun}_id') not in listing), None):
        raise unknown.error(f" names {noun} {unknown.values[f'{noun}_id']!r}, which the file does not list")
    for name, wanted in (('fit', False), ('held', True)):
        part = content | {listed: [entry.values for own, entry in listing.items() if (own in held) == wanted],
                          'annotations': [m.values for m in marks if (m.id(f'{noun}_id') in held) == wanted]}
        written = path.with_name(f'{path.stem}_{name}.json')
        write_text(written, json.dumps(part))
        print(f'{written}: {len(part[listed])} {listed}, {len(part["annotations"])} annotations')


def check(path: Path, sheet: Path | None, seed: int) -> None:
    """Print a description of a file, and draw samples of it."""
    from tar_vis_core.data.inspection import contact_sheet, describe, open_set

    data = open_set(path)
    print('\n'.join(describe(data)))
    if sheet:
        write_picture(sheet, contact_sheet(data, seed))
        print(f'\nsamples: {sheet}')


def size(text: str) -> tuple[int, int]:
    """Return the text ``HxW`` as (height, width)."""
    height, _, width = text.partition('x')
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r}: expected HEIGHTxWIDTH in pixels, such as 192x288')
    return int(height), int(width)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``tar-vis data synth|move|check|split``."""
    parser = argparse.ArgumentParser(prog='tar-vis data', description='Make videos, check data sets, split them.')
    actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')
    making = actions.add_parser('synth', help='made-up videos of look-alike crowds, as a YouTube-VIS file')
    making.add_argument('--videos', type=int, default=50, help='number of videos (default: 50)')
    making.set_defaults(call=synth)
    moving = actions.add_parser('move', help='videos of COCO stills that a camera moves over, as a YouTube-VIS file')
    moving.add_argument('stills', type=user_path, help='COCO file, pictures beside it')
    moving.set_defaults(call=move)
    for command, frames, canvas in ((making, 36, (192, 288)), (moving, 12, (256, 384))):
        command.add_argument('out', type=user_path, help='folder for instances.json and JPEGImages')
        command.add_argument('--frames', type=int, default=frames, help=f'frames of each video (default: {frames})')
        command.add_argument('--size', type=size, default=canvas, metavar='HxW',
                             help=f'size of a frame, pixels (default: {canvas[0]}x{canvas[1]})')
        command.add_argument('--gaps', type=int, nargs='+', default=[1], metavar='N',
                             help='from one frame to the next the world advances by one of these, drawn each time; '
                                  '0: not at all (default: 1)')
        command.add_argument('--seed', type=int, default=0, help='the same seed gives the same videos (default: 0)')
    checking = actions.add_parser('check', help='describe a YouTube-VIS or COCO file, draw samples')
    checking.add_argument('path', type=user_path, help='the JSON file, or a folder with one')
    checking.add_argument('--sheet', type=user_path, metavar='PNG',
                          help='draw samples with their masks into this picture')
    checking.add_argument('--seed', type=int, default=0, help='chooses the samples (default: 0)')
    checking.set_defaults(call=check)
    splitting = actions.add_parser('split', help='hold out a part of a COCO or YouTube-VIS file')
    splitting.add_argument('path', type=user_path,
                           help='the JSON file; NAME_fit.json and NAME_held.json come beside it')
    splitting.add_argument('--every', type=int, default=15, metavar='N',
                           help='hold out every N-th picture or video, from the first (default: 15)')
    splitting.set_defaults(call=split)
    given = vars(parser.parse_args(argv))
    if given.get('every', 2) < 2:
        parser.error('--every must be at least 2')
    del given['action']
    given.pop('call')(**given)
    return 0
