"""Functions of maps as lists of kernel calls, which are made again for other maps in one call.

A call of a kernel takes longer in Python than in a small map. So the first time that maps of some sizes come, the
function runs, and what it asks of the kernels is written down: addresses of its inputs, of memory that it took, and of
constants. The next time, the first two are replaced.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tar_vis_core.runtime import kernels

KEPT_SIZES = 8      # of maps
CONVOLUTION, SAMPLES, ATTENTION, NORM, CELLS, MASKS, GRIDS = range(7)
# pointers of a call that are not constants
MAPS = {CONVOLUTION: (0, 4, 5), SAMPLES: (0, 2, 3, 4), ATTENTION: range(5), NORM: (0, 3, 4, 5), CELLS: range(4),
        MASKS: range(4), GRIDS: (0, 1)}
ALIGNED = 64        # bytes at which a part of the memory begins

_written = threading.local()


class Product(ctypes.Structure):
    """The kernel's ``Product``."""

    _fields_ = [(name, ctypes.c_void_p) for name in ('weights', 'bias', 'added')] + [
        (name, ctypes.c_int64) for name in ('outputs', 'added_step')] + [
        ('slope', ctypes.c_float), ('half', ctypes.c_int32)]


class Call(ctypes.Structure):
    """The kernels' ``Call``."""

    _fields_ = [('kind', ctypes.c_int64), *((f'pointer{k}', ctypes.c_void_p) for k in range(6)),
                *((f'size{k}', ctypes.c_int64) for k in range(12)), ('slope', ctypes.c_float)]


