"""One frame's way through the node: from an image message to everything that is published about it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecyclePublisher
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from tar_vis_core.errors import DeviceLostError, one_line
from tar_vis_core.instances import FrameResult
from tar_vis_ros.conversions.detections import encode_detections, label_info
from tar_vis_ros.conversions.images import UNNAMED, ImageError, array_to_image, to_rgb
from tar_vis_ros.conversions.label_images import IMAGES, Moving
from tar_vis_ros.conversions.messages import encode_diagnostics, encode_instances
from tar_vis_ros.conversions.stamps import seconds_of
from tar_vis_ros.node.cameras import Camera
from tar_vis_ros.node.mailbox import Worker
from tar_vis_ros.node.pictures import AnsweredImage, Pictures


@dataclass(frozen=True)
class Arrived:
    """An image that waits for its turn."""

    image: Image | CompressedImage
    at: float       # on the clock of time.perf_counter
    number: int     # among those of its camera


class Pipeline:
    """A loaded model, the cameras before it, and the thread that works on their newest images in turn.

    The thread exists between :meth:`start` and :meth:`stop`; the cameras' states outlive it.
    """

    def __init__(self, segmenter, cameras: Sequence[Camera], logger) -> None:
        self.cameras = tuple(cameras)
        self.device = str(segmenter.device)
        self.recording = ''     # what is recorded right now, in words
        self.lost = ''          # why the GPU can be used no more
        self._segmenter = segmenter
        self._logger = logger
        self._moving = Moving()
        self._remarks: tuple[str, ...] = ()
        self._worker: Worker[Arrived] | None = None
        self._pictures: Pictures | None = None
        # The segmenter is for one at a time. Who waits for it holds the other lock, so that the thread, which takes
        # both again at once, cannot go before: a change waits for the step at hand and no longer.
        self._segmenter_lock, self._turn = threading.Lock(), threading.Lock()

    def start(self) -> None:
        for camera in self.cameras:
            camera.unreported = 0
        self._pictures = Pictures(self.cameras, self._failed)
        self._worker = Worker(self._process, 'tar_vis', len(self.cameras))

    def stop(self) -> None:
        """End the thread once it has published the frame at hand; images that wait count as dropped."""
        if self._worker is not None:
            left, self._worker = self._worker.stop(), None
            for camera, count in zip(self.cameras, left, strict=True):
                camera.health.dropped(count)
            self._pictures.stop()

    @contextlib.contextmanager
    def _between_frames(self) -> Iterator[None]:
        """Have the segmenter alone."""
        with self._turn:
            self._segmenter_lock.acquire()
        try:
            yield
        finally:
            self._segmenter_lock.release()

    def put(self, number: int, image: Image | CompressedImage, arrived: float, missed: int) -> None:
        """Leave an image of camera ``number`` for the thread; one of it that waits still is dropped.

        ``arrived`` is on the clock of ``time.perf_counter``; ``missed`` images before it were lost on the way.
        """
        camera = self.cameras[number]
        camera.health.image_arrived()
        camera.images += 1
        if reason := camera.stamps.add(seconds_of(image), self._segmenter.options.reset_gap_s, missed):
            camera.breaks.append((camera.images, reason))
        told, camera.stamps_told = camera.stamps_told, bool(camera.stamps.problem)
        if camera.stamps.problem and not told:
            self._logger.warning(f'{camera.prefix}{camera.stamp_problem}')
        if self._worker is not None:
            self._worker.put(number, Arrived(image, arrived, camera.images), missed)

    def set_options(self, options, moving: Moving) -> None:
        """Let both hold from the next frame on. Raise ValueError if they do not fit the model."""
        moving.check(self._segmenter.class_names)
        with self._between_frames():
            self._segmenter.options = options
            self._moving = moving

    def remarks(self) -> tuple[str, ...]:
        """Return what runs slower here than it could; log what is new."""
        before, self._remarks = self._remarks, self._segmenter.remarks
        for line in self._remarks:
            if line not in before:
                self._logger.warning(line)
        return self._remarks

    def announce_labels(self) -> None:
        """Publish the names of the class ids, latched."""
        for camera in self.cameras:
            if camera.outputs.labels is not None:
                camera.outputs.labels.publish(
                    label_info(self._segmenter.class_names, self._segmenter.options.score_threshold, Header()))

    def reset(self, cameras: Sequence[Camera], reason: str) -> None:
        """Let the next frame of each camera begin new tracks and say why."""
        with self._between_frames():
            for camera in cameras:
                self._segmenter.reset(camera.state, reason)

    def _process(self, number: int, arrived: Arrived, dropped: int) -> None:
        camera, image = self.cameras[number], arrived.image
        camera.unreported += dropped
        camera.health.dropped(dropped)
        if self.lost:
            camera.health.dropped(1)
            return
        try:
            rgb = to_rgb(image)
            self._remark_on_colours(camera, image)
        except ImageError as error:
            self._complain(camera, error.kind, f'image refused: {error}', DiagnosticStatus.WARN)
            return
        try:
            result = self._step(camera, rgb, arrived)
            self._publish(camera, result, image.header, arrived.at)
            self._pictures.put(number, AnsweredImage(image.header, rgb, result))
        except DeviceLostError as error:
            self.lost = str(error)
            self._complain(camera, 'lost', self.lost, DiagnosticStatus.ERROR)
        except Exception as error:   # whatever one frame does, the next one gets its chance
            camera.state.reset(f'the frame before failed: {type(error).__name__}')
            self._failed(camera, error)

    def _remark_on_colours(self, camera: Camera, image: Image | CompressedImage) -> None:
        meant = UNNAMED.get(getattr(image, 'encoding', ''))
        if meant and not camera.colours_told:
            camera.colours_told = True
            self._logger.warning(f'{camera.prefix}{image.encoding} does not define colours: taken for {meant}, '
                                 "OpenCV's order; let the driver say rgb8 if red and blue are exchanged")

    def _failed(self, camera: Camera, error: Exception) -> None:
        if rclpy.ok():           # else the process is ending, and publishers with it
            self._complain(camera, type(error).__name__, f'frame failed: {type(error).__name__}: {one_line(error)}',
                           DiagnosticStatus.ERROR)

    def _step(self, camera: Camera, rgb: np.ndarray, arrived: Arrived) -> FrameResult:
        with self._between_frames():
            if self._segmenter.needs_recording(*rgb.shape[:2]):
                self._record(*rgb.shape[:2])
            result = self._segmenter.step(rgb, camera.state, seconds_of(arrived.image),
                                          camera.break_before(arrived.number))
        if result.reset_reason:
            self._logger.info(f'{camera.prefix}tracks start anew (epoch {result.track_epoch}): {result.reset_reason}')
        return result

    def _record(self, height: int, width: int) -> None:
        """Make the graphs of a size of image that is new. It takes seconds, in which images are dropped."""
        what = 'compiling the encoder' if self.device == 'cpu' else 'recording CUDA graphs'
        self.recording = f'{what} for images of {width}x{height} (warm_up_sizes does that at configure)'
        self._logger.info(self.recording)
        try:
            self._segmenter.warm_up(height, width)
        finally:
            self.recording = ''

    def _publish(self, camera: Camera, result: FrameResult, header: Header, arrived: float) -> None:
        outputs = camera.outputs
        outputs.instances.publish(encode_instances(result, header))
        latency_ms = (time.perf_counter() - arrived) * 1e3
        outputs.diagnostics.publish(encode_diagnostics(result, header, latency_ms, camera.unreported))
        camera.health.frame_done(latency_ms, result.routing.executed_layers)
        camera.unreported = 0
        if outputs.detections is not None and outputs.detections.get_subscription_count() > 0:
            outputs.detections.publish(encode_detections(result, header))
        for name, publisher in outputs.images.items():
            if publisher.get_subscription_count() > 0:
                self._publish_image(camera, name, publisher, result, header)

    def _publish_image(self, camera: Camera, name: str, publisher: LifecyclePublisher, result: FrameResult,
                       header: Header) -> None:
        encoding, pixels = IMAGES[name]
        try:
            publisher.publish(array_to_image(pixels(result, self._moving), encoding, header))
            camera.health.picture_published(name)
        except ValueError as error:     # the tracks are well
            self._complain(camera, name, f'{name} left out: {error}', DiagnosticStatus.WARN)

    def _complain(self, camera: Camera, kind: str, text: str, level: bytes) -> None:
        line = camera.health.fault(kind, text, level)
        if line is not None:
            self._logger.error(camera.prefix + line)
