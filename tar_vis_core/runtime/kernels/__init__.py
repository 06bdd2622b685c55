"""Compiled kernels: C++ for the CPU, built with the messages and called through ctypes; Triton for the GPU.

Each has a PyTorch form with the same numbers, which is used if the kernel was not built.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tar_vis_core.errors import first_line

LOAD = b'/proc/loadavg'         # its fourth word begins with the number of threads that run or wait for a processor
PROCESSORS = os.cpu_count() or 1
LIBRARY = Path(__file__).with_name('libtar_vis_kernels.so')

MOST_SAMPLES = 64               # of a query and head of deformable attention
ATTENTION_WIDTHS = 16, 32, 64   # channels of a head
TRITON_WIDTHS = 16, 32, 64, 128     # the same, of deformable attention on a GPU


@functools.lru_cache(maxsize=1)
def compiled() -> ctypes.CDLL | None:
    """Return the compiled kernels for CPUs, None if they were not built or cannot be loaded."""
    try:
        # it names the same OpenMP runtime that torch has loaded, so both use one set of threads
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.tar_vis_deformable.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 10
        norm = ctypes.c_float, ctypes.c_int64
        loaded.tar_vis_group_norm.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 4 + [*norm]
        loaded.tar_vis_layer_norm.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 3 + [*norm]
        loaded.tar_vis_attention.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 6
        loaded.tar_vis_calls.argtypes = ctypes.c_void_p, ctypes.c_int64
        loaded.tar_vis_propose.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 6 + [ctypes.c_float] * 2
        loaded.tar_vis_mask.argtypes = ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 3
        loaded.tar_vis_normalize.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 5
        for name in ('deformable', 'group_norm', 'layer_norm', 'attention', 'calls', 'propose', 'mask', 'normalize',
                     'end_helpers'):
            getattr(loaded, f'tar_vis_{name}').restype = None
        loaded.tar_vis_seat_threads.argtypes = ctypes.c_int64,
        loaded.tar_vis_free_thread.argtypes = ctypes.c_char_p,
        loaded.tar_vis_seat_threads.restype, loaded.tar_vis_free_thread.restype = ctypes.c_int, None
        loaded.tar_vis_fast_bfloat16.restype = ctypes.c_int
    except (OSError, AttributeError):
        return None
    return loaded


def fast_bfloat16() -> bool:
    """Return whether the compiled kernels multiply bfloat16 faster than float32 on this processor."""
    loaded = compiled()
    return loaded is not None and bool(loaded.tar_vis_fast_bfloat16())


def end_helpers() -> None:
    """End the threads that help the calling one; they are started again when they are needed, in 0.1 ms.

    For a thread that has done its work, such as loading a model: with another one's they would be more threads than
    processors, and then none of them waits without sleeping.
    """
    if compiled() is not None:
        compiled().tar_vis_end_helpers()


@contextlib.contextmanager
def seated_threads() -> Iterator[None]:
    """Let torch's CPU threads have processors of their own while the block runs.

    There are as many as other programs leave processors free, at least one and at most torch's own number. Linux alone,
    with the compiled kernels, and where the process may use all processors. Afterwards the calling thread may run again
    wherever it could before. The others of its team keep away from where it was; they do nothing but what torch gives
    them.
    """
    loaded = compiled()
    seated = loaded is not None and loaded.tar_vis_seat_threads(PROCESSORS)
    try:
        yield
    finally:
        if seated:
            loaded.tar_vis_free_thread(LOAD)


def sample_deformable(value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor,
                      shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Return deformable samples on a CPU; arguments and result are those of the forms in ``models/deformable.py``.

    All are read as they are if all but ``reference`` are bfloat16, else in float32. Samples are computed in float32 and
    returned in the dtype of ``value``, without gradient. Raise RuntimeError if the kernels are not there.
    """
    refuse_tracing()
    kernels = compiled()
    if kernels is None:
        raise RuntimeError(f'{LIBRARY} is not there: build the package with ROS, by colcon or pip')
    n, s, heads, levels, points, _ = offsets.shape
    cells, width, given = sum(h * w for h, w in shapes), value.shape[-1] // heads, value.dtype
    if levels * points > MOST_SAMPLES:
        raise ValueError(f'{levels} levels of {points} points, expected at most {MOST_SAMPLES} samples of a query')
    if (value.shape != (n, cells, heads * width) or logits.shape != offsets.shape[:-1] or len(shapes) != levels
            or reference.shape != (s, 2)):
        raise ValueError(f'shapes do not fit: value {tuple(value.shape)}, offsets {tuple(offsets.shape)}, logits '
                         f'{tuple(logits.shape)}, reference {tuple(reference.shape)}, levels {shapes}')
    half = value.dtype == offsets.dtype == logits.dtype == torch.bfloat16
    dtype = torch.bfloat16 if half else torch.float32
    value, offsets, logits = (t.detach().to('cpu', dtype) for t in (value, offsets, logits))
    value, reference = value.contiguous(), reference.detach().to('cpu', torch.float32).contiguous()
    offsets, offset_step = _by_query(offsets)
    logits, logit_step = _by_query(logits)
    sizes, out = torch.tensor(shapes, dtype=torch.int64), torch.empty(n, s, heads * width, dtype=dtype)
    scratch = torch.empty_like(value)
    pointers = [t.data_ptr() for t in (value, offsets, logits, reference, sizes, out, scratch)]
    kernels.tar_vis_deformable(*pointers, n, cells, s, heads, levels, points, width, offset_step, logit_step, half)
    return out.to(given)