def words(structures: ctypes.Array) -> np.ndarray:
    """Return the memory of structures as int64, a row for each."""
    return np.frombuffer(structures, np.int64).reshape(len(structures), -1)


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor lies, None if there is none."""
    return None if tensor is None else tensor.data_ptr()


def memory(*shape: int) -> Tensor:
    """Return memory for a kernel to write to, float32."""
    taken = torch.empty(shape)
    if (tape := getattr(_written, 'tape', None)) is not None:
        tape.taken.append((taken.data_ptr(), taken.data_ptr() + 4 * taken.numel()))
    return taken


def room(*shape: int) -> Tensor:
    """Return memory for a map ``(N, h, w, C)`` as ``(N, C, h, w)``."""
    return memory(*shape).permute(0, 3, 1, 2)


def run(kind: int, tensors: tuple[Tensor | None, ...], sizes: tuple[int, ...], slope: float = 1.0,
        products: ctypes.Array | None = None, others: tuple[Tensor | None, ...] = ()) -> None:
    """Call a kernel with six pointers and some sizes.

    The fourth pointer is that of ``products``, if there are any; ``others`` are what they read.
    """
    call = Call(kind, *map(address, tensors), *sizes, slope=slope)
    if products is not None:
        call.pointer3 = ctypes.addressof(products)
    kernels.compiled().tar_vis_calls(ctypes.byref(call), 1)
    if (tape := getattr(_written, 'tape', None)) is not None:
        tape.note(call, products, tensors, others)


class Tape:
    """The kernel calls of a function from maps to maps."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> None:
        """Write down what the function asks of the kernels; nothing else that it does is repeated.

        A constant that it adds to a map must be made before any map: later it may lie where a map was. Raise
        RuntimeError if it reads or returns a map that neither it nor its inputs hold.
        """
        self.taken: list[tuple[int, int]] = []
        self.constants: list[Tensor] = []
        self._calls: list[tuple[Call, ctypes.Array | None]] = []
        self._inputs = [(x.data_ptr(), x.data_ptr() + 4 * x.numel()) for x in inputs]
        self._found: list[list[tuple[int, int]]] = []       # where the pointers of each call lie
        self._read: list[list[tuple[int, int]]] = []        # the same of each product
        _written.tape = self
        try:
            outputs = function(*inputs)
        finally:
            _written.tape = None
        self._views = [(x.shape, x.stride(), *self._place(x.data_ptr())) for x in outputs]
        if any(where >= 0 for *_, where, _ in self._views):
            raise RuntimeError('a map that is returned lies in none that the kernels have written')
        starts = self._starts()
        self._views = [(shape, stride, starts[-1 - where] + offset) for shape, stride, where, offset in self._views]
        counts = [0 if own is None else len(own) for _, own in self._calls]
        self.calls = (Call * len(counts))(*(call for call, _ in self._calls))
        self.products = (Product * sum(counts))(*(p for _, own in self._calls for p in (() if own is None else own)))
        first = np.cumsum([0, *counts[:-1]]) * ctypes.sizeof(Product) + ctypes.addressof(self.products)
        for found, start, count in zip(self._found, first, counts, strict=True):
            if count:
                found[3] = 0, int(start)
        self._parts = []
        for own, places in ((words(self.calls)[:, 1:7], self._found), (words(self.products)[:, :3], self._read)):
            where, offsets = np.array(places, np.int64).reshape(*own.shape, 2).transpose(2, 0, 1)
            taken = where < 0
            offsets[taken] += np.array(starts, np.int64)[-1 - where[taken]]
            where[taken] = 1
            self._parts.append((own, where, offsets))
        self._bases: tuple[int, ...] = ()       # that the calls hold now
        del self._calls, self._found, self._read, self.taken

    def note(self, call: Call, products: ctypes.Array | None, tensors: tuple[Tensor | None, ...],
             others: tuple[Tensor | None, ...]) -> None:
        """Write down a call, and keep what it reads that is neither an input nor memory that was taken."""
        found = [self._place(address(t) or 0, k in MAPS[call.kind]) for k, t in enumerate(tensors)]
        if any(tensors[k] is not None and found[k][0] == 0 for k in MAPS[call.kind]):
            raise RuntimeError('a map that is read was made by something other than a kernel')
        read = [[self._place(p.weights, False), self._place(p.bias, False), self._place(p.added or 0)]
                for p in products or ()]
        self._calls.append((call, products))
        self._found.append(found)
        self._read += read
        self.constants += [t for t in others if t is not None and self._place(t.data_ptr())[0] == 0]
        self.constants += [t for k, t in enumerate(tensors) if k not in MAPS[call.kind]]

    def _place(self, pointer: int, written: bool = True) -> tuple[int, int]:
        """Return where an address lies and how far in: 0 for constants, from 2 on inputs, below 0 what was taken.

        Only what is ``written`` lies where memory was taken; a constant may have come there when that was free again.
        """
        for k, (first, last) in enumerate(self._inputs):
            if first <= pointer < last:
                return 2 + k, pointer - first
        for k in reversed(range(len(self.taken) if written else 0)):        # the last that was taken there
            if self.taken[k][0] <= pointer < self.taken[k][1]:
                return -1 - k, pointer - self.taken[k][0]
        return 0, pointer

    def _starts(self) -> list[int]:
        """Return where each part that was taken begins in one memory, in which parts of other times share a place.

        The largest first, each as low as there is room: a frame passes through half of the memory, and so of the cache.
        """
        lives: dict[int, tuple[int, int]] = {}      # the first and the last call that has to do with a part
        rows = iter(self._read)
        for i, ((_, products), found) in enumerate(zip(self._calls, self._found, strict=True)):
            for where, _ in (*found, *(place for _ in products or () for place in next(rows))):
                if where < 0:
                    lives[-1 - where] = lives.get(-1 - where, (i, i))[0], i
        for *_, where, _ in self._views:
            lives[-1 - where] = lives[-1 - where][0], len(self._calls)
        sizes = [-(-(last - first) // ALIGNED) * ALIGNED for first, last in self.taken]
        starts, placed = [0] * len(sizes), []
        for k in sorted(lives, key=lambda k: -sizes[k]):
            for other in sorted(placed, key=starts.__getitem__):
                apart = lives[other][0] > lives[k][1] or lives[k][0] > lives[other][1]
                if not apart and starts[other] < starts[k] + sizes[k]:
                    starts[k] = max(starts[k], starts[other] + sizes[other])
            placed.append(k)
        self._floats = max((starts[k] + sizes[k] for k in lives), default=0) // 4
        return starts

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the function returns for other inputs of the same sizes and strides."""
        memory = torch.empty(self._floats)
        bases = 0, memory.data_ptr(), *(x.data_ptr() for x in inputs)
        if bases != self._bases:        # a stream's frames often lie where those before them lay
            for words_, where, offsets in self._parts:
                words_[:] = offsets + np.array(bases)[where]
            self._bases = bases
        kernels.compiled().tar_vis_calls(self.calls, len(self.calls))
        return tuple(memory.as_strided(shape, stride, offset // 4) for shape, stride, offset in self._views)


class Tapes:
    """A function from maps to maps, as a tape for each of the sizes that came last."""

    def __init__(self, most: int = KEPT_SIZES) -> None:
        self.kept: dict[tuple, Tape] = {}
        self.most = most

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns, whose ``inputs`` are float32, and maps with their channels last."""
        kernels.refuse_tracing()
        inputs = tuple(x.detach().to(torch.float32).contiguous(
            memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format) for x in inputs)
        sizes = tuple(x.shape for x in inputs), tuple(x.stride() for x in inputs)
        if sizes not in self.kept:
            if len(self.kept) >= self.most:
                self.kept.clear()
            self.kept[sizes] = Tape(function, inputs)
        return self.kept[sizes](inputs)
