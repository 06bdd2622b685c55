"""``tar-vis-bag``: make bags from a video, a folder of pictures, or labelled videos."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rclpy.exceptions import InvalidTopicNameException
from rclpy.validate_full_topic_name import validate_full_topic_name
from tqdm import tqdm

from tar_vis_core.errors import TarVisError
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.terminal import say_anything
from tar_vis_core.io.whole_files import make_folder
from tar_vis_core.media.frames import open_frames, play
from tar_vis_ros.bags.maker import BagOptions, labelled_videos, write_images, write_labelled
from tar_vis_ros.bags.writer import STORAGES

INTERRUPTED = 130
LARGE = 200_000_000     # bytes: a bag of more is announced


def from_video(source: str, out: Path, frames: int, width: int, fps: float | None, **how: Any) -> None:
    """Write one bag; ``how`` are fields of BagOptions."""
    with open_frames(source) as reader:
        if reader.live:
            raise TarVisError(f'{source} is a camera; record one with tar-vis-video and ros2 bag record')
        played = play(reader, limit=frames, width=width)
        images = played if fps is None else (frame.image for frame in played)     # else by their own times
        total = min(frames or sys.maxsize, reader.count or sys.maxsize)
        options = BagOptions(fps=fps or reader.fps, **how)
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


def from_youtube_vis(json: Path, out: Path, videos: list[str], fps: float | None, **how: Any) -> None:
    """Write a bag and its ground truth for each video; ``how`` are fields of BagOptions."""
    records, options = labelled_videos(json, videos), BagOptions(fps=fps or BagOptions.fps, **how)
    make_folder(out)
    written = write_labelled(json, records, out, options)
    images = sum(count for _, count in tqdm(written, total=len(records), unit='video', disable=None))
    print(f'{out}: {len(records)} bags with {images} images on {options.full_topic}, {options.fps:g} per second, '
          'and NAME.truth.json beside each')


def number_between(low: float, high: float, kind: type = float):
    """Return an argparse type: a number from ``low`` to ``high``."""
    def parse(text: str) -> float:
        try:
            if low <= kind(text) <= high:
                return kind(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f'{text!r}: expected a number from {low:g} to {high:g}')
    return parse


def topic(text: str) -> str:
    """Return the full name of a topic, as an argparse type."""
    name = '/' + text.strip('/')
    try:
        validate_full_topic_name(name)
    except InvalidTopicNameException as error:
        reason = str(error).partition(':\n')[0]
        raise argparse.ArgumentTypeError(f'{text!r}: {reason}') from error
    return name


def command_line() -> argparse.ArgumentParser:
    """Return the options of ``tar-vis-bag``."""
    parser = argparse.ArgumentParser(prog='tar-vis-bag', description='Make rosbag2 bags from files.')
    actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')
    video = actions.add_parser('from-video', help='a video file or a folder of pictures to one bag')
    video.add_argument('source', help="a video file, a folder of images, or 'photographs': a simulated camera")
    video.add_argument('out', type=user_path, help='the bag, a folder that is not there yet')
    video.add_argument('--frames', type=number_between(0, 2**31, int), default=0,
                       help='so many at most (default: 0, all)')
    video.add_argument('--width', type=number_between(0, 16384, int), default=0,
                       help='scale to this width in pixels (default: 0, as they are)')
    labelled = actions.add_parser('from-youtube-vis', help='labelled videos to a bag and its ground truth each')
    labelled.add_argument('json', type=user_path, help='YouTube-VIS file, its pictures beside it')
    labelled.add_argument('out', type=user_path, help='folder for the bags and NAME.truth.json')
    labelled.add_argument('--videos', nargs='+', default=[], metavar='NAME', help='only these (default: all)')
    for action, rate in ((video, "the video's own"), (labelled, f'{BagOptions.fps:g}')):
        action.add_argument('--storage', choices=STORAGES, default=BagOptions.storage,
                            help='format of the bag (default: %(default)s)')
        action.add_argument('--topic', type=topic, default=BagOptions.topic,
                            help='topic of the images (default: %(default)s)')
        action.add_argument('--compressed', action='store_true',
                            help='JPEG images on TOPIC/compressed (default: raw ones on TOPIC)')
        action.add_argument('--quality', type=number_between(1, 100, int), default=BagOptions.quality,
                            help='of the JPEG (default: %(default)s)')
        action.add_argument('--frame-id', default=BagOptions.frame_id, help='of the headers (default: %(default)s)')
        action.add_argument('--fps', type=number_between(0.001, 10000), help=f'images per second (default: {rate})')
        action.add_argument('--start', dest='start_s', type=number_between(0, 2**31 - 1), default=BagOptions.start_s,
                            metavar='SECONDS', help='stamp of the first image (default: %(default)g)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 2 after one line about an error, 130 after Ctrl-C."""
    say_anything()
    given = vars(command_line().parse_args(argv))
    call = {'from-video': from_video, 'from-youtube-vis': from_youtube_vis}[given.pop('action')]
    try:
        call(**given)
    except (TarVisError, OSError) as error:
        print(f'tar-vis-bag: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == '__main__':
    sys.exit(main())
