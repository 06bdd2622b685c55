"""An image as it comes in, checked, and resized for the network."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.models.video_model import input_size

GREY = np.array([0.299, 0.587, 0.114], np.float32)   # luma of ITU-R BT.601


def check_image(image: np.ndarray) -> np.ndarray:
    """The image as contiguous memory; ValueError where it is not uint8 RGB ``(H, W, 3)`` with at least one pixel."""
    if not isinstance(image, np.ndarray):
        raise ValueError(f'expected a numpy array (H, W, 3) of uint8 RGB, got {type(image).__name__}')
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'expected an RGB image (H, W, 3), got shape {image.shape}')
    if image.dtype != np.uint8:
        raise ValueError(f'expected uint8 pixels, got {image.dtype}; convert to 0..255 first')
    if not image.size:
        raise ValueError(f'expected at least one pixel, got an image of {image.shape[1]}x{image.shape[0]}')
    return np.ascontiguousarray(image)


def resized(image: np.ndarray, short_side: int) -> Tensor:
    """uint8 RGB ``(H, W, 3)`` to uint8 ``(1, 3, h, w)`` whose shorter edge is ``short_side`` (longer at most 1333)."""
    # torch may not be given memory that numpy holds read-only
    x = torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)[None]
    size = input_size(image.shape[0], image.shape[1], short_side)
    if size == tuple(image.shape[:2]):
        return x
    # antialiased as the models' training images are
    return F.interpolate(x, size, mode='bilinear', align_corners=False, antialias=True)


def small_grey(image: np.ndarray, width: int = 64) -> np.ndarray:
    """The image area-averaged to about ``width`` pixels across, as grey levels 0..255 in float32 ``(h, w)``."""
    h, w = image.shape[:2]
    width = min(width, w)
    size = width, min(h, max(1, round(h * width / w)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32) @ GREY
