"""Make bags from files: a video, a folder of pictures, or the videos of a YouTube-VIS file with their ground truth."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from tar_vis_core.data.label_fields import by_id, entries, read_labels
from tar_vis_core.data.ytvis import KIND, VideoRecord, load_ytvis
from tar_vis_core.errors import DataError
from tar_vis_core.io.whole_files import write_text
from tar_vis_core.media.frames import TimedImage
from tar_vis_core.media.pictures import JPEG_SUFFIXES, picture_header, read_picture
from tar_vis_core.options import Options, option
from tar_vis_ros.bags.reader import BagError
from tar_vis_ros.bags.writer import STORAGES, BagWriter
from tar_vis_ros.conversions.images import array_to_image

LAST_NS = 2**31 * 10**9     # stamps of ROS end before


@dataclass(frozen=True, kw_only=True)
class BagOptions(Options):
    """How images are recorded."""

    storage: str = option('mcap', 'format of the bag', choices=tuple(STORAGES))
    topic: str = option('/camera/image_raw', 'topic of the images')
    compressed: bool = option(False, 'JPEG images on TOPIC/compressed, else raw ones on TOPIC')
    quality: int = option(95, 'of the JPEG', low=1, high=100)
    frame_id: str = option('camera', 'of the headers')
    fps: float = option(10.0, "images per second; of a video its own if this is not given", low=0.001, high=10000)
    start_s: float = option(1.0, 'stamp of the first image, seconds', low=0, high=2**31 - 1)

    @property
    def full_topic(self) -> str:
        return f'{self.topic}/compressed' if self.compressed else self.topic

    def stamp_ns(self, index: int) -> int:
        """Return the stamp of image ``index``, nanoseconds."""
        return round(self.start_s * 1e9) + round(index * 1e9 / self.fps)


def write_images(path: Path, pictures: Iterable[np.ndarray | Path | TimedImage], options: BagOptions) -> int:
    """Write a bag of RGB arrays ``(H, W, 3)`` uint8, picture files or frames, header stamps and the bag's own alike.

    A frame is stamped with its own time in the source, the others by the rate. JPEG files go into a compressed bag as
    they are. Return the number of images. Raise BagError.
    """
    count = 0
    kind = CompressedImage if options.compressed else Image
    with BagWriter(path, options.storage, {options.full_topic: kind}) as bag:
        for count, picture in enumerate(pictures, 1):
            stamp_ns = options.stamp_ns(count - 1)
            if isinstance(picture, TimedImage):
                stamp_ns, picture = options.stamp_ns(0) + round(1e9 * picture.position_s), picture.image
            if stamp_ns >= LAST_NS:
                raise BagError(f'{path}: image {count} would be later than stamps of ROS can be: take an earlier start')
            header = Header(stamp=Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id=options.frame_id)
            message = jpeg_message(picture, header, options.quality) if options.compressed else array_to_image(
                rgb_pixels(picture), 'rgb8', header)
            bag.write(options.full_topic, stamp_ns, serialize_message(message))
    return count


def jpeg_message(picture: np.ndarray | Path, header: Header, quality: int) -> CompressedImage:
    """Return a JPEG message of RGB pixels or of a picture file. Raise BagError if it cannot be encoded."""
    if isinstance(picture, Path) and picture.suffix.lower() in JPEG_SUFFIXES:
        data = picture.read_bytes()
    else:
        done, encoded = cv2.imencode('.jpg', cv2.cvtColor(rgb_pixels(picture), cv2.COLOR_RGB2BGR),
                                     [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise BagError(f'a picture of shape {rgb_pixels(picture).shape} cannot be encoded as JPEG')
        data = encoded.tobytes()
    return CompressedImage(header=header, format='rgb8; jpeg compressed bgr8', data=array('B', data))


def rgb_pixels(picture: np.ndarray | Path) -> np.ndarray:
    """Return RGB ``(H, W, 3)`` uint8. Raise DataError for a file that is no picture."""
    if isinstance(picture, np.ndarray):
        return picture
    return read_picture(picture)


def labelled_videos(json_path: Path, names: Iterable[str]) -> list[VideoRecord]:
    """Return the videos of a YouTube-VIS file, or those of ``names``. Raise DataError."""
    records = load_ytvis(json_path)
    held = [record.name for record in records]
    if len(set(held)) < len(held) or not all(held):
        raise DataError(f'{json_path}: two videos have one name, or none: the folders of their pictures must differ')
    if wrong := next((name for name in held if name != Path(name).name or name == '..'), None):
        raise DataError(f'{json_path}: the name of video {wrong!r} is no name of a folder, which its bag would have')
    if unknown := set(names) - set(held):
        raise DataError(f'{json_path}: no video {", ".join(sorted(unknown))} in it; it has {", ".join(held)}')
    return [record for record in records if not names or record.name in names]


def truth_path(bag: Path) -> Path:
    """Return the path of a bag's ground truth: beside it, ``NAME.truth.json``."""
    return bag.with_name(f'{bag.stem if bag.suffix in (".db3", ".mcap") else bag.name}.truth.json')


def write_truth(json_path: Path, record: VideoRecord, bag: Path, options: BagOptions) -> Path:
    """Write the entries of one video beside its bag, ids as they were, with the stamps of its images."""
    content = read_labels(json_path)
    video = by_id(entries(json_path, content, 'videos', 'video', KIND), str)[record.id].values
    marks = entries(json_path, content | {'annotations': content['annotations'] or []}, 'annotations', 'annotation',
                    KIND)
    stamps = [options.stamp_ns(index) for index in range(len(record.paths))]
    content['videos'] = [{**video, 'name': record.name, 'stamps': stamps}]
    content['annotations'] = [mark.values for mark in marks if mark.id('video_id') == record.id]
    path = truth_path(bag)
    write_text(path, json.dumps(content))
    return path


def labelled_picture(record: VideoRecord, index: int) -> np.ndarray | Path:
    """Return the file of a frame, or its pixels if they must be turned upright to fit their labels."""
    header = picture_header(record.paths[index])
    return record.paths[index] if header and header[:2] == (record.height, record.width) else record.frame(index)


def write_labelled(json_path: Path, records: Iterable[VideoRecord], folder: Path,
                   options: BagOptions) -> Iterator[tuple[Path, int]]:
    """Write a bag ``folder/NAME`` with its truth beside it for each video. Yield its path and number of images."""
    for record in records:
        bag = folder / record.name
        count = write_images(bag, (labelled_picture(record, index) for index in range(len(record.paths))), options)
        write_truth(json_path, record, bag, options)
        yield bag, count
