"""YouTube-VIS JSON: videos whose objects carry one mask, or none, in every frame.

Format: one annotation a track with ``segmentations``, a list over the frames; frame files lie in ``JPEGImages`` beside
the JSON, or where the data sets' own archives have them (:mod:`tar_vis_core.data.folders`). Optional additions:


- ``video.exhaustive`` is 0 if further objects of the labelled categories are visible but not labelled.
- ``video.annotated`` is ``person`` if only persons are labelled (default: ``all``).
- ``video.stamps`` are the nanoseconds of each frame, by which it is found among the images of a bag.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from tar_vis_core.data.folders import check_pictures, find_pictures
from tar_vis_core.data.label_fields import Entry, Id, by_id, category_names, entries, read_labels
from tar_vis_core.media.pictures import sized_picture

KIND, USUAL, ANNOTATED = 'YouTube-VIS', 'JPEGImages', ('all', 'person')
logger = logging.getLogger(__name__)


@dataclass
class Track:
    """One labelled object of a video."""

    id: Id
    category: str
    rles: list[dict | None]        # one a frame, None if it is not seen
    crowd: bool = False            # several objects in one: neither found nor missed

    def mask(self, frame: int) -> np.ndarray | None:
        """Return the mask, boolean ``(h, w)``, or None if the object is not seen."""
        rle = self.rles[frame]
        return None if rle is None else coco_mask.decode(rle).astype(bool)


@dataclass
class VideoRecord:
    """One video of a YouTube-VIS file."""

    id: Id
    name: str
    height: int
    width: int
    paths: list[Path]
    exhaustive: bool               # False: an unmatched prediction may be a real object
    tracks: list[Track] = field(default_factory=list)
    annotated: str = 'all'         # 'person': of other categories nothing is known
    stamps_ns: tuple[int, ...] = ()    # one a frame, or none

    def frames(self) -> Iterator[np.ndarray]:
        """Return the pictures in time order, ``(h, w, 3)`` uint8 RGB."""
        return map(self.frame, range(len(self.paths)))

    def frame(self, index: int) -> np.ndarray:
        """Return one picture, ``(h, w, 3)`` uint8 RGB. Raise DataError if it is unreadable or of another size."""
        return sized_picture(self.paths[index], self.height, self.width)


def load_ytvis(json_path: str | Path, pictures: bool = True) -> list[VideoRecord]:
    """Read a YouTube-VIS file. If ``pictures`` is False, its pictures need not be there.

    Raise DataError that names the file, video or annotation that is wrong.
    """
    json_path = Path(json_path)
    content = read_labels(json_path)
    categories = category_names(json_path, content, KIND)
    videos = by_id(entries(json_path, content, 'videos', 'video', KIND), lambda video: repr(video.values.get('name')))
    names = {own: _file_names(video) for own, video in videos.items()}
    every = [name for own in names for name in names[own]]
    paths = find_pictures(json_path, every, USUAL)
    if pictures:
        check_pictures(json_path, every, paths)
    rest, records = iter(paths), {}
    for own, video in videos.items():
        height, width = video.size()
        stamps = tuple(video.list('stamps')) if video.values.get('stamps') is not None else ()
        if stamps and (not all(type(stamp) is int for stamp in stamps) or len(set(stamps)) != len(names[own])):
            raise video.error(f': {len(set(map(str, stamps)))} different stamps for {len(names[own])} frames; expected '
                              'nanoseconds, one a frame')
        name = video.text('name') if video.values.get('name') else Path(_slashes(names[own][0])).parent.name
        records[own] = VideoRecord(own, name, height, width, list(islice(rest, len(names[own]))),
                                   video.flag('exhaustive', True), annotated=video.choice('annotated', ANNOTATED),
                                   stamps_ns=stamps)
    marked = [] if 'annotations' in content and content['annotations'] is None else entries(
        json_path, content, 'annotations', 'annotation', KIND)      # null in test sets
    emptied = []
    for entry in marked:
        own, segmentations = entry.id(), entry.list('segmentations')
        record, name = records.get(entry.id('video_id')), categories.get(entry.id('category_id'))
        if record is None or name is None or len(segmentations) != len(record.paths):
            raise entry.error(f" does not fit: it names video {entry.id('video_id')!r}, category "
                              f"{entry.id('category_id')!r} and has {len(segmentations)} frames")
        if any(track.id == own for track in record.tracks):
            raise entry.error(f' occurs twice in video {record.id}; ids must be unique: were two files put together?')
        rles = [None if s is None else entry.rle(s, record.height, record.width) for s in segmentations]
        seen = [rle if rle is not None and coco_mask.area(rle) else None for rle in rles]
        emptied += [own] * (seen.count(None) - rles.count(None))
        record.tracks.append(Track(own, name, seen, entry.flag('iscrowd', False)))
    if emptied:
        logger.warning('%s: %d empty masks are taken for "not seen" (annotations %s)', json_path, len(emptied),
                       ', '.join(map(str, dict.fromkeys(emptied))))
    return list(records.values())


def _file_names(video: Entry) -> list[str]:
    """Return the names of a video's frames, in order."""
    if 'file_names' not in video.values:
        raise video.error(": field 'file_names' is missing: no YouTube-VIS, which lists the frames of a video there "
                          "(CocoVID has them as 'images' with 'video_id')")
    names = video.list('file_names')
    if not names or not all(isinstance(name, str) and name for name in names):
        raise video.error(": field 'file_names' is not a list of at least one file name")
    return names


def _slashes(name: str) -> str:
    return name.replace('\\', '/')
