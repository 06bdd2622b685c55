"""``tar-vis-bag``: make bags from a video, a folder of pictures, or labelled videos."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rclpy.exceptions import InvalidTopicNameException
from rclpy.validate_full_topic_name import validate_full_topic_name
from tqdm import tqdm

from tar_vis_core.errors import TarVisError
from tar_vis_core.flags import add_flags, chosen
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.terminal import say_anything
from tar_vis_core.io.whole_files import make_folder
from tar_vis_core.media.frames import open_frames, play
from tar_vis_core.options import Options, option, options_of
from tar_vis_ros.bags.maker import BagOptions, labelled_videos, write_images, write_labelled

INTERRUPTED = 130
LARGE = 200_000_000     # bytes: a bag of more is announced


@dataclass(frozen=True, kw_only=True)
class VideoPart(Options):
    """The part of a video that goes into a bag."""

    frames: int = option(0, 'so many at most; 0: all', low=0, high=2**31)
    width: int = option(0, 'scale to this width in pixels; 0: as they are', low=0, high=16384)


def from_video(args: argparse.Namespace, options: BagOptions) -> None:
    """Write one bag. Frames have their own times unless a rate is given."""
    part, out = chosen(args, VideoPart), args.out
    with open_frames(args.source) as reader:
        if reader.live:
            raise TarVisError(f'{args.source} is a camera; record one with tar-vis-video and ros2 bag record')
        images = play(reader, limit=part.frames, width=part.width)
        if args.fps is None:
            options = replace(options, fps=reader.fps)
        else:
            images = (frame.image for frame in images)
        total = min(part.frames or sys.maxsize, reader.count or sys.maxsize)
        images = with_disk_check(images, total, out, options)
        count = write_images(out, tqdm(images, total=None if total == sys.maxsize else total, unit='image',
                                       disable=None), options)
    print(f'{out}: {count} images on {options.full_topic}, {options.fps:g} per second')


def with_disk_check(frames: Iterable, total: int, out: Path, options: BagOptions) -> Iterator:
    """Return the frames after a word about the size of a large bag. Raise TarVisError if there is no room for it."""
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return frames
    if not options.compressed and total < sys.maxsize:
        size = total * getattr(first, 'image', first).nbytes
        folder = next(parent for parent in out.absolute().parents if parent.exists())
        room = shutil.disk_usage(folder).free
        advice = '--compressed (JPEG) makes it about a tenth of that'
        if size > room:
            raise TarVisError(f'{out} would take {size / 1e9:.2f} GB and {folder} has {room / 1e9:.2f} GB free: '
                              f'{advice}')
        if size > LARGE:
            print(f'tar-vis-bag: {out} will take {size / 1e9:.2f} GB: {advice}', file=sys.stderr)
    return itertools.chain([first], frames)


def from_youtube_vis(args: argparse.Namespace, options: BagOptions) -> None:
    """Write a bag and its ground truth for each video."""
    records = labelled_videos(args.json, args.videos)
    make_folder(args.out)
    written = write_labelled(args.json, records, args.out, options)
    images = sum(count for _, count in tqdm(written, total=len(records), unit='video', disable=None))
    print(f'{args.out}: {len(records)} bags with {images} images on {options.full_topic}, {options.fps:g} per second, '
          'and NAME.truth.json beside each')


def full_topic(text: str) -> str:
    """Return the full name of a topic. Raise ValueError for one that ROS does not take."""
    name = '/' + text.strip('/')
    try:
        validate_full_topic_name(name)
    except InvalidTopicNameException as error:
        reason = str(error).partition(':\n')[0]
        raise ValueError(f'--topic is {text!r}: {reason}') from error
    return name


def command_line() -> argparse.ArgumentParser:
    """Return the options of ``tar-vis-bag``."""
    parser = argparse.ArgumentParser(prog='tar-vis-bag', description='Make rosbag2 bags from files.')
    actions = parser.add_subparsers(required=True, metavar='ACTION')
    video = actions.add_parser('from-video', help='a video file or a folder of pictures to one bag')
    video.add_argument('source', help="a video file, a folder of images, or 'photographs': a simulated camera")
    video.add_argument('out', type=user_path, help='the bag, a folder that is not there yet')
    video.set_defaults(call=from_video)
    labelled = actions.add_parser('from-youtube-vis', help='labelled videos to a bag and its ground truth each')
    labelled.add_argument('json', type=user_path, help='YouTube-VIS file, its pictures beside it')
    labelled.add_argument('out', type=user_path, help='folder for the bags and NAME.truth.json')
    labelled.add_argument('--videos', nargs='+', default=[], metavar='NAME', help='only these (default: all)')
    labelled.set_defaults(call=from_youtube_vis)
    add_flags(video, options_of(VideoPart) | options_of(BagOptions))
    add_flags(labelled, options_of(BagOptions))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 2 after one line about an error, 130 after Ctrl-C."""
    say_anything()
    args = command_line().parse_args(argv)
    try:
        options = chosen(args, BagOptions)
        args.call(args, replace(options, topic=full_topic(options.topic)))
    except (TarVisError, ValueError, OSError) as error:
        print(f'tar-vis-bag: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == '__main__':
    sys.exit(main())
