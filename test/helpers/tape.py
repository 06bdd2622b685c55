"""A recorder on a CPU that does with operators what a CUDA graph does with kernels.

A tape holds the operators that a function ran, with the very tensors that they read and wrote. Playing it runs them
again on these: nothing of the function itself, no Python, no decision. What would be refused or wrong in a graph is so
here: asking for a value, reading data of the host, arguments that come at another address.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
        """What the tape writes into memory that it did not find there."""
        outer, found = set(), []
        for _, args, kwargs, result in self.steps:
            known = {storage(tensor) for tensor in found}
            outer |= {storage(tensor) for tensor in tensors((args, kwargs))} - known
            found += [tensor for tensor in tensors(result) if storage(tensor) not in outer]
        return found

    @torch.autocast('cpu', enabled=False)       # what it casts is on the tape
    def play(self) -> None:
        for function, args, kwargs, result in self.steps:
            again = function(*args, **kwargs)
            for written, value in zip(tensors(result), tensors(again), strict=True):
                if written.data_ptr() != value.data_ptr():
                    written.copy_(value)


class TapeRecorder:
    """``made`` counts the recordings."""

    def __init__(self) -> None:
        self.made, self._shared = 0, []

    def record(self, function: Callable[[], Any], kept: bool) -> tuple[Callable[[], None], Any]:
        for _ in range(2):      # as before a capture
            function()
        # in inference mode it would see operators before mixed precision has cast what they take
        with torch.inference_mode(False), torch.no_grad(), Tape() as tape:
            result = function()
        self.made += 1
        if kept:
            self._shared.append(tape)
        spoil(tape)     # a capture computes nothing

        def play() -> None:
            for other in self._shared:      # graphs that share memory write over each other's results
                spoil(other)
            tape.play()

        return play, result


def spoil(tape: Tape) -> None:
    for tensor in tape.made:
        if tensor.is_floating_point():
            tensor.fill_(float('nan'))
