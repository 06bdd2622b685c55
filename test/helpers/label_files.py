"""Small YouTube-VIS files, and what is read of a label file or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH, ellipse, rle_of

from tar_vis_core.data.coco import load_coco
from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.errors import DataError
from tar_vis_core.media.pictures import write_picture

FULL = rle_of(ellipse(40, 40, 20, 20))


def write_ytvis(folder: Path, videos: int = 2, frames: int = 2, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    names = [[f'v{number}/{frame}.jpg' for frame in range(frames)] for number in range(1, videos + 1)]
    for name in (name for own in names for name in own):
        (folder / 'JPEGImages' / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(folder / 'JPEGImages' / name, np.full((*size, 3), 90, np.uint8))
    content = {'categories': [{'id': 1, 'name': 'person'}],
               'videos': [{'id': n, 'width': WIDTH, 'height': HEIGHT, 'file_names': own}
                          for n, own in enumerate(names, 1)],
               'annotations': [{'id': n, 'video_id': n, 'category_id': 1, 'segmentations': [FULL] * frames}
                               for n in range(1, videos + 1)]}
    (folder / 'videos.json').write_text(json.dumps(content))
    return folder / 'videos.json'


def load(path: Path) -> list:
    return load_ytvis(path) if path.name == 'videos.json' else load_coco(path)


def refused(path: Path, *words: str) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(DataError) as caught:
        load(path)
    text = str(caught.value)
    assert '\n' not in text and len(text) < 500, text
    assert str(path) in text and all(word in text for word in words), text
    return text
