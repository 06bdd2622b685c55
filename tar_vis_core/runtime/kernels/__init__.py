"""Compiled kernels: C++ for the CPU, built with the messages and called through ctypes; Triton for the GPU.

Each has a PyTorch form with the same numbers, which is used if the kernel was not built.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tar_vis_core.errors import first_line

LIBRARY = Path(__file__).with_name('libtar_vis_kernels.so')

MOST_SAMPLES = 64               # of a query and head of deformable attention
PANEL = 16                      # outputs of a convolution whose weights lie together
ATTENTION_WIDTHS = 16, 32, 64   # channels of a head
TRITON_WIDTHS = 16, 32, 64, 128     # the same, of deformable attention on a GPU


@functools.lru_cache(maxsize=1)
def compiled() -> ctypes.CDLL | None:
    """Return the compiled kernels for CPUs, None if they were not built or cannot be loaded."""
    try:
        # it names the same OpenMP runtime that torch has loaded, so both use one set of threads
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.tar_vis_deformable.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 7
        loaded.tar_vis_group_norm.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 4 + [ctypes.c_float]
        loaded.tar_vis_attention.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 5
        loaded.tar_vis_convolution.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 12 + [ctypes.c_float]
        loaded.tar_vis_samples.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 8
        for name in ('deformable', 'group_norm', 'attention', 'convolution', 'samples'):
            getattr(loaded, f'tar_vis_{name}').restype = None
    except (OSError, AttributeError):
        return None
    return loaded


def sample_deformable(value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor,
                      shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Return deformable samples on a CPU; arguments and result are those of the forms in ``models/deformable.py``.

    They are computed in float32 and returned in the dtype of ``value``, without gradient. Raise RuntimeError if the
    kernels are not there.
    """
    refuse_tracing()
    kernels = compiled()
    if kernels is None:
        raise RuntimeError(f'{LIBRARY} is not there: build the package with ROS, by colcon or pip')
    n, s, heads, levels, points, _ = offsets.shape
    cells, width = sum(h * w for h, w in shapes), value.shape[-1] // heads
    if levels * points > MOST_SAMPLES:
        raise ValueError(f'{levels} levels of {points} points, expected at most {MOST_SAMPLES} samples of a query')
    if (value.shape != (n, cells, heads * width) or logits.shape != offsets.shape[:-1] or len(shapes) != levels
            or reference.shape != (s, 2)):
        raise ValueError(f'shapes do not fit: value {tuple(value.shape)}, offsets {tuple(offsets.shape)}, logits '
                         f'{tuple(logits.shape)}, reference {tuple(reference.shape)}, levels {shapes}')
    read = [t.detach().to('cpu', torch.float32).contiguous() for t in (value, offsets, logits, reference)]
    sizes, out = torch.tensor(shapes, dtype=torch.int64), torch.empty(n, s, heads * width)
    scratch = torch.empty(value.shape if heads > 1 else 0)
    pointers = [t.data_ptr() for t in (*read, sizes, out, scratch)]
    kernels.tar_vis_deformable(*pointers, n, cells, s, heads, levels, points, width)
    return out.to(value.dtype)


def refuse_tracing() -> None:
    """Raise RuntimeError while torch records a graph, for an export or a compiler.

    Kernels are called through ctypes, so a graph would hold their results as constants, and be wrong without a word.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        raise RuntimeError("a compiled kernel cannot be traced, exported or compiled: the graph would hold its result "
                           "as a constant. Trace the plain model of weights.loading.load_model, not a segmenter's, "
                           'with gradients enabled: then PyTorch operators take the place of kernels')


@functools.lru_cache(maxsize=8)
def no_gpu_samples(width: int, device: torch.device) -> str:
    """Return why :func:`sample_on_gpu` is not used there with heads of so many channels, '' if it is.

    It is tried once, on random samples, against the form that is used in its place. Triton comes with PyTorch's builds
    for CUDA, but it needs a C compiler on the machine.
    """
    if width not in TRITON_WIDTHS:
        why = f'it does not do heads of {width} channels'
    elif importlib.util.find_spec('triton') is None:
        why = 'Triton is not installed'
    else:
        try:
            why = _wrong_samples(width, device)
        except Exception as error:      # of a compiler, a driver, or Triton: anything
            why = f'{type(error).__name__}: {first_line(error)}'
    if why:
        why = f'deformable attention runs by grid_sample, for its Triton kernel cannot be used here: {why}'
        warnings.warn(why, RuntimeWarning, stacklevel=3)
    return why


def _wrong_samples(width: int, device: torch.device) -> str:
    """Return by how much the GPU's kernel is off on 64 queries, '' if it is right."""
    from tar_vis_core.models.deformable import sample_by_grid

    shapes, heads, points = ((6, 8), (3, 4)), 2, 2
    random = np.random.default_rng(0)
    value, offsets, logits, reference = (
        torch.from_numpy(random.standard_normal(shape, np.float32)).to(device) for shape in (
            (1, 60, heads * width), (1, 64, heads, 2, points, 2), (1, 64, heads, 2, points), (64, 2)))
    args = value, 3 * offsets, logits, reference.sigmoid(), shapes
    gap = float((sample_on_gpu(*args) - sample_by_grid(*args)).abs().max())
    return '' if gap < 1e-3 else f'its samples are off by {gap:.2g}'    # not-a-number is off, too


