"""Convolutions and samples of maps by the compiled kernels of a CPU, in float32."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.kernels.tapes import CONVOLUTION, SAMPLES, Product, address, room, run

PANEL = 16      # outputs of a convolution whose weights lie together


class _Level(ctypes.Structure):
    """The kernel's ``DetectorLevel``."""

    _fields_ = [(name, ctypes.c_void_p) for name in ('predictions', 'content')] + [
        (name, ctypes.c_int64) for name in ('height', 'width', 'stride', 'step', 'content_step')]


class _Axis(ctypes.Structure):
    """The kernel's ``Axis``."""

    _fields_ = [(name, ctypes.c_void_p) for name in ('weights', 'first', 'last')] + [
        (name, ctypes.c_int64) for name in ('inputs', 'begin', 'end')]


@dataclass(frozen=True)
class Convolution:
    """A depthwise convolution and then 1x1 convolutions, either of which may be missing, as the kernel wants them.

    Without any of them it is a copy. In place of a filter it may ``pool``: the greatest values of 3x3 pixels, stride 2.
    After each convolution negative values are multiplied by its slope: 1 changes nothing. All tensors are float32, but
    weights of 1x1 convolutions may be bfloat16: then their inputs are rounded to it as well, and summed up in float32.
    """

    channels: int
    filter: tuple[Tensor, Tensor, float] | None             # (kernel, kernel, channels), bias, slope
    products: tuple[tuple[Tensor, Tensor, float], ...]      # of ``panels``, bias, slope
    stride: int = 1
    pools: bool = False

    @functools.cached_property
    def outputs(self) -> int:
        return self.wide[-1] if self.products else self.channels

    @functools.cached_property
    def wide(self) -> tuple[int, ...]:
        """The outputs of each 1x1 convolution."""
        return tuple(len(bias) for _, bias, _ in self.products)

    @functools.cached_property
    def for_kernel(self) -> ctypes.Array[Product]:
        """The 1x1 convolutions as the kernel takes them, nothing added: made once, for a call takes some µs."""
        return (Product * len(self.products))(*(
            (weights.data_ptr(), bias.data_ptr(), None, len(bias), 0, slope, weights.dtype == torch.bfloat16)
            for weights, bias, slope in self.products))


