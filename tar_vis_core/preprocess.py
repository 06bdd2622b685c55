"""Prepare an image: check it, make the network's input, and make the small grey picture."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from tar_vis_core.masks import MaskGeometry
from tar_vis_core.models.video_model import VideoInstanceModel, input_size
from tar_vis_core.runtime.device import to_device

STRIDE = 4      # pixels of the network's input to a cell of the mask logits
GREY = np.array([0.299, 0.587, 0.114], np.float32)   # luma of ITU-R BT.601


def check_image(image: np.ndarray) -> np.ndarray:
    """Return the image in contiguous memory. Raise ValueError if it is not uint8 RGB ``(H, W, 3)``, or empty."""
    if not isinstance(image, np.ndarray):
        raise ValueError(f'expected a numpy array (H, W, 3) of uint8 RGB, got {type(image).__name__}')
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'expected an RGB image (H, W, 3), got shape {image.shape}')
    if image.dtype != np.uint8:
        raise ValueError(f'expected uint8 pixels, got {image.dtype}; convert to 0..255 first')
    if not image.size:
        raise ValueError(f'expected at least one pixel, got an image of {image.shape[1]}x{image.shape[0]}')
    return np.ascontiguousarray(image)


def prepare(model: VideoInstanceModel, image: np.ndarray, short_side: int) -> tuple[Tensor, MaskGeometry]:
    """Return the network's input for an image, uint8 RGB ``(H, W, 3)``, and the geometry of masks from it.

    See ``VideoInstanceModel.prepare``.
    """
    images, source = model.prepare(to_device(image, model.pixel_mean.device), short_side), image.shape[:2]
    padded = tuple(images.shape[-2:])
    return images, MaskGeometry((padded[0] // STRIDE, padded[1] // STRIDE), padded, input_size(*source, short_side),
                                source)


def small_grey(image: np.ndarray) -> np.ndarray:
    """Return the image area-averaged to at most 64 pixels across, as grey levels 0..255 in float32 ``(h, w)``."""
    h, w = image.shape[:2]
    width = min(64, w)
    size = width, min(h, max(1, round(h * width / w)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32) @ GREY