def samples_on_gpu(width: int, device: torch.device) -> bool:
    """Return whether :func:`sample_on_gpu` can be called there with heads of so many channels."""
    return not no_gpu_samples(width, device)


def sample_on_gpu(value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor,
                  shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Return the samples of :func:`~tar_vis_core.runtime.kernels.triton_deformable.sample_by_triton`.

    Call it only if :func:`no_gpu_samples` returns ''."""
    from tar_vis_core.runtime.kernels.triton_deformable import sample_by_triton

    return sample_by_triton(value, offsets, logits, reference, shapes)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the group norm of ``(N, C, h, w)`` on a CPU, computed in float32; the result has its channels last.

    There is no gradient. Without the compiled kernels it is PyTorch's own, on memory with channels first: with channels
    last that loses digits if a group varies little.
    """
    kernels, dtype = compiled(), x.dtype
    if kernels is None:
        return torch.nn.functional.group_norm(x.float().contiguous(), groups, weight, bias, eps).to(dtype)
    refuse_tracing()
    n, channels, h, w = x.shape
    x = x.detach().to(torch.float32, memory_format=torch.channels_last)
    weight, bias, out = weight.detach().float().contiguous(), bias.detach().float().contiguous(), torch.empty_like(x)
    kernels.tar_vis_group_norm(x.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr(), n, h * w, channels,
                               groups, eps)
    return out.to(dtype)


class _Product(ctypes.Structure):
    """The kernel's ``Product``."""

    _fields_ = [(name, ctypes.c_void_p) for name in ('weights', 'bias', 'added')] + [
        (name, ctypes.c_int64) for name in ('outputs', 'added_step')] + [('slope', ctypes.c_float)]


@dataclass(frozen=True)
class Convolution:
    """A depthwise convolution and then 1x1 convolutions, either of which may be missing, as the kernel wants them.

    After each of them negative values are multiplied by its slope: 1 changes nothing. All tensors are float32.
    """

    channels: int
    filter: tuple[Tensor, Tensor, float] | None             # (kernel, kernel, channels), bias, slope
    products: tuple[tuple[Tensor, Tensor, float], ...]      # (outputs / PANEL, inputs, PANEL), bias, slope
    stride: int = 1

    @property
    def outputs(self) -> int:
        return len(self.products[-1][1]) if self.products else self.channels


def panels(weight: Tensor) -> Tensor:
    """Return ``weight (outputs, inputs)`` in panels of PANEL outputs; the last one may repeat some of the one before.
    """
    outputs = weight.shape[0]
    starts = [min(start, outputs - PANEL) for start in range(0, outputs, PANEL)]
    return torch.stack([weight[start:start + PANEL].t() for start in starts]).float().contiguous()


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


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


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
    return torch.empty(n, h, w, channels).permute(0, 3, 1, 2)


def convolve(x: Tensor, how: Convolution, added: Sequence[Tensor | None] = (), passed: Tensor | None = None,
             out: Tensor | None = None) -> Tensor:
    """Return a map ``(N, C, h, w)`` convolved, float32 with its channels last, without gradient.

    ``added`` has a map for each of the first 1x1 convolutions, which is added before its activation, or None. The
    channels of ``passed``, as many as the result's, come in turn with them: the result has twice as many, the first of
    ``passed``. ``out`` has room for the result: it may be some channels of another map.
    """
    refuse_tracing()
    if len(added) > len(how.products):
        raise ValueError(f'{len(added)} maps to add are more maps than 1x1 convolutions, {len(how.products)}')
    n, channels, height, width = x.shape
    size = (height - 1) // how.stride + 1, (width - 1) // how.stride + 1
    outputs = how.outputs * (1 if passed is None else 2)
    if out is None:
        out = torch.empty(n, *size, outputs).permute(0, 3, 1, 2)
    products, read = (_Product * len(how.products))(), []
    maps = [(x, (n, how.channels, height, width)), (passed, (n, how.outputs, *size)), (out, (n, outputs, *size))]
    for product, (weights, bias, slope), own in itertools.zip_longest(products, how.products, added):
        maps.append((own, (n, len(bias), *size)))
        read.append(_readable(own))
        product.weights, product.bias, product.added = map(_address, (weights, bias, read[-1][0]))
        product.outputs, product.added_step, product.slope = len(bias), read[-1][1], slope
    if wrong := [f'{tuple(given.shape)}, expected {shape}' for given, shape in maps
                 if given is not None and given.shape != shape]:
        raise ValueError(f'shapes do not fit: {"; ".join(wrong)}')
    (x, step), (passed, passed_step), out_step = _readable(x), _readable(passed), _step(out)
    if not out_step:
        raise ValueError('out is not float32 with its channels side by side')
    filters, bias, slope = how.filter or (None, None, 1.0)
    compiled().tar_vis_convolution(
        _address(x), _address(filters), _address(bias), products, _address(passed), _address(out), n, height, width,
        channels, step, 1 if filters is None else len(filters), how.stride, *size, len(products), passed_step, out_step,
        slope)
    return out


def sample_map(x: Tensor, places: Tensor, added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return a map ``(N, C, h, w)`` bilinearly sampled at ``places (H, W, 2)``, ``(N, C, H, W)`` with channels last.

    Places are x, y as shares of the map's sides; beyond the centres of its outermost cells the map goes on as there.
    ``added`` is of the result's shape, ``out`` is as in :func:`convolve` and not ``added``. It is float32, without
    gradient.
    """
    refuse_tracing()
    (n, channels, height, width), size = x.shape, places.shape[:2]
    if out is None:
        out = torch.empty(n, *size, channels).permute(0, 3, 1, 2)
    (x, step), (added, added_step), out_step = _readable(x), _readable(added), _step(out)
    places = places.float().contiguous()
    if channels < PANEL or not out_step or out.shape != (n, channels, *size) or (
            added is not None and added.shape != out.shape):
        raise ValueError(f'cannot sample {tuple(x.shape)} at {tuple(places.shape)} places into {tuple(out.shape)}')
    compiled().tar_vis_samples(*map(_address, (x, places, added, out)), n, size[0] * size[1], height, width, channels,
                               step, added_step, out_step)
    return out


@functools.lru_cache(maxsize=32)
def _centres(height: int, width: int) -> Tensor:
    y, x = ((torch.arange(cells) + 0.5) / cells for cells in (height, width))
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).contiguous()


def enlarge(x: Tensor, size: tuple[int, int], added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return a map ``(N, C, h, w)`` resized as ``layers.bilinear`` does; the rest is as in :func:`sample_map`."""
    return sample_map(x, _centres(*size), added, out)


def attends(width: int) -> bool:
    """Return whether :func:`attention` can be called with heads of so many channels."""
    return width in ATTENTION_WIDTHS and compiled() is not None


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, keep: Tensor | None) -> Tensor:
    """Return scaled dot-product attention on a CPU, ``(N, Q, D)``: ``query (N, Q, D)`` over ``key, value (N, S, D)``.

    ``keep (N, Q, S)`` is True where attention is allowed. A query without any such key gets NaN, as in PyTorch's own.
    It is computed in float32 and returned in the dtype of ``query``, without gradient. Call it only if :func:`attends`
    allows.
    """
    refuse_tracing()
    (n, queries, dim), keys = query.shape, key.shape[1]
    if key.shape != (n, keys, dim) or value.shape != key.shape or (
            keep is not None and (keep.shape != (n, queries, keys) or keep.dtype != torch.bool)):
        raise ValueError(f'shapes do not fit: query {tuple(query.shape)}, key {tuple(key.shape)}, value '
                         f'{tuple(value.shape)}, keep {None if keep is None else (tuple(keep.shape), keep.dtype)}')
    read = [t.detach().to(torch.float32).contiguous() for t in (query, key, value)]
    keep = None if keep is None else keep.contiguous()
    out = torch.empty(n, queries, dim)
    compiled().tar_vis_attention(*(t.data_ptr() for t in read), None if keep is None else keep.data_ptr(),
                                out.data_ptr(), n, queries, keys, heads, dim // heads)
    return out.to(query.dtype)
