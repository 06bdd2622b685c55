"""YouTube-VIS JSON: videos whose objects carry one mask, or none, in every frame.

Format: one annotation a track with ``segmentations``, a list over the frames; frame files lie in ``JPEGImages`` beside
the JSON, or where the data sets' own archives have them (:mod:`tar_vis_core.data.folders`). Optional additions:
``video.exhaustive`` 0 where further objects of the labelled categories are visible but not labelled;
``video.annotated`` ``person`` (default: ``all``) where only persons are labelled; ``video.stamps``, nanoseconds of each
frame, where they are to be found among the images of a bag.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from tar_vis_core.data.folders import picture_folder
from tar_vis_core.data.rle import to_rle
from tar_vis_core.errors import DataError


@dataclass
class Track:
    """One labelled object of a video."""

    id: int
    category: str
    rles: list[dict | None]        # one a frame, None where it is not seen
    crowd: bool = False            # several objects in one: neither found nor missed

    def mask(self, frame: int) -> np.ndarray | None:
        """Boolean ``(h, w)``, None where the object is not seen."""
        rle = self.rles[frame]
        return None if rle is None else coco_mask.decode(rle).astype(bool)


@dataclass
class VideoRecord:
    """One video of a YouTube-VIS file."""

    id: int
    name: str
    height: int
    width: int
    paths: list[Path]
    exhaustive: bool               # False: an unmatched prediction may be a real object
    tracks: list[Track] = field(default_factory=list)
    annotated: str = 'all'         # 'person': of other categories nothing is known
    stamps_ns: tuple[int, ...] = ()    # one a frame, or none

    def frames(self) -> Iterator[np.ndarray]:
        """The pictures in time order, ``(h, w, 3)`` uint8 RGB."""
        return map(self.frame, range(len(self.paths)))

    def frame(self, index: int) -> np.ndarray:
        """One picture, ``(h, w, 3)`` uint8 RGB. Raises DataError where it is unreadable or of another size."""
        path = self.paths[index]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise DataError(f'{path}: not a readable image; expected JPEG or PNG')
        if image.shape[:2] != (self.height, self.width):
            raise DataError(f'{path}: the image is {image.shape[1]}x{image.shape[0]}, '
                            f'its annotation file says {self.width}x{self.height}')
        return image


def load_ytvis(json_path: str | Path, pictures: bool = True) -> list[VideoRecord]:
    """Read a YouTube-VIS file, whose pictures need not be there where ``pictures`` is False.

    Raises DataError naming the file, video or annotation that is wrong.
    """
    json_path = Path(json_path)
    if not json_path.is_file():
        raise DataError(f'{json_path}: no such annotation file; give the path of a YouTube-VIS JSON')
    try:
        content = json.loads(json_path.read_text())
        categories = {c['id']: c['name'] for c in content['categories']}
        videos, annotations = content['videos'], content['annotations'] or []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{json_path}: not a YouTube-VIS file ({type(error).__name__}: {error})') from error
    records, folder = {}, None
    for entry in videos:
        folder = folder or picture_folder(json_path, entry['file_names'][0], 'JPEGImages')
        paths = [folder / name for name in entry['file_names']]
        missing = next((path for path in paths if not path.is_file()), None) if pictures else None
        if missing:
            raise DataError(f"{json_path}: video {entry['id']}: {missing} is missing; extract the whole archive")
        annotated = entry.get('annotated', 'all')
        if annotated not in ('all', 'person'):
            raise DataError(f"{json_path}: video {entry['id']}: annotated is {annotated!r}, expected 'all' or 'person'")
        stamps = tuple(entry.get('stamps', ()))
        if stamps and len(set(stamps)) != len(paths):
            raise DataError(f"{json_path}: video {entry['id']}: {len(set(stamps))} different stamps for {len(paths)} "
                            'frames')
        name = entry.get('name') or Path(entry['file_names'][0]).parent.name
        records[entry['id']] = VideoRecord(entry['id'], name, entry['height'], entry['width'], paths,
                                           bool(entry.get('exhaustive', 1)), annotated=annotated, stamps_ns=stamps)
    for entry in annotations:
        record, name = records.get(entry['video_id']), categories.get(entry['category_id'])
        if record is None or name is None or len(entry['segmentations']) != len(record.paths):
            raise DataError(f"{json_path}: annotation {entry['id']} does not fit: it names video {entry['video_id']}, "
                            f"category {entry['category_id']} and has {len(entry['segmentations'])} frames")
        try:
            rles = [None if s is None else to_rle(s, record.height, record.width) for s in entry['segmentations']]
        except Exception as error:                           # pycocotools raises bare Exception, too
            raise DataError(f"{json_path}: annotation {entry['id']}: bad segmentation: {error}") from error
        record.tracks.append(Track(entry['id'], name, rles, bool(entry.get('iscrowd', 0))))
    return list(records.values())
