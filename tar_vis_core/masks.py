"""Mask logits at stride 4 to masks at the source image's size, computed only where a mask can be.

The reference resizes twice, bilinear without antialiasing: stride 4 to the padded network input, crop the padding,
then to the source image (the inference of MinVIS). Both resizes and the crop are linear and act on each axis alone,
so together they are one small matrix per axis: ``full = R_y @ logits @ R_x.T``. Its weights are never negative, hence
an output pixel can be positive only where one of the few stride-4 pixels that it reads is positive. Evaluating just
the rows and columns around a mask's positive pixels is therefore exact, not an approximation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import to_host
from tar_vis_core.runtime.kernels.maps import resized_mask

MOST_PIXELS = 2 ** 24       # of masks that a GPU makes at once, about eight bytes each (eight of 1920x1080)
_ONES = np.array([bin(byte).count('1') for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class MaskGeometry:
    """The sizes a mask passes through, each (height, width) in pixels."""

    logits: tuple[int, int]    # stride-4 grid of the padded input
    padded: tuple[int, int]    # the network's input
    content: tuple[int, int]   # the resized image inside the padded input, upper left
    source: tuple[int, int]    # the image that came in

    @property
    def axes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Return the same four sizes of each axis, vertical and horizontal."""
        return tuple(zip(self.logits, self.padded, self.content, self.source, strict=True))

    @property
    def content_cells(self) -> tuple[int, int]:
        """Return how many stride-4 rows and columns hold image, not only padding."""
        return tuple(-(-c * n // p) for c, n, p in zip(self.content, self.logits, self.padded, strict=True))


@dataclass(frozen=True)
class AxisResize:
    """Both resizes and the crop along one axis, ``out = weights @ in``."""

    weights: Tensor      # (n_out, n_in) float32
    first: np.ndarray    # (n_out,) first input that an output reads; never falls
    last: np.ndarray     # (n_out,) last input that an output reads; never falls

    def window(self, low: int, high: int) -> tuple[slice, slice]:
        """Return the outputs that read any input of ``low..high`` (inclusive), and all inputs that these read."""
        start = int(np.searchsorted(self.last, low, 'left'))
        stop = int(np.searchsorted(self.first, high, 'right'))
        if start >= stop:
            return slice(0, 0), slice(0, 0)
        return slice(start, stop), slice(int(self.first[start]), int(self.last[stop - 1]) + 1)


@functools.lru_cache(maxsize=16)
def axis_resize(inputs: int, padded: int, content: int, outputs: int) -> AxisResize:
    """Return the resize of one axis: ``inputs`` to ``padded``, cropped to ``content``, to ``outputs`` pixels."""
    # what bilinear resizing does to unit vectors is its matrix
    x = F.interpolate(torch.eye(inputs)[None], padded, mode='linear', align_corners=False)[..., :content]
    weights = F.interpolate(x, outputs, mode='linear', align_corners=False)[0].t().contiguous()
    used = weights.numpy() > 0
    return AxisResize(weights, used.argmax(1), inputs - 1 - used[:, ::-1].argmax(1))


@functools.lru_cache(maxsize=16)
def axis_weights(axis: tuple[int, int, int, int], device: torch.device) -> Tensor:
    """Return the weights of :func:`axis_resize` on a device."""
    return axis_resize(*axis).weights.to(device)


Placed = tuple[tuple[int, int, int, int], np.ndarray]      # tight box (x, y, width, height), boolean mask inside it


def full_size_mask(logits: Tensor, geometry: MaskGeometry) -> Placed | None:
    """Return the mask in source pixels of logits ``(h, w)`` at stride 4, which are float32 on the CPU.

    None if no source pixel is positive.
    """
    axes = [axis_resize(*sizes) for sizes in geometry.axes]
    window = _window(geometry, (logits > 0).numpy())
    if window is None:
        return None
    (out_y, in_y), (out_x, in_x) = window
    if kernels.compiled() is None:
        full = axes[0].weights[out_y, in_y] @ (logits[in_y, in_x] @ axes[1].weights[out_x, in_x].t())
        return _placed((full > 0).numpy(), out_y.start, out_x.start)
    wanted = [(axis.weights, axis.first, axis.last, own.start, own.stop)
              for axis, own in zip(axes, (out_y, out_x), strict=True)]
    return _placed(resized_mask(logits, *wanted), out_y.start, out_x.start)


def full_size_masks(logits: Tensor, positive: np.ndarray, geometry: MaskGeometry) -> list[Placed | None]:
    """Return :func:`full_size_mask` of each of ``logits (K, h, w)``, float32 on a GPU, in one transfer.

    ``positive (K, h, w)`` says where they are positive.
    """
    y, x = (axis_weights(axis, logits.device) for axis in geometry.axes)
    logits = logits.clamp(-6e4, 6e4)        # of what half precision could not hold: zero times infinity is no number
    at_once = max(1, MOST_PIXELS // (geometry.source[0] * geometry.source[1]))
    bits = torch.cat([packed_bits(y @ (some @ x.t()) > 0) for some in logits.split(at_once)])
    return [_from_bits(own, there, geometry) for own, there in zip(to_host(bits)[0].numpy(), positive, strict=True)]


def _from_bits(bits: np.ndarray, positive: np.ndarray, geometry: MaskGeometry) -> Placed | None:
    window = _window(geometry, positive)
    if window is None:
        return None
    (out_y, _), (out_x, _) = window
    first = out_x.start // 8        # only the bytes of the window are unpacked
    mask = np.unpackbits(bits[out_y, first:-(-out_x.stop // 8)], axis=1).view(bool)
    return _placed(mask[:, :out_x.stop - 8 * first], out_y.start, 8 * first)


def packed_bits(masks: Tensor) -> Tensor:
    """Return boolean ``(..., w)`` as bytes ``(..., ceil(w / 8))`` of eight pixels, the first in the highest bit."""
    eights = F.pad(masks, (0, -masks.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (eights.to(torch.uint8) << torch.arange(7, -1, -1, dtype=torch.uint8, device=masks.device)).sum(
        -1, dtype=torch.uint8)


def _window(geometry: MaskGeometry, positive: np.ndarray) -> list[tuple[slice, slice]] | None:
    """Return for each axis the source pixels that read any of the ``positive`` cells, and all cells that they read."""
    hits = [np.flatnonzero(positive.any(axis)) for axis in (1, 0)]
    if not hits[0].size:
        return None
    return [axis_resize(*sizes).window(int(hit[0]), int(hit[-1])) for sizes, hit in zip(
        geometry.axes, hits, strict=True)]


def _placed(mask: np.ndarray, y: int, x: int) -> Placed | None:
    """Return a mask whose upper left pixel is at ``(x, y)``, cut to its box; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return (x + x0, y + y0, x1 - x0, y1 - y0), mask[y0:y1, x0:x1]


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return common pixels of every pair of boolean masks ``(A, h, w)`` and ``(B, h, w)``, int64 ``(A, B)``."""
    words_a, words_b = _packed(a), _packed(b)
    common = np.zeros((len(a), len(b)), np.int64)
    for row, words in zip(common, words_a, strict=True):
        row[:] = _count_bits(words & words_b).sum(1)
    return common


def _count_bits(words: np.ndarray) -> np.ndarray:
    if hasattr(np, 'bitwise_count'):  # numpy 2
        return np.bitwise_count(words)
    return _ONES[words.view(np.uint8)]


def _packed(masks: np.ndarray) -> np.ndarray:
    """Return 64 pixels per word, ``(N, words)``: counting bits needs no threads, which cost more than the work."""
    packed = np.packbits(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]), axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


def mask_ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union of every pair of boolean masks ``(A, h, w)`` and ``(B, h, w)``, ``(A, B)``."""
    common = intersections(a, b)
    union = a.sum((1, 2))[:, None] + b.sum((1, 2))[None] - common
    return common / np.maximum(union, 1)
