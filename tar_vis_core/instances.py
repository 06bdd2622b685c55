"""The result of a frame: tracked instances with run-length masks, and how the frame was computed."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np


class TrackStatus(enum.IntEnum):
    """Life of a track as a consumer sees it; the values are those of ``InstanceMask.msg``."""

    NEW = 0
    TRACKED = 1
    LOST = 2


def encode_runs(mask: np.ndarray) -> np.ndarray:
    """Return the run lengths of a boolean mask ``(h, w)``, row-major; the first run counts background (maybe 0).

    They are a ``uint32`` vector whose sum is ``h * w``.
    """
    if mask.ndim != 2:
        raise ValueError(f'a mask has two axes (h, w), got shape {mask.shape}')
    flat = np.ascontiguousarray(mask, dtype=bool).ravel()
    if flat.size == 0:
        return np.zeros(1, np.uint32)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size])))
    if flat[0]:
        runs = np.concatenate(([0], runs))
    return runs.astype(np.uint32)


def decode_runs(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the boolean mask ``(height, width)`` of run lengths: the inverse of :func:`encode_runs`.

    Raise ValueError if the runs do not add up to ``height * width``.
    """
    runs = np.asarray(runs, dtype=np.int64)
    if int(runs.sum()) != height * width:
        raise ValueError(
            f'run lengths add up to {int(runs.sum())} pixels, expected {height} x {width} = {height * width}')
    values = (np.arange(runs.size) % 2).astype(bool)
    return np.repeat(values, runs).reshape(height, width)


def place_runs(runs: np.ndarray, box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """Return the mask whose ``runs`` fill ``box`` (x, y, width, height) on an image: boolean ``(height, width)``."""
    x, y, w, h = box
    full = np.zeros((height, width), bool)
    full[y:y + h, x:x + w] = decode_runs(runs, h, w)
    return full


@dataclass(frozen=True)
class Instance:
    """One tracked instance of one frame; boxes and masks are in pixels of the source image."""

    track_id: int             # never reused until the state resets
    status: TrackStatus
    age: int                  # frames since the track was first seen; 0 when NEW
    class_id: int             # index into the model's class names
    class_name: str
    score: float              # 0..1: class probability times mask quality
    box: tuple[int, int, int, int]   # x, y, width, height: the tight box of the mask (LOST: the last one seen)
    area: int                 # mask pixels; 0 when LOST
    runs: np.ndarray          # uint32 run lengths inside the box, row-major, background first

    def crop(self) -> np.ndarray:
        """Return the mask inside its box, boolean ``(box height, box width)``."""
        return decode_runs(self.runs, self.box[3], self.box[2])

    def mask(self, height: int, width: int) -> np.ndarray:
        """Return the mask on the whole image, boolean ``(height, width)``."""
        return place_runs(self.runs, self.box, height, width)


@dataclass(frozen=True)
class RoutingTrace:
    """Which decoder layers ran for a frame."""

    executed: tuple[bool, ...]        # one per decoder layer; warm-up layers run unless ``encoder_reused``
    execute_probability: np.ndarray   # float32, one per layer, NaN if no router was asked

    @property
    def executed_layers(self) -> int:
        return sum(self.executed)

    @property
    def routed(self) -> bool:
        """Return whether routers were asked."""
        return bool(np.isfinite(self.execute_probability).any())


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds of the stages, on a GPU by events in its stream, and of the whole step by the host's clock.

    A stage that did not run took 0.
    """

    preprocess: float = 0.0   # copy to the device, resize, normalise, pad
    encoder: float = 0.0      # backbone and pixel decoder
    decoder: float = 0.0      # masked decoder with synchronizer and routers
    masks: float = 0.0        # classification, masks at the source size, run lengths
    tracker: float = 0.0      # matching and identities
    total: float = 0.0


@dataclass(frozen=True)
class FrameResult:
    """The answer of :meth:`tar_vis_core.segmenter.VideoSegmenter.step` for one image."""

    height: int
    width: int
    frame_index: int              # frames since the last reset, from 0
    track_epoch: int              # rises by one at every reset
    instances: list[Instance]     # visible ones by falling score, then the LOST ones
    routing: RoutingTrace
    frame_mse: float              # against the previous frame, squared grey levels (0..65025); NaN for the first
    times: StageTimes
    reset_reason: str = ''        # why the state was reset before this frame; empty when it was not
    encoder_reused: bool = False  # the answer of an earlier frame, see ``still_picture.py``
