"""Results on disk: an overlay video, and one JSON line a frame."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from tar_vis_core.instances import FrameResult
from tar_vis_core.io.whole_files import WriteError, replacing
from tar_vis_core.media.readers import quiet_stderr

CODECS = ('avc1', 'mp4v')   # H.264 if this OpenCV can encode it, else MPEG-4 part 2
RATE_FRAMES = 12            # frames whose stamps give the video's rate


class OverlayVideo:
    """An MP4 file with one picture per answered frame, at the rate of the first stamps.

    It has its name from :meth:`close` on, when it is whole.
    """

    def __init__(self, path: Path):
        self.path = path
        self.codec = ''
        self._waiting: list[tuple[float, np.ndarray]] = []
        self._writer: cv2.VideoWriter | None = None
        self._half, self._place = path, contextlib.ExitStack()
        self._written = 0
        self._size = (0, 0)

    def add(self, stamp_s: float, picture: np.ndarray) -> None:
        """Append one RGB picture ``(H, W, 3)``; pictures of another size than the first are fitted into it."""
        if self._writer is None:
            self._waiting.append((stamp_s, picture))
            if len(self._waiting) >= RATE_FRAMES:
                self._open()
        else:
            self._write(picture)

    def close(self) -> None:
        """End the file. Raise WriteError if it does not hold every picture: OpenCV is silent about a full disk."""
        if self._writer is None and self._waiting:
            self._open()
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with self._place:
                writer.release()
                if count_frames(self._half) != self._written:
                    raise WriteError(f'cannot write {self.path}: not all of its {self._written} pictures could be '
                                     'stored; is the disk full?')

    def _open(self) -> None:
        gaps = np.diff([stamp for stamp, _ in self._waiting])
        gaps = gaps[gaps > 0]
        rate = float(np.clip(1 / np.median(gaps), 1, 60)) if gaps.size else 10.0
        height, width = self._waiting[0][1].shape[:2]
        self._size = (width, height)
        self._half = self._place.enter_context(replacing(self.path))
        for codec in CODECS:
            with quiet_stderr():
                self._writer = cv2.VideoWriter(str(self._half), cv2.VideoWriter_fourcc(*codec), round(rate, 3),
                                               self._size)
            if self._writer.isOpened():
                self.codec = codec
                break
        else:
            self._writer = None
            with self._place:
                raise WriteError(f'cannot write {self.path}: no room, no permission, or OpenCV has no encoder for '
                                 f'{" or ".join(CODECS)}')
        waiting, self._waiting = self._waiting, []
        for _, picture in waiting:
            self._write(picture)

    def _write(self, picture: np.ndarray) -> None:
        self._writer.write(cv2.cvtColor(fit_into(picture, self._size), cv2.COLOR_RGB2BGR))
        self._written += 1


def count_frames(path: Path) -> int:
    """Return how many frames a video's index has; 0 if it cannot be opened or its first frame not be decoded."""
    with quiet_stderr():
        capture = cv2.VideoCapture(str(path))
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() and capture.read()[0] else 0
        capture.release()
    return count


class JsonLines:
    """A file of one JSON object a line. It has its name from :meth:`close` on."""

    def __init__(self, path: Path):
        self.path, self._place = path, contextlib.ExitStack()
        with self._giving_up():
            half = self._place.enter_context(replacing(path))
            self._file = self._place.enter_context(half.open('w', encoding='utf-8'))

    def write(self, row: dict) -> None:
        """Append a line. Raise WriteError if there is no room; the file is given up then."""
        text = json.dumps(row, allow_nan=False) + '\n'
        with self._giving_up():
            self._file.write(text)
            self._file.flush()

    def close(self) -> None:
        """End the file, which keeps the lines that were written. Raise WriteError."""
        self._place.close()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with self._place:
                raise


def fit_into(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the picture scaled into ``size`` (width, height) with its aspect kept, on black."""
    width, height = size
    h, w = picture.shape[:2]
    if (w, h) == size:
        return picture
    scale = min(width / w, height / h)
    inner = cv2.resize(picture, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=cv2.INTER_AREA)
    out = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    out[top:top + inner.shape[0], left:left + inner.shape[1]] = inner
    return out


def result_line(result: FrameResult) -> dict:
    """Return a frame's result as a dictionary for JSON. Boxes are x, y, width, height; NaN becomes null."""
    return {
        'frame_index': result.frame_index, 'track_epoch': result.track_epoch,
        'height': result.height, 'width': result.width,
        'executed': list(result.routing.executed), 'executed_layers': result.routing.executed_layers,
        'frame_mse': finite_or_none(result.frame_mse), 'total_ms': finite_or_none(result.times.total),
        'reset_reason': result.reset_reason, 'encoder_reused': result.encoder_reused,
        'instances': [{
            'track_id': i.track_id, 'status': i.status.name, 'age': i.age, 'class_id': i.class_id,
            'class_name': i.class_name, 'score': round(i.score, 4), 'box': list(i.box), 'area': i.area,
            'runs': i.runs.tolist()} for i in result.instances],
    }


def finite_or_none(value: float) -> float | None:
    """Return the value rounded to three decimals, None for NaN, which JSON does not have."""
    return round(float(value), 3) if math.isfinite(value) else None