def panels(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return ``weight (outputs, inputs)`` in panels of PANEL outputs; the last one may repeat some of the one before.

    Float32 is ``(outputs / PANEL, inputs, PANEL)``. Bfloat16 is ``(outputs / PANEL, inputs / 2, PANEL, 2)``, with zeros
    after an odd number of inputs.
    """
    outputs, inputs = weight.shape
    starts = [min(start, outputs - PANEL) for start in range(0, outputs, PANEL)]
    if dtype == torch.bfloat16:
        weight = F.pad(weight, (0, inputs % 2)).unflatten(1, (-1, 2))
    return torch.stack([weight[start:start + PANEL].transpose(0, 1) for start in starts]).to(dtype).contiguous()


def _step(x: Tensor) -> int:
    """Return the floats from a pixel of ``(N, C, h, w)`` to the next, 0 if channels do not lie side by side.

    Pixels may lie farther apart than C floats: a part of the channels of a map.
    """
    n, channels, h, w = x.shape
    frame, channel, row, pixel = x.stride()
    step = pixel if w > 1 else row if h > 1 else frame if n > 1 else channels
    fits = x.dtype == torch.float32 and (channel == 1 or channels == 1) and (h == 1 or row == w * step) and (
        n == 1 or frame == h * w * step)
    return step if fits else 0


def _readable(x: Tensor | None) -> tuple[Tensor | None, int]:
    """Return a map as the kernel reads it, copied if need be, and its step; nothing if there is none."""
    if x is None:
        return None, 0
    step = _step(x)
    return (x, step) if step else (
        x.detach().to(torch.float32).contiguous(memory_format=torch.channels_last), x.shape[1])


def empty_map(like: Tensor, channels: int) -> Tensor:
    """Return memory for a map ``(N, channels, h, w)`` of the size of ``like (N, C, h, w)``, channels last."""
    n, _, h, w = like.shape
    return room(n, h, w, channels)


def convolve(x: Tensor, how: Convolution, added: Sequence[Tensor | None] = (), passed: Tensor | None = None,
             out: Tensor | None = None) -> Tensor:
    """Return a map ``(N, C, h, w)`` convolved, float32 with its channels last, without gradient.

    ``added`` has a map for each of the first 1x1 convolutions, which is added before its activation, or None. The
    channels of ``passed``, as many as the result's, come in turn with them: the result has twice as many, the first of
    ``passed``. ``out`` has room for the result: it may be some channels of another map.
    """
    kernels.refuse_tracing()
    if len(added) > len(how.products):
        raise ValueError(f'{len(added)} maps to add are more maps than 1x1 convolutions, {len(how.products)}')
    n, channels, height, width = x.shape
    size = (height - 1) // how.stride + 1, (width - 1) // how.stride + 1
    outputs = how.outputs * (1 if passed is None else 2)
    if out is None:
        out = room(n, *size, outputs)
    maps = [(x, (n, how.channels, height, width)), (passed, (n, how.outputs, *size)), (out, (n, outputs, *size)),
            *((own, (n, wide, *size)) for own, wide in zip(added, how.wide))]
    if any(given is not None and given.shape != shape for given, shape in maps):
        raise ValueError('shapes do not fit: ' + '; '.join(
            f'{tuple(given.shape)}, expected {shape}' for given, shape in maps if given is not None))
    products, read = how.for_kernel, [_readable(own) for own in added]
    if read:
        products = type(products).from_buffer_copy(products)
        for product, (own, step) in zip(products, read):
            product.added, product.added_step = address(own), step
    (x, step), (passed, passed_step), out_step = _readable(x), _readable(passed), _step(out)
    if not out_step:
        raise ValueError('out is not float32 with its channels side by side')
    filters, bias, slope = how.filter or (None, None, 1.0)
    kernel = 3 if how.pools else 1 if filters is None else len(filters)
    run(CONVOLUTION, (x, filters, bias, None, passed, out),
        (n, height, width, channels, step, kernel, how.stride, *size, len(products), passed_step, out_step), slope,
        products, tuple(own for own, _ in read))
    return out


def sample_map(x: Tensor, places: Tensor, added: Tensor | None = None, out: Tensor | None = None,
               made: bool = False) -> Tensor:
    """Return a map ``(N, C, h, w)`` bilinearly sampled at ``places (H, W, 2)``, ``(N, C, H, W)`` with channels last.

    Places are x, y as shares of the map's sides; beyond the centres of its outermost cells the map goes on as there.
    ``added`` is of the result's shape, ``out`` is as in :func:`convolve` and not ``added``. Places are constant for a
    tape, unless a kernel has ``made`` them. It is float32, without gradient.
    """
    kernels.refuse_tracing()
    (n, channels, height, width), size = x.shape, places.shape[:2]
    if out is None:
        out = room(n, *size, channels)
    (x, step), (added, added_step), out_step = _readable(x), _readable(added), _step(out)
    places = places.float().contiguous()
    if channels < PANEL or not out_step or out.shape != (n, channels, *size) or (
            added is not None and added.shape != out.shape):
        raise ValueError(f'cannot sample {tuple(x.shape)} at {tuple(places.shape)} places into {tuple(out.shape)}')
    run(SAMPLES, (x, None if made else places, added, out, places if made else None, None),
        (n, size[0] * size[1], height, width, channels, step, added_step, out_step))
    return out


@functools.lru_cache(maxsize=32)
def _centres(height: int, width: int) -> Tensor:
    y, x = ((torch.arange(cells) + 0.5) / cells for cells in (height, width))
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).contiguous()


def enlarge(x: Tensor, size: tuple[int, int], added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return a map ``(N, C, h, w)`` resized as ``layers.bilinear`` does; the rest is as in :func:`sample_map`."""
    if x.shape[-2:] == size and added is None:
        return convolve(x, Convolution(x.shape[1], None, ()), out=out)
    return sample_map(x, _centres(*size), added, out)


def normalized(x: Tensor, mean: Tensor, std: Tensor, size: tuple[int, int]) -> Tensor:
    """Return bytes ``(N, C, h, w)`` as ``(x - mean) / std``, zero-padded right and below to ``size``, channels last.

    ``mean`` and ``std`` have C numbers. It is float32.
    """
    kernels.refuse_tracing()
    n, channels, height, width = x.shape
    x, mean, std = x.permute(0, 2, 3, 1).contiguous(), *(part.flatten().float().repeat(width) for part in (mean, std))
    out = torch.empty(n, *size, channels)
    kernels.compiled().tar_vis_normalize(*map(address, (x, mean, std, out)), n, height, channels * width, size[0],
                                         channels * size[1])
    return out.permute(0, 3, 1, 2)


def resized_mask(x: Tensor, *axes: tuple[Tensor, np.ndarray, np.ndarray, int, int]) -> np.ndarray:
    """Return where a map ``(h, w)`` that is resized along both axes is positive, boolean.

    An axis, vertical or horizontal, has weights ``(outputs, inputs)``, the first and last input ``(outputs,)`` int64
    that each output reads, and which outputs are wanted, begin and end.
    """
    x = x.detach().to(torch.float32).contiguous()
    read = [_Axis(weights.data_ptr(), first.ctypes.data, last.ctypes.data, weights.shape[1], begin, end)
            for weights, first, last, begin, end in axes]
    found = np.empty([axis.end - axis.begin for axis in read], bool)
    kernels.compiled().tar_vis_mask(address(x), x.shape[1], *map(ctypes.byref, read), found.ctypes.data)
    return found


def likeliest_cells(predictions: Sequence[Tensor], content: Sequence[Tensor], strides: Sequence[int], classes: int,
                    candidates: int, queries: int, shares: tuple[float, float], least: float,
                    ) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes ``(N, Q, 4)``, logits ``(N, Q, classes)`` and content ``(N, Q, C)`` of a detector's best cells.

    What they are, and the maps ``predictions (N, classes + 32, h, w)`` and ``content (N, C, h, w)``, is said in
    ``models/proposals.py``. ``shares`` are the parts of two areas' sum above which boxes of one class, or of two, are
    the same; ``least`` is the logit of what was dropped. It is float32, without gradient.
    """
    kernels.refuse_tracing()
    read = [(*map(_readable, pair), pair[0].shape, stride)
            for *pair, stride in zip(predictions, content, strides, strict=True)]
    levels = (_Level * len(read))(*((address(x), address(y), *shape[2:], stride, step, content_step)
                                    for (x, step), (y, content_step), shape, stride in read))
    n, channels = len(content[0]), content[0].shape[1]
    out = torch.zeros(n, queries, 4), torch.full((n, queries, classes), least), torch.zeros(n, queries, channels)
    kernels.compiled().tar_vis_propose(levels, *map(address, out), n, len(levels), classes, channels, candidates,
                                       queries, *shares)
    return out
