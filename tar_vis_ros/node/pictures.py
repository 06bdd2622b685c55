"""Overlays, drawn by a thread of their own and only if somebody subscribes: they do not slow the model down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from std_msgs.msg import Header

from tar_vis_core.instances import FrameResult
from tar_vis_core.media.overlay import draw_overlay
from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.node.cameras import Camera
from tar_vis_ros.node.mailbox import Worker


@dataclass(frozen=True)
class AnsweredImage:
    """The image and the result that an overlay is drawn from."""

    header: Header
    rgb: np.ndarray     # (H, W, 3) uint8
    result: FrameResult


class Pictures:
    """Draw the newest frame of each camera whose overlay has a subscriber; frames that come meanwhile are skipped."""

    def __init__(self, cameras: Sequence[Camera], on_error: Callable[[Camera, Exception], None]) -> None:
        self._cameras, self._on_error = cameras, on_error
        self._worker: Worker[AnsweredImage] = Worker(self._draw, 'pictures', len(cameras))

    def put(self, number: int, frame: AnsweredImage) -> None:
        """Leave a frame of camera ``number`` for the thread if somebody looks. Never wait."""
        if self._cameras[number].outputs.overlay.get_subscription_count() > 0:
            self._worker.put(number, frame)

    def stop(self) -> None:
        """End the thread once the picture at hand is published."""
        self._worker.stop()

    def _draw(self, number: int, frame: AnsweredImage, passed_over: int) -> None:
        camera = self._cameras[number]
        try:
            picture = draw_overlay(frame.rgb, frame.result.instances, trails=camera.trails.follow(frame.result))
            camera.outputs.overlay.publish(array_to_image(picture, 'rgb8', frame.header))
            camera.health.picture_published('overlay')
        except Exception as error:      # whatever one frame does, the next one gets its chance
            self._on_error(camera, error)