def _by_query(x: Tensor) -> tuple[Tensor, int]:
    """Return ``(N, Sq, ..)``, which may be a part of rows, as the kernel reads it and the step from query to query."""
    step = x.stride(1)
    if x[0, 0].is_contiguous() and (x.shape[0] == 1 or x.stride(0) == x.shape[1] * step):
        return x, step
    return x.contiguous(), x[0, 0].numel()


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
    half = dtype == torch.bfloat16
    x = x.detach().to(dtype if half else torch.float32, memory_format=torch.channels_last)
    weight, bias, out = weight.detach().float().contiguous(), bias.detach().float().contiguous(), torch.empty_like(x)
    kernels.tar_vis_group_norm(x.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr(), n, h * w, channels,
                               groups, eps, half)
    return out.to(dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, added: Tensor | None = None,
               ) -> tuple[Tensor, Tensor | None]:
    """Return the layer norm of ``x (N, S, C)``, and its sum with ``added (S, C)`` if there is one.

    It is for a CPU, float32 or bfloat16, computed in float32, and without gradient. C is a multiple of 16.
    """
    refuse_tracing()
    half, channels = x.dtype == torch.bfloat16, x.shape[-1]
    x = x.detach().to(x.dtype if half else torch.float32).contiguous()
    weight, bias, added = (None if t is None else t.detach().float().contiguous() for t in (weight, bias, added))
    if added is not None and added.shape != x.shape[1:]:
        raise ValueError(f'shapes do not fit: x {tuple(x.shape)}, added {tuple(added.shape)}')
    out, total = torch.empty_like(x), None if added is None else torch.empty_like(x)
    pointers = [None if t is None else t.data_ptr() for t in (x, weight, bias, added, out, total)]
    compiled().tar_vis_layer_norm(*pointers, x.numel() // channels, channels, x.shape[1], eps, half)
    return out, total


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
    half = query.dtype == key.dtype == value.dtype == torch.bfloat16
    dtype = torch.bfloat16 if half else torch.float32
    read = [t.detach().to(dtype).contiguous() for t in (query, key, value)]
    keep = None if keep is None else keep.contiguous()
    out = torch.empty(n, queries, dim, dtype=dtype)
    compiled().tar_vis_attention(*(t.data_ptr() for t in read), None if keep is None else keep.data_ptr(),
                                out.data_ptr(), n, queries, keys, heads, dim // heads, half)
    return out.to(query.dtype)
