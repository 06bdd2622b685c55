"""Describe a labelled data set, in words and in a picture: YouTube-VIS and COCO files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from tar_vis_core.data.coco import load_coco
from tar_vis_core.data.label_fields import category_names, holds_videos, read_labels
from tar_vis_core.data.ytvis import Track, VideoRecord, load_ytvis
from tar_vis_core.errors import DataError
from tar_vis_core.media.overlay import track_colour
from tar_vis_core.media.pictures import picture_header

CELL = 192, 288                 # height, width of a picture on a contact sheet
COLUMNS = 4


@dataclass
class LabelledSet:
    """A file of either format; an image counts as a video of one frame."""

    path: Path
    kind: str                   # 'YouTube-VIS' or 'COCO'
    classes: tuple[str, ...]
    records: list[VideoRecord]
    notes: list[str]


def open_set(path: Path) -> LabelledSet:
    """Read and check an annotation file, or the one in a folder. Raise DataError that names what is wrong."""
    if path.is_dir():
        found = sorted(file for file in path.glob('*.json') if not file.name.startswith('.'))
        if len(found) != 1:
            raise DataError(f'{path} holds {len(found)} JSON files; give the path of one')
        path = found[0]
    content = read_labels(path)
    if holds_videos(content):
        data = LabelledSet(path, 'YouTube-VIS', _classes(path, content), load_ytvis(path), [])
    else:
        images = load_coco(path, preload=False)
        labels = [annotation for image in images for annotation in image.annotations]
        counts = {'crowds': sum(a.crowd for a in labels), 'machine-made masks': sum(a.pseudo for a in labels)}
        notes = [f'{number} {name}' for name, number in counts.items() if number]
        records = [VideoRecord(image.id, image.path.name, image.height, image.width, [image.path], image.exhaustive,
                               [Track(a.id, a.category, [a.rle]) for a in image.annotations if not a.crowd])
                   for image in images]
        data = LabelledSet(path, 'COCO', _classes(path, content), records, notes)
    data.notes += check_sizes(data.records)
    return data


def _classes(path: Path, content: dict) -> tuple[str, ...]:
    return tuple(dict.fromkeys(category_names(path, content, 'COCO or YouTube-VIS').values()))


def check_sizes(records: Sequence[VideoRecord]) -> list[str]:
    """Compare the pictures' headers with the sizes in the file; return notes on EXIF orientations.

    Raise DataError for a picture of another size, or one that cannot be read.
    """
    turned, ignored = [], []
    pictures = [(record, index) for record in records for index in range(len(record.paths))]
    for record, index in tqdm(pictures, desc='pictures', unit='picture', leave=False, delay=2):
        path, size = record.paths[index], (record.height, record.width)
        height, width, orientation = picture_header(path) or (0, 0, 1)
        if (height, width) != size:
            record.frame(index)     # follows the orientation, or raises
            turned.append(path)
        elif orientation in range(2, 9):
            ignored.append(path)
    return [f'{len(paths)} pictures have an EXIF orientation that {what}, such as {paths[0]}' for paths, what in (
        (turned, 'is followed, for their labels are of the upright picture'),
        (ignored, 'is not followed, for the size in the file fits the stored picture')) if paths]


def describe(data: LabelledSet) -> list[str]:
    """Return lines: how many, how long, how large, how completely labelled, and a table of the classes."""
    records, unit = data.records, 'videos' if data.kind == 'YouTube-VIS' else 'images'
    frames = [len(record.paths) for record in records]
    partly = sum(not record.exhaustive for record in records)
    lines = [f'{data.path}: {data.kind}, {len(records)} {unit}, no picture is missing']
    if unit == 'videos':
        lines.append(f'frames   {sum(frames)}; a video has {_span(frames)}')
    lines.append('sizes    ' + _common(f'{record.width}x{record.height}' for record in records))
    lines.append('labels   ' + (f'{partly} {unit} show objects that are not labelled (exhaustive: 0)' if partly else
                                f'complete in all {unit}') + ''.join(f'; {note}' for note in data.notes))
    tracks = [track for record in records for track in record.tracks]
    lines.append(f'objects  {len(tracks)}; {_span([len(r.tracks) for r in records])} in one of the {unit}')
    lines += ['', f'{"class":24} {"objects":>9} {"masks":>9} {"median pixels":>14}']
    for name in data.classes:
        own = [track for track in tracks if track.category == name]
        # one at a time: pycocotools 2.0 with numpy 2 fails on lists of more than 255
        areas = [int(coco_mask.area(rle)) for track in own for rle in track.rles if rle is not None]
        median = f'{np.median(areas):.0f}' if areas else '-'
        lines.append(f'{name:24} {len(own):9} {len(areas):9} {median:>14}')
    return lines


def _span(numbers: list[int]) -> str:
    if not numbers:
        return 'none'
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f'{low} to {high} (median {np.median(numbers):g})'


def _common(texts: Iterable[str], most: int = 5) -> str:
    counts = Counter(texts)
    rest = len(counts) - most
    return ', '.join(f'{text} ({n})' for text, n in counts.most_common(most)) + (f', {rest} others' if rest > 0 else '')


def contact_sheet(data: LabelledSet, seed: int = 0, rows: int = 5) -> np.ndarray:
    """Return random samples as one RGB picture. A row shows four frames of a video, or four images, above their masks.

    Raise DataError for pictures that cannot be read or are not of the size that the file says.
    """
    rng = np.random.default_rng(seed)
    if data.kind == 'YouTube-VIS':
        chosen = rng.permutation(len(data.records))[:rows]
        places = [[(data.records[i], int(frame)) for frame in np.linspace(0, len(data.records[i].paths) - 1, COLUMNS)]
                  for i in chosen]
    else:
        chosen = rng.permutation(len(data.records))[:rows * COLUMNS]
        places = [[(data.records[i], 0) for i in chosen[start:start + COLUMNS]]
                  for start in range(0, len(chosen), COLUMNS)]
    height, width = CELL
    sheet = np.full((2 * height * max(1, len(places)), COLUMNS * width, 3), 255, np.uint8)
    for row, line in enumerate(places):
        for column, (record, frame) in enumerate(line):
            image = record.frame(frame)
            x = column * width
            for half, picture in enumerate((image, painted_masks(record, frame, image))):
                y = (2 * row + half) * height
                scale = min(height / image.shape[0], width / image.shape[1])
                small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:height, :width]
                sheet[y:y + small.shape[0], x:x + small.shape[1]] = small
    return sheet


def painted_masks(record: VideoRecord, frame: int, image: np.ndarray) -> np.ndarray:
    """Return a darkened copy of a frame with its masks. An object has the same colour throughout its video."""
    picture = image // 3
    for index, track in enumerate(record.tracks):
        mask = track.mask(frame)
        if mask is not None:
            picture[mask] = 0.4 * image[mask] + 0.6 * np.array(track_colour(index))
    return picture
