"""Frames from a video file, a folder of images, a camera or the built-in photographs; no ROS in here.

``open_frames(source)`` returns a reader. ``play(reader, ...)`` yields its frames one by one, with loop, limit and size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from tar_vis_core.io.input_files import problem_of
from tar_vis_core.io.paths import user_path
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
MIN_STEP_S = 1e-4       # between two frames: times that grow by less stand still


@dataclass(frozen=True)
class TimedImage:
    """One image and its position in the source."""

    image: np.ndarray        # uint8 RGB (H, W, 3)
    index: int               # frames given so far, over all passes
    position_s: float        # seconds since the first frame, in the source's own time; grows over loops
    pass_position_s: float   # seconds since the first frame of this pass; 0 again after a loop


def open_frames(source: str, rate: float = 0.0, width: int = 0) -> FrameReader:
    """Return the reader that fits ``source``.

    ``source`` is a video file, an image, a folder of images, a camera (``0`` or ``/dev/video0``), or ``photographs``
    (also when empty). ``rate`` and ``width`` are for cameras only. Raise SourceError with one line
    that says what to do.
    """
    if source in ('', PHOTOGRAPHS):
        return PhotographReader()
    if source.isdigit() or source.startswith('/dev/video'):
        return CameraReader(source, rate, width)
    path = user_path(source)
    if path.is_char_device():       # whatever it is called: /dev/v4l/by-id/.. are names that last
        return CameraReader(str(path), rate, width)
    if path.is_dir():
        return ImageFilesReader(path)
    if problem := problem_of(path):
        raise SourceError(f'{source}: {problem.replace("file", "file or folder", 1)} (expected a video file, a folder '
                          f'of images, a camera such as 0 or /dev/video0, or {PHOTOGRAPHS})')
    return ImageFilesReader(path) if path.suffix.lower() in IMAGE_SUFFIXES else VideoFileReader(path)


def play(reader: FrameReader, loop: bool = False, limit: int = 0, width: int = 0) -> Iterator[TimedImage]:
    """Yield the reader's next frames, at most ``limit`` (0 = all), scaled to ``width`` (0 = as they are).

    With ``loop`` it starts again after the last one. Raise SourceError if a pass gives nothing.
    """
    index, clock, begun = 0, SourceClock(reader.fps), time.monotonic()
    while not limit or index < limit:
        image = reader.read()
        if image is None:
            if clock.passed_s is None:
                raise SourceError(f'{reader.name} holds no frames')
            if not loop:
                return
            clock.next_pass()
            reader.rewind()
            continue
        clock.tick(time.monotonic() - begun if reader.live else reader.time_s)
        yield TimedImage(resize_to_width(image, width), index, clock.offset_s + clock.passed_s, clock.passed_s)
        index += 1


class SourceClock:
    """Seconds since the first frame: by the source's own times, by its rate if it has none or if they do not change."""

    def __init__(self, fps: float):
        self.period_s = 1 / fps
        self.offset_s = 0.0                     # what the passes before this one took
        self.passed_s: float | None = None      # of the newest frame in this pass; None before the first
        self._first_s = 0.0

    def tick(self, time_s: float | None) -> None:
        """Take the time of the next frame, None if the source does not say."""
        known = time_s if time_s is not None and math.isfinite(time_s) else None
        if self.passed_s is None:
            self._first_s, self.passed_s = known or 0.0, 0.0
            return
        known_s = -1.0 if known is None else known - self._first_s
        self.passed_s = known_s if known_s > self.passed_s + MIN_STEP_S else self.passed_s + self.period_s

    def next_pass(self) -> None:
        """Continue a period after the last frame of the pass that ends."""
        self.offset_s += (self.passed_s or 0.0) + self.period_s
        self.passed_s = None


def resize_to_width(image: np.ndarray, width: int) -> np.ndarray:
    """Return the image at ``width`` pixels with its aspect kept (0 = unchanged)."""
    h, w = image.shape[:2]
    if not width or width == w:
        return image
    size = (width, max(1, round(h * width / w)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if width < w else cv2.INTER_LINEAR)
