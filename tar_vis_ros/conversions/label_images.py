"""Instances as images of numbers, one for each pixel: track ids, classes, confidence, and what stands still.

Where masks overlap, the better score is on top, in every one of these images. LOST instances are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tar_vis_core.errors import unknown_name
from tar_vis_core.instances import FrameResult, Instance, TrackStatus
from tar_vis_core.models.class_sets import COCO

LABELS = 65535      # a mono16 label image distinguishes this many tracks; 0 is background
BACKGROUND = 255    # of a semantic mask, where 0 is a class
# Street furniture, furniture and what lies in a house. What people carry is not among it. YouTube-VIS has the animal
# 'mouse'.
KEEPS_STILL = frozenset(COCO[COCO.index('traffic light'):COCO.index('bird')] + COCO[COCO.index('bottle'):]) - {'mouse'}


@dataclass(frozen=True)
class Moving:
    """What a static mask leaves out: instances of ``classes`` (empty: all that do not keep still), and a margin."""

    classes: tuple[str, ...] = ()
    margin_px: int = 0

    def check(self, class_names: Sequence[str]) -> None:
        """Raise ValueError if one of the classes is none of the model's."""
        for name in self.classes:
            if name not in class_names:
                raise ValueError('moving_classes: ' + unknown_name('class', name, class_names))

    def has(self, class_name: str) -> bool:
        return class_name in self.classes if self.classes else class_name not in KEEPS_STILL


def label_image(instances: Sequence[Instance], height: int, width: int) -> np.ndarray:
    """Return track ids as an image ``(height, width)`` uint16, 0 if there is no instance.

    Ids beyond 65535 start again at 1, because mono16 holds no more.
    """
    return _painted(instances, height, width, lambda instance: (instance.track_id - 1) % LABELS + 1, np.uint16)


def class_ids(class_names: Sequence[str]) -> dict[int, str]:
    """Return the name of each number of a semantic mask, background included.

    A model of so many classes that one of them has the background's number has no mask, and no name for it.
    """
    return {BACKGROUND: 'background', **dict(enumerate(class_names))}


def semantic_mask(instances: Sequence[Instance], height: int, width: int) -> np.ndarray:
    """Return class ids as an image ``(height, width)`` uint8, BACKGROUND if there is no instance.

    Raise ValueError for a class id that eight bits do not hold beside the background.
    """
    for instance in instances:
        if instance.class_id >= BACKGROUND:
            raise ValueError(f'class id {instance.class_id} ({instance.class_name}) does not fit a semantic mask, '
                             f'which holds 0 to {BACKGROUND - 1}: use label_image and instances')
    return _painted(instances, height, width, lambda instance: instance.class_id, np.uint8, BACKGROUND)


def semantic_confidence(instances: Sequence[Instance], height: int, width: int) -> np.ndarray:
    """Return scores as an image ``(height, width)`` uint8, 255 for a score of 1, 0 if there is no instance."""
    return _painted(instances, height, width, lambda instance: round(255 * instance.score), np.uint8)


def static_mask(instances: Sequence[Instance], height: int, width: int, moving: Moving) -> np.ndarray:
    """Return an image ``(height, width)`` uint8: 0 on what moves by itself and a margin around it, 255 elsewhere.

    The margin is a square: ``margin_px`` pixels to each side.
    """
    movers = [instance for instance in instances if moving.has(instance.class_name)]
    mask = _painted(movers, height, width, lambda _: 0, np.uint8, 255)
    if movers and moving.margin_px:
        mask = cv2.erode(mask, np.ones((2 * moving.margin_px + 1,) * 2, np.uint8))
    return mask


def _painted(instances: Sequence[Instance], height: int, width: int, value: Callable[[Instance], int], dtype: type,
             background: int = 0) -> np.ndarray:
    image = np.full((height, width), background, dtype)
    for instance in sorted(instances, key=lambda i: i.score):
        if instance.status != TrackStatus.LOST:
            x, y, w, h = instance.box
            image[y:y + h, x:x + w][instance.crop()] = value(instance)
    return image


# What the node publishes while somebody listens: topic, encoding, and the pixels of a frame.
IMAGES: dict[str, tuple[str, Callable[[FrameResult, Moving], np.ndarray]]] = {
    'label_image': ('mono16', lambda frame, _: label_image(frame.instances, frame.height, frame.width)),
    'semantic_mask': ('mono8', lambda frame, _: semantic_mask(frame.instances, frame.height, frame.width)),
    'semantic_confidence': ('mono8', lambda frame, _: semantic_confidence(frame.instances, frame.height, frame.width)),
    'static_mask': ('mono8', lambda frame, moving: static_mask(frame.instances, frame.height, frame.width, moving)),
}
