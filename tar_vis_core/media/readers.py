"""Readers of a video file, a folder of images and a camera: images one by one; no ROS in here."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from tar_vis_core.errors import TarVisError
from tar_vis_core.io.input_files import what_it_is
from tar_vis_core.media.pictures import PictureError, max_pixels, read_picture, stderr_into

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
FOLDER_FPS = 10.0       # a folder of images has no rate of its own
FALLBACK_FPS = 25.0     # for a video file that states none
ENOUGH = 0.9            # of the frames that a video declares: some containers only estimate them by length and rate
# FFmpeg's decoders run in threads that write also between our calls: only FFmpeg itself can keep them quiet (-8, its
# AV_LOG_QUIET). OpenCV reads this when it opens its first video.
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
logger = logging.getLogger(__name__)


class SourceError(TarVisError):
    """A source of frames is missing, unreadable or empty."""


class FrameReader(ABC):
    """The interface of all readers. A reader is a context manager that closes its source."""

    name: str = ''
    fps: float = FOLDER_FPS      # the source's own rate
    count: int | None = None     # frames in one pass, if the source has the number
    live: bool = False           # a camera: it sets the pace and cannot be rewound
    time_s: float | None = None  # of the image read last, in the source's own time, if the source has times

    @abstractmethod
    def read(self) -> np.ndarray | None:
        """Return the next image, uint8 RGB ``(H, W, 3)``, or None after the last one."""

    @abstractmethod
    def rewind(self) -> None:
        """Start again at the first frame."""

    def close(self) -> None:  # noqa: B027 (most have nothing to free)
        """Free the file or the camera."""

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class VideoFileReader(FrameReader):
    """A video file, decoded by OpenCV."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = self.path.name
        self._capture = None
        self._given = 0
        self._first: np.ndarray | None = None
        self.rewind()
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 240 else FALLBACK_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if count > 0 else None

    def rewind(self) -> None:
        # Opened anew: seeking to frame 0 is not reliable in every container.
        self.close()
        with quiet_stderr():
            self._capture = cv2.VideoCapture(str(self.path))
            sides = [self._capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
            if math.prod(sides) > max_pixels():
                self.close()
                raise SourceError(f'{self.path} declares {sides[0]:.0f}x{sides[1]:.0f} pixels, at most {max_pixels()} '
                                  'are read')
            good, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not good:
            self.close()
            with self.path.open('rb') as file:
                known = what_it_is(file.read(512))
            raise SourceError(f'cannot read a frame from {self.path}: ' + (
                f'it is {known}' if known else 'not a video that OpenCV decodes, or damaged'))
        self._first, self._given = self._taken(first), 1

    def _taken(self, image: np.ndarray) -> np.ndarray:
        self.time_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def read(self) -> np.ndarray | None:
        if self._first is not None:
            image, self._first = self._first, None
            return image
        with quiet_stderr():
            good, image = self._capture.read()
        self._given += good
        if not good and self.count and self._given < ENOUGH * self.count - 1:
            logger.warning('%s: %d frames could be read, and it says that it has %d: it may be cut off or damaged',
                           self.path, self._given, self.count)
            self.count = self._given    # warned once
        return self._taken(image) if good else None

    def close(self) -> None:
        if self._capture is not None:
            with quiet_stderr():    # messages of the decoder's threads come late
                self._capture.release()
            self._capture = None


class ImageFilesReader(FrameReader):
    """The images of a folder in natural order (``2.png`` before ``10.png``), or one image."""

    def __init__(self, path: str | Path):
        path = Path(path)
        self.name = path.name or str(path)
        files = [path] if path.is_file() else [p for p in path.iterdir() if is_picture(p)]
        if not files:
            raise SourceError(f'no images in {path}: expected files that end in {", ".join(IMAGE_SUFFIXES)}')
        self.files = sorted(files, key=_natural)
        self.count = len(self.files)
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def read(self) -> np.ndarray | None:
        if self._next >= len(self.files):
            return None
        path = self.files[self._next]
        self._next += 1
        return read_image(path)


def is_picture(path: Path) -> bool:
    """Return whether a file of a folder is one of its pictures: hidden ones, such as ``._1.jpg`` of a Mac, are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.') and path.is_file()


class CameraReader(FrameReader):
    """A V4L2 camera. Frames that come faster than ``rate`` are passed over, so the newest one is given."""

    live = True

    def __init__(self, device: str, rate: float = 0.0, width: int = 0):
        path = camera_path(device)
        self.name = path
        self.rate = rate
        self._due = 0.0
        with quiet_stderr():
            number = re.fullmatch(r'/dev/video(\d+)', os.path.realpath(path))     # by-id and by-path are links
            self._capture = cv2.VideoCapture(int(number.group(1)) if number else path, cv2.CAP_V4L2)
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            if width:
                self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
            good = self._capture.isOpened() and self._capture.grab()
        if not good:
            self._capture.release()
            raise SourceError(f'{path} gives no picture: in use elsewhere, or not a capture device ({_cameras_here()})')
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 240 else 30.0

    def rewind(self) -> None:
        raise SourceError(f'{self.name} is a camera and cannot start again')

    def read(self) -> np.ndarray | None:
        while True:
            if not self._capture.grab():
                raise SourceError(f'{self.name} stopped giving pictures')
            now = time.monotonic()
            # Half a camera frame early is on time, or a 30 Hz camera asked for 10 Hz would give 7.5.
            if now >= self._due - 0.5 / self.fps:
                break
        self._due = max(self._due, now - 1.0 / self.fps) + (1.0 / self.rate if self.rate > 0 else 0.0)
        good, image = self._capture.retrieve()
        if not good:
            raise SourceError(f'{self.name} stopped giving pictures')
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._capture.release()


def camera_path(device: str) -> str:
    """Return the device file of a camera, given as ``0`` or ``/dev/video0``. Raise SourceError if it does not open."""
    path = f'/dev/video{device}' if device.isdigit() else device
    if not Path(path).exists():
        raise SourceError(f'there is no camera {path} ({_cameras_here()})')
    if not os.access(path, os.R_OK | os.W_OK):
        raise SourceError(f'no permission to open {path}: add your user to the group that owns it (often video)')
    return path


def read_image(path: Path) -> np.ndarray:
    """Return an image file upright, uint8 RGB ``(H, W, 3)``. Raise SourceError if it cannot be decoded."""
    try:
        return read_picture(path, cv2.IMREAD_COLOR_RGB)
    except PictureError as error:
        raise SourceError(f'cannot read {error}') from error


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep the codecs' own messages off the terminal: our own error line has all that matters."""
    with open(os.devnull, 'wb') as null, stderr_into(null):
        yield


def _natural(path: Path) -> list:
    return [(0, int(part), '') if part.isdigit() else (1, 0, part) for part in re.split(r'(\d+)', path.name)]


def _cameras_here() -> str:
    found = sorted((str(p) for p in Path('/dev').glob('video*')), key=lambda p: _natural(Path(p)))
    return f'found: {", ".join(found)}' if found else 'no /dev/video* exists on this machine'
