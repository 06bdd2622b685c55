"""Functions of maps as lists of kernel calls, which are made again for other maps in one call.

A call of a kernel takes longer in Python than in a small map. So the first time that maps of some sizes come, the
function runs, and what it asks of the kernels is written down: addresses of its inputs, of memory that it took, and of
constants. The next time, the first two are replaced.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
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
        (name, ctypes.c_int64) for name in ('outputs', 'added_step')] + [('slope', ctypes.c_float)]


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
        _written.tape = self
        try:
            outputs = function(*inputs)
        finally:
            _written.tape = None
        # memory that was given back and taken again is the same here, too
        self._spans: list[tuple[int, int]] = []
        for first, last in sorted(self.taken):
            if self._spans and first < self._spans[-1][1]:
                self._spans[-1] = self._spans[-1][0], max(last, self._spans[-1][1])
            else:
                self._spans.append((first, last))
        lengths = [-(-(last - first) // ALIGNED) * ALIGNED for first, last in self._spans]
        *self._starts, length = itertools.accumulate(lengths, initial=0)
        self._floats = length // 4
        counts = [0 if own is None else len(own) for _, own in self._calls]
        self.calls = (Call * len(counts))(*(call for call, _ in self._calls))
        self.products = (Product * sum(counts))(*(p for _, own in self._calls for p in (() if own is None else own)))
        first = np.cumsum([0, *counts[:-1]]) * ctypes.sizeof(Product) + ctypes.addressof(self.products)
        for call, start, count in zip(self.calls, first, counts, strict=True):
            if count:
                call.pointer3 = int(start)
        maps = np.array([[k in MAPS[call.kind] for k in range(6)] for call in self.calls])
        pointers, read = words(self.calls)[:, 1:7], words(self.products)[:, :3]
        self._parts = [(pointers, *self._places(pointers, maps)),
                       (read, *self._places(read, np.array([[False, False, True]] * len(read), bool).reshape(-1, 3)))]
        self._views = [(x.shape, x.stride(), self._place(x.data_ptr())) for x in outputs]
        if any(place[0] != 1 for *_, place in self._views):
            raise RuntimeError('a map that is returned lies in none that the kernels have written')
        self._bases: tuple[int, ...] = ()       # that the calls hold now
        del self._calls, self.taken

    def note(self, call: Call, products: ctypes.Array | None, tensors: tuple[Tensor | None, ...],
             others: tuple[Tensor | None, ...]) -> None:
        """Write down a call, and keep what it reads that is neither an input nor memory that was taken."""
        self._calls.append((call, products))

        def strange(tensor: Tensor | None) -> bool:
            return tensor is not None and not any(
                first <= tensor.data_ptr() < last for first, last in (*self._inputs, *self.taken))

        if any(strange(tensors[k]) for k in MAPS[call.kind]):
            raise RuntimeError('a map that is read was made by something other than a kernel')
        self.constants += [*filter(strange, others), *(t for k, t in enumerate(tensors) if k not in MAPS[call.kind])]

    def _place(self, pointer: int, written: bool = True) -> tuple[int, int]:
        """Return in which memory an address lies, 0 for a constant, 1 for that which was taken, and how far in it.

        Only what is ``written`` lies where memory was taken; a constant may have come there when that was free again.
        """
        for k, (first, last) in enumerate(self._inputs):
            if first <= pointer < last:
                return 2 + k, pointer - first
        if not written:
            return 0, pointer
        k = bisect.bisect(self._spans, (pointer, 2 ** 63)) - 1
        if k >= 0 and pointer < self._spans[k][1]:
            return 1, self._starts[k] + pointer - self._spans[k][0]
        return 0, pointer

    def _places(self, pointers: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = np.array([self._place(int(p), own) for p, own in zip(pointers.flat, maps.flat, strict=True)],
                         np.int64).reshape(*pointers.shape, 2)
        return found[..., 0], found[..., 1].copy()

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the function returns for other inputs of the same sizes and strides."""
        memory = torch.empty(self._floats)
        bases = 0, memory.data_ptr(), *(x.data_ptr() for x in inputs)
        if bases != self._bases:        # a stream's frames often lie where those before them lay
            for words_, where, offsets in self._parts:
                words_[:] = offsets + np.array(bases)[where]
            self._bases = bases
        kernels.compiled().tar_vis_calls(self.calls, len(self.calls))
        return tuple(memory.as_strided(shape, stride, offset // 4) for shape, stride, (_, offset) in self._views)


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
