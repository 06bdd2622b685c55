"""CUDA graphs on a CPU: the recorder of the product runs on a ``torch.cuda`` that records operators, not kernels.

A tape holds the operators that a function ran, with the very tensors that they read and wrote. Playing it runs them
again on these: nothing of the function itself, no Python, no decision. What would be refused or wrong in a graph is so
here: asking for a value, reading data of the host, arguments that come at another address, results in a shared pool
after another graph of it was played, and a cuBLAS workspace that went with another graph.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tar_vis_core.models.cuda_graphs import CudaRecorder

# a value for the host, sizes that depend on values, data of the host
REFUSED = ('_local_scalar_dense', 'item', 'nonzero', 'masked_select', 'unique', 'equal', 'is_nonzero', 'lift_fresh')


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        if name in REFUSED or (name == 'index' and any(
                t is not None and t.dtype == torch.bool for t in args[1])):
            raise RuntimeError(f'operation not permitted while recording: {function}')
        result = function(*args, **kwargs)
        self.steps.append((function, args, kwargs, result))
        return result

    @functools.cached_property
    def made(self) -> list[torch.Tensor]:
        """What the tape writes into memory that it did not find there, a tensor for each piece of memory."""
        outer, inner, found = set(), set(), []
        for _, args, kwargs, result in self.steps:
            outer |= {storage(tensor) for tensor in tensors((args, kwargs))} - inner
            for tensor in tensors(result):
                if storage(tensor) not in outer and storage(tensor) not in inner:
                    inner.add(storage(tensor))
                    found.append(tensor)
        return found

    @torch.autocast('cpu', enabled=False)       # what it casts is on the tape
    def play(self) -> None:
        for function, args, kwargs, result in self.steps:
            again = function(*args, **kwargs)
            for written, value in zip(tensors(result), tensors(again), strict=True):
                if written.data_ptr() != value.data_ptr():
                    written.copy_(value)


class Workspace:
    """What cuBLAS works in on a stream; made during a capture it lies in the graph's own memory, which stays."""

    def __init__(self, of_graph: bool) -> None:
        self.of_graph, self.gone = of_graph, False


class Cuda:
    """What ``torch.cuda`` keeps of one device. ``made`` counts captures."""

    def __init__(self) -> None:
        self.made, self.streams, self.current = 0, 0, None
        self.workspaces: dict[Any, Workspace] = {}      # by stream
        self.graphs: dict[Any, weakref.WeakSet] = {}    # by pool
        self._pools = itertools.count()

    def workspace(self, stream: Any, of_graph: bool) -> Workspace:
        """The stream's own, which is made where there is none; every work on a stream asks for it."""
        return self.workspaces.setdefault(stream, Workspace(of_graph))

    def forget(self, stream: Any = None) -> None:
        """Give back the workspace of one stream, or of all."""
        for key in [key for key in self.workspaces if stream in (None, key)]:
            workspace = self.workspaces.pop(key)
            workspace.gone = not workspace.of_graph

    def patches(self) -> dict[str, Any]:
        """What stands in for ``torch.cuda``."""
        cuda = self

        class Stream:
            def __init__(self, device: Any = None) -> None:
                cuda.streams += 1

            def wait_stream(self, other: Any) -> None:
                pass

        class CUDAGraph:
            def replay(self) -> None:
                if self.workspace.gone:
                    raise RuntimeError('CUDA error: an illegal memory access was encountered')
                for other in cuda.graphs[self.pool]:    # graphs that share memory write over each other's results
                    spoil(other.tape)
                self.tape.play()

            def reset(self) -> None:
                if hasattr(self, 'stream'):
                    cuda.forget(self.stream)

            __del__ = reset

        @contextlib.contextmanager
        def stream(asked: Any) -> Iterator[None]:
            cuda.current, before = asked, cuda.current
            cuda.workspace(asked, of_graph=False)
            try:
                yield
            finally:
                cuda.current = before

        @contextlib.contextmanager
        def graph(new: CUDAGraph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
            assert capture_error_mode == 'thread_local'
            new.stream, new.pool, new.workspace = stream, pool, cuda.workspace(stream, of_graph=True)
            # in inference mode it would see operators before mixed precision has cast what they take
            with torch.inference_mode(False), torch.no_grad(), Tape() as new.tape:
                yield
            cuda.made += 1
            cuda.graphs.setdefault(pool, weakref.WeakSet()).add(new)
            spoil(new.tape)     # a capture computes nothing

        default = Stream()
        return {'Stream': Stream, 'CUDAGraph': CUDAGraph, 'stream': stream, 'graph': graph,
                'device': lambda device: contextlib.nullcontext(), 'synchronize': lambda device=None: None,
                'current_stream': lambda device=None: cuda.current or default,
                'graph_pool_handle': lambda: (0, next(self._pools))}


class TapeRecorder(CudaRecorder):
    """The recorder of GPUs before a device of tapes. ``made`` counts the recordings."""

    def __init__(self, cuda: Cuda | None = None) -> None:
        self.cuda = cuda or Cuda()
        self._patches = self.cuda.patches()
        with mock.patch.multiple(torch.cuda, **self._patches):
            super().__init__(torch.device('cuda:0'))

    @property
    def made(self) -> int:
        return self.cuda.made

    def record(self, function: Callable[[], Any], kept: bool) -> tuple[Callable[[], None], Any]:
        with mock.patch.multiple(torch.cuda, **self._patches), mock.patch.object(
                torch._C, '_cuda_clearCublasWorkspaces', self.cuda.forget, create=True):
            return super().record(function, kept)


def spoil(tape: Tape) -> None:
    for tensor in tape.made:
        if tensor.is_floating_point():
            tensor.fill_(float('nan'))
