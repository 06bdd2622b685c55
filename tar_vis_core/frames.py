"""Frames from a video file, a folder of images, a camera or the built-in photographs; no ROS in here.

``open_frames(source)`` gives a reader, ``play(reader, ...)`` gives its frames one by one, with loop, limit and size.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tar_vis_core.errors import TarVisError

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
PHOTOGRAPHS = 'photographs'
FOLDER_FPS = 10.0       # a folder of images has no rate of its own
FALLBACK_FPS = 25.0     # for a video file that states none


class SourceError(TarVisError):
    """A source of frames is missing, unreadable or empty."""


@dataclass(frozen=True)
class Frame:
    """One image and where it stands in its source."""

    image: np.ndarray        # uint8 RGB (H, W, 3)
    index: int               # frames given so far, over all passes
    position_s: float        # seconds since the first frame, in the source's own time; grows over loops
    pass_position_s: float   # seconds since the first frame of this pass; 0 again after a loop


class FrameReader(ABC):
    """What every reader offers; a reader is a context manager that closes what it opened."""

    name: str = ''
    fps: float = FOLDER_FPS      # the source's own rate
    count: int | None = None     # frames in one pass, where the source says so
    live: bool = False           # a camera: it sets the pace and cannot be rewound

    @abstractmethod
    def read(self) -> np.ndarray | None:
        """The next image, uint8 RGB ``(H, W, 3)``, or None after the last one."""

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
            good, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not good:
            self.close()
            raise SourceError(f'cannot read a frame from {self.path}: not a video that OpenCV decodes, or damaged')
        self._first = cv2.cvtColor(first, cv2.COLOR_BGR2RGB)

    def read(self) -> np.ndarray | None:
        if self._first is not None:
            image, self._first = self._first, None
            return image
        with quiet_stderr():
            good, image = self._capture.read()
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if good else None

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class ImageFilesReader(FrameReader):
    """The images of a folder in natural order (``2.png`` before ``10.png``), or one image."""

    def __init__(self, path: str | Path):
        path = Path(path)
        self.name = path.name or str(path)
        files = [path] if path.is_file() else [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
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


class CameraReader(FrameReader):
    """A V4L2 camera. Frames that come faster than ``rate`` are passed over, so the newest one is given."""

    live = True

    def __init__(self, device: str, rate: float = 0.0, width: int = 0):
        path = camera_path(device)
        self.name = path
        self.rate = rate
        self._due = 0.0
        with quiet_stderr():
            number = re.fullmatch(r'/dev/video(\d+)', path)
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
    """The device file of a camera given as ``0`` or ``/dev/video0``; SourceError where it cannot be opened."""
    path = f'/dev/video{device}' if device.isdigit() else device
    if not Path(path).exists():
        raise SourceError(f'there is no camera {path} ({_cameras_here()})')
    if not os.access(path, os.R_OK | os.W_OK):
        raise SourceError(f'no permission to open {path}: add your user to the group that owns it (often video)')
    return path


def open_frames(source: str, rate: float = 0.0, width: int = 0, seed: int = 0) -> FrameReader:
    """The reader that fits ``source``.

    ``source`` is a video file, an image, a folder of images, a camera (``0`` or ``/dev/video0``), or ``photographs``
    (also when empty). ``rate`` and ``width`` are wishes that only a camera takes here; ``seed`` varies the
    photographs' camera motion. Raises SourceError with one line that says what to do.
    """
    if source in ('', PHOTOGRAPHS):
        from tar_vis_core.photographs import PhotographReader
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


def read_image(path: Path) -> np.ndarray:
    """One image file as uint8 RGB ``(H, W, 3)``; raises SourceError where it cannot be decoded."""
    with quiet_stderr():
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise SourceError(f'cannot read {path}: not an image that OpenCV decodes, or damaged')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep the codecs' own chatter off the terminal: what matters is said in our one line."""
    try:
        saved = os.dup(2)
    except OSError:     # no stderr at all
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)


def _natural(path: Path) -> list:
    return [(0, int(part), '') if part.isdigit() else (1, 0, part) for part in re.split(r'(\d+)', path.name)]


def _cameras_here() -> str:
    found = sorted((str(p) for p in Path('/dev').glob('video*')), key=lambda p: _natural(Path(p)))
    return f'found: {", ".join(found)}' if found else 'no /dev/video* exists on this machine'
