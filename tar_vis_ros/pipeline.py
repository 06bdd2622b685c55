"""One frame's way through the node: from an image message to everything that is published about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecyclePublisher
from sensor_msgs.msg import Image

from tar_vis_core.instances import FrameResult
from tar_vis_core.overlay import draw_overlay
from tar_vis_ros.codec import encode_diagnostics, encode_instances, label_image
from tar_vis_ros.health import Health
from tar_vis_ros.image_conversion import ImageError, array_to_image, image_to_rgb
from tar_vis_ros.mailbox import Worker


@dataclass(frozen=True)
class Outputs:
    """The publishers of a configured node."""

    instances: LifecyclePublisher
    diagnostics: LifecyclePublisher
    label_image: LifecyclePublisher
    overlay: LifecyclePublisher

    def all(self) -> tuple[LifecyclePublisher, ...]:
        return self.instances, self.diagnostics, self.label_image, self.overlay


class Pipeline:
    """A loaded model with the temporal state of one camera, and the thread that works on the newest image.

    The thread exists between :meth:`start` and :meth:`stop`; the state outlives it.
    """

    def __init__(self, segmenter, outputs: Outputs, health: Health, logger) -> None:
        self.outputs = outputs
        self.device = str(segmenter.device)
        self._segmenter = segmenter
        self._state = segmenter.new_state()
        self._health = health
        self._logger = logger
        self._worker: Worker[tuple[Image, float]] | None = None
        self._between_frames = threading.Lock()   # held during a step: who changes the segmenter waits for its end
        self._unreported = 0          # images dropped since the last published frame

    def start(self) -> None:
        self._unreported = 0
        self._worker = Worker(self._process, 'tar_vis')

    def stop(self) -> None:
        """Ends the thread once it has published the frame at hand."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def put(self, image: Image, arrived: float, missed: int) -> None:
        """Leaves an image for the thread; one that waits still is dropped for it.

        ``arrived`` is on the clock of ``time.perf_counter``; ``missed`` images before it were lost on the way.
        """
        self._health.image_arrived()
        if self._worker is not None:
            self._worker.put((image, arrived), missed)

    def set_options(self, options) -> None:
        """``options`` (SegmenterOptions) hold from the next frame on. ValueError where they do not fit the model."""
        with self._between_frames:
            self._segmenter.options = options

    def reset(self, reason: str) -> None:
        """The next frame begins new tracks and says why."""
        with self._between_frames:
            self._segmenter.reset(self._state, reason)

    def _process(self, item: tuple[Image, float], dropped: int) -> None:
        image, arrived = item
        self._unreported += dropped
        try:
            rgb = image_to_rgb(image)
        except ImageError as error:
            self._complain(error.kind, f'image refused: {error}', DiagnosticStatus.WARN)
            return
        try:
            result = self._step(rgb, image)
            self._publish(result, image, rgb, arrived)
        except Exception as error:   # whatever one frame does, the next one gets its chance
            if rclpy.ok():           # else the process is ending, and publishers with it
                self._state.reset(f'the frame before failed: {type(error).__name__}')
                self._complain(type(error).__name__, f'frame failed: {type(error).__name__}: {one_line(error)}',
                               DiagnosticStatus.ERROR)

    def _step(self, rgb: np.ndarray, image: Image) -> FrameResult:
        stamp = image.header.stamp
        with self._between_frames:
            result = self._segmenter.step(rgb, self._state, stamp.sec + stamp.nanosec * 1e-9)
        if result.reset_reason:
            self._logger.info(f'tracks start anew (epoch {result.track_epoch}): {result.reset_reason}')
        return result

    def _publish(self, result: FrameResult, image: Image, rgb: np.ndarray, arrived: float) -> None:
        header, outputs = image.header, self.outputs
        outputs.instances.publish(encode_instances(result, header))
        latency_ms = (time.perf_counter() - arrived) * 1e3
        outputs.diagnostics.publish(encode_diagnostics(result, header, latency_ms, self._unreported))
        self._health.frame_done(latency_ms, result.routing.executed_layers, self._unreported)
        self._unreported = 0
        self._publish_image(outputs.label_image, 'label images', 'mono16', image,
                            lambda: label_image(result.instances, result.height, result.width))
        self._publish_image(outputs.overlay, 'overlays', 'rgb8', image, lambda: draw_overlay(rgb, result.instances))

    def _publish_image(self, publisher: LifecyclePublisher, kind: str, encoding: str, image: Image,
                       draw: Callable[[], np.ndarray]) -> None:
        """Draws and publishes only while somebody listens."""
        if publisher.get_subscription_count() > 0:
            publisher.publish(array_to_image(draw(), encoding, image.header))
            self._health.picture_published(kind)

    def _complain(self, kind: str, text: str, level: bytes) -> None:
        line = self._health.fault(kind, text, level)
        if line is not None:
            self._logger.error(line)


def one_line(error: BaseException) -> str:
    """The error's message without line breaks."""
    return ' '.join(str(error).split()) or type(error).__name__
