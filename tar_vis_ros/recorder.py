"""Joins images with their answers by stamp and writes them down: overlay video, one JSON line a frame, a summary."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from tar_vis_core.instances import FrameResult, TrackStatus
from tar_vis_ros.codec import decode_result
from tar_vis_ros.frames import quiet_stderr
from tar_vis_ros.image_conversion import image_to_rgb
from tar_vis_ros.msg import InstanceMaskArray, SkipDiagnostics
from tar_vis_ros.overlay import draw_overlay

KEPT = 120                  # images that wait for an answer; older ones are given up
CODECS = ('avc1', 'mp4v')   # H.264 where this OpenCV can encode it, else MPEG-4 part 2
RATE_FRAMES = 12            # frames whose stamps tell the video's rate

Stamp = tuple[int, int]     # seconds, nanoseconds


@dataclass(frozen=True)
class AnsweredFrame:
    """An image and what the node said about it; all of one stamp."""

    stamp: Stamp
    image: np.ndarray      # uint8 RGB (H, W, 3)
    result: FrameResult
    latency_ms: float      # from the image's arrival at the node to its answer
    dropped: int           # images that the node passed over since the last answer


@dataclass(frozen=True)
class FrameSummary:
    """What stays in memory of an answered frame."""

    stamp_s: float
    frame_index: int
    track_epoch: int
    executed: tuple[bool, ...]
    frame_mse: float
    latency_ms: float
    total_ms: float
    dropped: int
    reset_reason: str
    tracks: tuple[tuple[int, str], ...]     # id and class name of what is visible


class Recorder(Node):
    """Subscribes the images and both answers of the node, and hands on every frame for which all three are there."""

    def __init__(self, on_frame: Callable[[AnsweredFrame], None], node_name: str = 'tar_vis',
                 image_topic: str = 'image', **kwargs):
        super().__init__('tar_vis_recorder', **kwargs)
        self._on_frame = on_frame
        self._images: dict[Stamp, Image] = {}
        self._instances: dict[Stamp, InstanceMaskArray] = {}
        self._diagnostics: dict[Stamp, SkipDiagnostics] = {}
        self._newest: Stamp | None = None
        self._answered: Stamp | None = None
        self.images_received = 0
        qos = QoSProfile(depth=30, reliability=ReliabilityPolicy.RELIABLE)
        self.create_subscription(Image, image_topic, self._on_image, qos)
        self.create_subscription(InstanceMaskArray, f'{node_name}/instances', self._take(self._instances), qos)
        self.create_subscription(SkipDiagnostics, f'{node_name}/skip_diagnostics', self._take(self._diagnostics), qos)

    @property
    def complete(self) -> bool:
        """True where the newest image that came is answered."""
        return self._newest is not None and self._newest == self._answered

    def _on_image(self, message: Image) -> None:
        self.images_received += 1
        self._newest = _stamp(message)
        self._images[self._newest] = message
        self._join(self._newest)
        while len(self._images) > KEPT:
            self._images.pop(next(iter(self._images)))

    def _take(self, store: dict) -> Callable:
        def take(message: InstanceMaskArray | SkipDiagnostics) -> None:
            store[_stamp(message)] = message
            self._join(_stamp(message))
            while len(store) > KEPT:
                store.pop(next(iter(store)))
        return take

    def _join(self, stamp: Stamp) -> None:
        if not (stamp in self._images and stamp in self._instances and stamp in self._diagnostics):
            return
        image, diagnostics = self._images[stamp], self._diagnostics.pop(stamp)
        for old in list(self._images):      # they came before this one: the node has passed them over
            del self._images[old]
            if old == stamp:
                break
        result = decode_result(self._instances.pop(stamp), diagnostics)
        self._answered = stamp
        self._on_frame(AnsweredFrame(stamp, image_to_rgb(image), result, diagnostics.latency_ms,
                                     diagnostics.frames_dropped))


class FrameWriter:
    """Writes ``overlay.mp4`` and ``instances.jsonl`` into a folder; keeps a summary of each frame."""

    def __init__(self, folder: Path):
        self.video = OverlayVideo(folder / 'overlay.mp4')
        self.lines_path = folder / 'instances.jsonl'
        self._lines = self.lines_path.open('w', encoding='utf-8')
        self.frames: list[FrameSummary] = []

    def add(self, frame: AnsweredFrame) -> None:
        """Draw and write one frame."""
        result, stamp_s = frame.result, frame.stamp[0] + frame.stamp[1] * 1e-9
        self._lines.write(json.dumps(frame_line(frame), allow_nan=False) + '\n')
        self._lines.flush()
        self.video.add(stamp_s, draw_overlay(frame.image, result.instances))
        self.frames.append(FrameSummary(
            stamp_s, result.frame_index, result.track_epoch, result.routing.executed, result.frame_mse,
            frame.latency_ms, result.times.total, frame.dropped, result.reset_reason,
            tuple((i.track_id, i.class_name) for i in result.instances if i.status != TrackStatus.LOST)))

    def close(self) -> None:
        self.video.close()
        self._lines.close()


class OverlayVideo:
    """An MP4 file with one picture per answered frame, at the rate that the first stamps tell."""

    def __init__(self, path: Path):
        self.path = path
        self.codec = ''
        self._waiting: list[tuple[float, np.ndarray]] = []
        self._writer: cv2.VideoWriter | None = None
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
        if self._writer is None and self._waiting:
            self._open()
        if self._writer is not None:
            self._writer.release()

    def _open(self) -> None:
        gaps = np.diff([stamp for stamp, _ in self._waiting])
        gaps = gaps[gaps > 0]
        rate = float(np.clip(1 / np.median(gaps), 1, 60)) if gaps.size else 10.0
        height, width = self._waiting[0][1].shape[:2]
        self._size = (width, height)
        for codec in CODECS:
            with quiet_stderr():
                self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*codec), round(rate, 3),
                                               self._size)
            if self._writer.isOpened():
                self.codec = codec
                break
        else:
            raise OSError(f'cannot write {self.path}: no room, no permission, or OpenCV has no encoder for '
                          f'{" or ".join(CODECS)}')
        for _, picture in self._waiting:
            self._write(picture)
        self._waiting.clear()

    def _write(self, picture: np.ndarray) -> None:
        self._writer.write(cv2.cvtColor(fit_into(picture, self._size), cv2.COLOR_RGB2BGR))


def fit_into(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture scaled into ``size`` (width, height) with its aspect kept, on black."""
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


def frame_line(frame: AnsweredFrame) -> dict:
    """One line of ``instances.jsonl``; boxes are x, y, width, height; NaN becomes null."""
    result = frame.result
    return {
        'stamp': {'sec': frame.stamp[0], 'nanosec': frame.stamp[1]},
        'frame_index': result.frame_index, 'track_epoch': result.track_epoch,
        'height': result.height, 'width': result.width,
        'executed': list(result.routing.executed), 'executed_layers': result.routing.executed_layers,
        'frame_mse': _number(result.frame_mse), 'latency_ms': _number(frame.latency_ms),
        'total_ms': _number(result.times.total), 'frames_dropped': frame.dropped, 'reset_reason': result.reset_reason,
        'instances': [{
            'track_id': i.track_id, 'status': i.status.name, 'age': i.age, 'class_id': i.class_id,
            'class_name': i.class_name, 'score': round(i.score, 4), 'box': list(i.box), 'area': i.area,
            'runs': i.runs.tolist()} for i in result.instances],
    }


def _number(value: float) -> float | None:
    return round(float(value), 3) if math.isfinite(value) else None


def _stamp(message: Image | InstanceMaskArray | SkipDiagnostics) -> Stamp:
    return message.header.stamp.sec, message.header.stamp.nanosec
