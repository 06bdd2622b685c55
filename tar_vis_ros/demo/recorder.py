"""Join images with their answers by stamp and write an overlay video, one JSON line for each frame, a summary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from tar_vis_core.instances import FrameResult, TrackStatus
from tar_vis_core.media.overlay import Trails, draw_overlay
from tar_vis_core.media.recording import JsonLines, OverlayVideo, finite_or_none, result_line
from tar_vis_ros.conversions.images import image_to_rgb
from tar_vis_ros.conversions.messages import decode_result
from tar_vis_ros.conversions.stamps import ExactStamps, Stamp, stamp_of
from tar_vis_ros.msg import InstanceMaskArray, SkipDiagnostics

KEPT = 120                  # images that wait for an answer; older ones are given up


@dataclass(frozen=True)
class AnsweredFrame:
    """An image and the node's answers of the same stamp."""

    stamp: Stamp
    image: np.ndarray      # uint8 RGB (H, W, 3)
    result: FrameResult
    latency_ms: float      # from the image's arrival at the node to its answer
    dropped: int           # images that the node passed over since the last answer


@dataclass(frozen=True)
class FrameSummary:
    """The part of an answered frame that stays in memory."""

    stamp_s: float
    frame_index: int
    track_epoch: int
    executed: tuple[bool, ...]
    reused: bool                            # the masks of an earlier frame
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
        self._stamps = ExactStamps(dict.fromkeys(('image', 'instances', 'diagnostics'), KEPT))
        self._answered: Stamp | None = None
        qos = QoSProfile(depth=30, reliability=ReliabilityPolicy.RELIABLE)
        self.create_subscription(Image, image_topic, self._take('image'), qos)
        self.create_subscription(InstanceMaskArray, f'{node_name}/instances', self._take('instances'), qos)
        self.create_subscription(SkipDiagnostics, f'{node_name}/skip_diagnostics', self._take('diagnostics'), qos)

    @property
    def images_received(self) -> int:
        """Return how many images came so far, answered or not."""
        return self._stamps.received['image']

    @property
    def complete(self) -> bool:
        """Return true if the newest image that came is answered."""
        return self._answered is not None and self._stamps.newest['image'] == self._answered

    def _take(self, name: str) -> Callable[[Image | InstanceMaskArray | SkipDiagnostics], None]:
        def take(message: Image | InstanceMaskArray | SkipDiagnostics) -> None:
            if matched := self._stamps.add(name, message):
                self._answer(**matched)
        return take

    def _answer(self, image: Image, instances: InstanceMaskArray, diagnostics: SkipDiagnostics) -> None:
        self._answered = stamp_of(image)
        self._on_frame(AnsweredFrame(self._answered, image_to_rgb(image), decode_result(instances, diagnostics),
                                     diagnostics.latency_ms, diagnostics.frames_dropped))


class FrameWriter:
    """Writes ``overlay.mp4`` and ``instances.jsonl`` into a folder; keeps a summary of each frame."""

    def __init__(self, folder: Path):
        self.video = OverlayVideo(folder / 'overlay.mp4')
        self.lines = JsonLines(folder / 'instances.jsonl')
        self.frames: list[FrameSummary] = []
        self._trails = Trails()

    def add(self, frame: AnsweredFrame) -> None:
        """Draw and write one frame."""
        result, stamp_s = frame.result, frame.stamp[0] + frame.stamp[1] * 1e-9
        self.lines.write(frame_line(frame))
        self.video.add(stamp_s, draw_overlay(frame.image, result.instances, trails=self._trails.follow(result)))
        self.frames.append(FrameSummary(
            stamp_s, result.frame_index, result.track_epoch, result.routing.executed, result.encoder_reused,
            result.frame_mse, frame.latency_ms, result.times.total, frame.dropped, result.reset_reason,
            tuple((i.track_id, i.class_name) for i in result.instances if i.status != TrackStatus.LOST)))

    def close(self) -> None:
        with contextlib.closing(self.video):
            self.lines.close()


def frame_line(frame: AnsweredFrame) -> dict:
    """Return one line of ``instances.jsonl``; boxes are x, y, width, height; NaN becomes null."""
    return {'stamp': {'sec': frame.stamp[0], 'nanosec': frame.stamp[1]}, **result_line(frame.result),
            'latency_ms': finite_or_none(frame.latency_ms), 'frames_dropped': frame.dropped}
