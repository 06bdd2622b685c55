"""Frames from a video file, a folder of images, a camera or the built-in photographs; no ROS in here.

``open_frames(source)`` gives a reader, ``play(reader, ...)`` gives its frames one by one, with loop, limit and size.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tar_vis_core.media.photographs import PhotographReader
from tar_vis_core.media.readers import (
    IMAGE_SUFFIXES,
    CameraReader,
    FrameReader,
    ImageFilesReader,
    SourceError,
    VideoFileReader,
)

PHOTOGRAPHS = 'photographs'


@dataclass(frozen=True)
class Frame:
    """One image and where it stands in its source."""

    image: np.ndarray        # uint8 RGB (H, W, 3)
    index: int               # frames given so far, over all passes
    position_s: float        # seconds since the first frame, in the source's own time; grows over loops
    pass_position_s: float   # seconds since the first frame of this pass; 0 again after a loop


def open_frames(source: str, rate: float = 0.0, width: int = 0, seed: int = 0) -> FrameReader:
    """The reader that fits ``source``.

    ``source`` is a video file, an image, a folder of images, a camera (``0`` or ``/dev/video0``), or ``photographs``
    (also when empty). ``rate`` and ``width`` are wishes that only a camera takes here; ``seed`` varies the
    photographs' camera motion. Raises SourceError with one line that says what to do.
    """
    if source in ('', PHOTOGRAPHS):
        return PhotographReader(seed=seed)
    if source.isdigit() or source.startswith('/dev/video'):
        return CameraReader(source, rate, width)
    path = Path(source).expanduser()
    if path.is_dir():
        return ImageFilesReader(path)
    if not path.is_file():
        raise SourceError(f'no such file or folder: {source} (expected a video file, a folder of images, a camera '
                          f'such as 0 or /dev/video0, or {PHOTOGRAPHS})')
    if not os.access(path, os.R_OK):
        raise SourceError(f'no permission to read {source}')
    return ImageFilesReader(path) if path.suffix.lower() in IMAGE_SUFFIXES else VideoFileReader(path)


def play(reader: FrameReader, loop: bool = False, limit: int = 0, width: int = 0) -> Iterator[Frame]:
    """The reader's frames from where it stands, at most ``limit`` (0 = all), scaled to ``width`` (0 = as they are).

    With ``loop`` it starts again after the last one. Raises SourceError where a pass gives nothing.
    """
    index = in_pass = 0
    offset_s, begun = 0.0, time.monotonic()
    while not limit or index < limit:
        image = reader.read()
        if image is None:
            if not in_pass:
                raise SourceError(f'{reader.name} holds no frames')
            if not loop:
                return
            offset_s += in_pass / reader.fps
            in_pass = 0
            reader.rewind()
            continue
        position_s = time.monotonic() - begun if reader.live else in_pass / reader.fps
        yield Frame(resize_to_width(image, width), index, offset_s + position_s, position_s)
        index += 1
        in_pass += 1


def resize_to_width(image: np.ndarray, width: int) -> np.ndarray:
    """The image at ``width`` pixels with its aspect kept (0 = unchanged)."""
    h, w = image.shape[:2]
    if not width or width == w:
        return image
    size = (width, max(1, round(h * width / w)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if width < w else cv2.INTER_LINEAR)
