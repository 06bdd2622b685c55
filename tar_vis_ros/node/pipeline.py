"""One frame's way through the node: from an image message to everything that is published about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecyclePublisher
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from tar_vis_core.instances import FrameResult
from tar_vis_core.latency_budget import LatencyBudget
from tar_vis_core.media.overlay import draw_overlay
from tar_vis_ros.conversions.detections import encode_detections, label_info
from tar_vis_ros.conversions.images import ImageError, array_to_image, to_rgb
from tar_vis_ros.conversions.messages import encode_diagnostics, encode_instances, label_image
from tar_vis_ros.node.cameras import Camera
from tar_vis_ros.node.lifecycle import one_line
from tar_vis_ros.node.mailbox import Worker


class Pipeline:
    """A loaded model, the cameras before it, and the thread that works on their newest images in turn.

    The thread exists between :meth:`start` and :meth:`stop`; the cameras' states outlive it.
    """

    def __init__(self, segmenter, cameras: Sequence[Camera], logger) -> None:
        self.cameras = tuple(cameras)
        self.device = str(segmenter.device)
        self._segmenter = segmenter
        self._options, self._bias = segmenter.options, 0.0      # as they were set, and what a budget adds right now
        self._budget_ms = 0.0
        self._logger = logger
        self._worker: Worker[tuple[Image | CompressedImage, float]] | None = None
        self._between_frames = threading.Lock()   # held during a step: who changes the segmenter waits for its end

    def start(self) -> None:
        for camera in self.cameras:
            camera.unreported = 0
        self._worker = Worker(self._process, 'tar_vis', len(self.cameras))

    def stop(self) -> None:
        """Ends the thread once it has published the frame at hand; images that wait count as dropped."""
        if self._worker is not None:
            left, self._worker = self._worker.stop(), None
            for camera, count in zip(self.cameras, left, strict=True):
                camera.health.dropped(count)

    def put(self, camera: int, image: Image | CompressedImage, arrived: float, missed: int) -> None:
        """Leaves an image of a camera for the thread; one of it that waits still is dropped.

        ``arrived`` is on the clock of ``time.perf_counter``; ``missed`` images before it were lost on the way.
        """
        self.cameras[camera].health.image_arrived()
        if self._worker is not None:
            self._worker.put((image, arrived), missed, camera)

    def set_options(self, options, budget_ms: float) -> None:
        """``options`` (SegmenterOptions) and the latency budget (0: none) hold from the next frame on.

        ValueError where the options do not fit the model.
        """
        with self._between_frames:
            self._segmenter.options = options
            self._options, self._bias = options, 0.0
            if budget_ms != self._budget_ms:
                self._budget_ms = budget_ms
                for camera in self.cameras:
                    camera.budget = LatencyBudget(budget_ms) if budget_ms else None

    def announce_labels(self) -> None:
        """Publishes what class ids mean, for whoever listens now or later."""
        for camera in self.cameras:
            if camera.outputs.labels is not None:
                camera.outputs.labels.publish(
                    label_info(self._segmenter.class_names, self._options.score_threshold, Header()))

    def reset(self, cameras: Sequence[Camera], reason: str) -> None:
        """The next frame of each of them begins new tracks and says why."""
        with self._between_frames:
            for camera in cameras:
                self._segmenter.reset(camera.state, reason)

    def _process(self, slot: int, item: tuple[Image | CompressedImage, float], dropped: int) -> None:
        camera, (image, arrived) = self.cameras[slot], item
        camera.unreported += dropped
        camera.health.dropped(dropped)
        try:
            rgb = to_rgb(image)
        except ImageError as error:
            self._complain(camera, error.kind, f'image refused: {error}', DiagnosticStatus.WARN)
            return
        try:
            result = self._step(camera, rgb, image)
            self._publish(camera, result, image, rgb, arrived)
        except Exception as error:   # whatever one frame does, the next one gets its chance
            if rclpy.ok():           # else the process is ending, and publishers with it
                camera.state.reset(f'the frame before failed: {type(error).__name__}')
                self._complain(camera, type(error).__name__, f'frame failed: {type(error).__name__}: {one_line(error)}',
                               DiagnosticStatus.ERROR)

    def _step(self, camera: Camera, rgb: np.ndarray, image: Image | CompressedImage) -> FrameResult:
        stamp = image.header.stamp
        with self._between_frames:
            bias = camera.budget.bias if camera.budget else 0.0
            if bias != self._bias:
                self._segmenter.options = replace(self._options, skip_bias=self._options.skip_bias + bias)
                self._bias = bias
            result = self._segmenter.step(rgb, camera.state, stamp.sec + stamp.nanosec * 1e-9)
            if camera.budget:
                trace = result.routing
                camera.budget.update(result.times.total, trace.executed_layers, len(trace.executed),
                                     routed=bool(np.isfinite(trace.execute_probability).any()))
        if result.reset_reason:
            self._logger.info(f'{camera.prefix}tracks start anew (epoch {result.track_epoch}): {result.reset_reason}')
        return result

    def _publish(self, camera: Camera, result: FrameResult, image: Image | CompressedImage, rgb: np.ndarray,
                 arrived: float) -> None:
        header, outputs = image.header, camera.outputs
        outputs.instances.publish(encode_instances(result, header))
        latency_ms = (time.perf_counter() - arrived) * 1e3
        outputs.diagnostics.publish(encode_diagnostics(result, header, latency_ms, camera.unreported))
        camera.health.frame_done(latency_ms, result.routing.executed_layers)
        camera.unreported = 0
        if outputs.detections is not None and outputs.detections.get_subscription_count() > 0:
            outputs.detections.publish(encode_detections(result, header))
        self._publish_image(camera, outputs.label_image, 'label images', 'mono16', image,
                            lambda: label_image(result.instances, result.height, result.width))
        self._publish_image(camera, outputs.overlay, 'overlays', 'rgb8', image,
                            lambda: draw_overlay(rgb, result.instances, trails=camera.trails.follow(result)))

    def _publish_image(self, camera: Camera, publisher: LifecyclePublisher, kind: str, encoding: str,
                       image: Image | CompressedImage, draw: Callable[[], np.ndarray]) -> None:
        """Draws and publishes only while somebody listens."""
        if publisher.get_subscription_count() > 0:
            publisher.publish(array_to_image(draw(), encoding, image.header))
            camera.health.picture_published(kind)

    def _complain(self, camera: Camera, kind: str, text: str, level: bytes) -> None:
        line = camera.health.fault(kind, text, level)
        if line is not None:
            self._logger.error(camera.prefix + line)
