"""Where and how precisely the network computes, clocks of the device, and ways to it and back."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from tar_vis_core.errors import DeviceError, unknown_name

PRECISIONS = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def available_devices() -> list[str]:
    """Names of the devices of this machine that :func:`pick_device` accepts."""
    return ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))]


def pick_device(name: str) -> torch.device:
    """The device of that name: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda``, ``cuda:N``.

    Raises :class:`DeviceError` where it is not there; nothing falls back silently.
    """
    there = available_devices()
    if name == 'auto':
        return torch.device(there[min(1, len(there) - 1)])
    wanted = 'cuda:0' if name == 'cuda' else name
    if wanted not in there:
        raise DeviceError(f'device {name!r} is not there; this machine has {", ".join(there)} (or auto)')
    return torch.device(wanted)


def pick_precision(name: str) -> torch.dtype:
    """The dtype of that name; ValueError with the nearest name otherwise."""
    if name not in PRECISIONS:
        raise ValueError(unknown_name('precision', name, PRECISIONS))
    return PRECISIONS[name]


def compute_context(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Automatic mixed precision where ``dtype`` asks for it."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def mark(device: torch.device) -> float | torch.cuda.Event:
    """A point in the device's time, for :func:`elapsed_ms`. Nothing waits: on a GPU it is an event in its stream."""
    if device.type != 'cuda':
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def elapsed_ms(earlier: float | torch.cuda.Event, later: float | torch.cuda.Event) -> float:
    """Milliseconds between two marks of one device; on a GPU it waits until the later one is reached."""
    if isinstance(later, float):
        return (later - earlier) * 1e3
    later.synchronize()
    return earlier.elapsed_time(later)


class StageClock:
    """Times the stages of a step.

    Nothing waits at their ends: on a GPU they are events in its stream, read when the step is over.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._ends: list[tuple[str, float | torch.cuda.Event]] = []
        self.lap('')
        self._began = self._ended

    def lap(self, stage: str) -> None:
        """The end of a stage, which began where the one before ended. A stage may come several times."""
        end = mark(self._device)
        self._ends.append((stage, end))
        self._ended = end if isinstance(end, float) else time.perf_counter()

    def times(self) -> dict[str, float]:
        """Milliseconds of each stage, and ``total`` from the beginning to the last end by the host's clock."""
        spent: dict[str, float] = {}
        for (_, begin), (stage, end) in itertools.pairwise(self._ends):
            spent[stage] = spent.get(stage, 0.0) + elapsed_ms(begin, end)
        return spent | {'total': (self._ended - self._began) * 1e3}


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array there, not to be written to: a CPU shares its memory. To a GPU the copy goes on while the host does."""
    # torch may not be given memory that numpy holds read-only
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type != 'cuda':
        return tensor.to(device)
    # torch keeps such memory for the next call
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor).to(device, non_blocking=True)


def to_host(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of one device on the CPU, from a GPU as one transfer, for which it waits."""
    device = tensors[0].device
    if device.type != 'cuda':
        return [tensor.cpu() for tensor in tensors]
    together = _bytes_of(tensors)
    host = torch.empty(together.shape, dtype=torch.uint8, pin_memory=True)
    host.copy_(together, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return _from_bytes(host, tensors)


def _bytes_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The bytes of all tensors, each begun at a multiple of eight, where any type may lie."""
    parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    return torch.cat([F.pad(part, (0, -len(part) % 8)) for part in parts])


def _from_bytes(together: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What :func:`_bytes_of` was made of; memory is shared."""
    found, start = [], 0
    for tensor in like:
        size = tensor.numel() * tensor.element_size()
        found.append(together[start:start + size].view(tensor.dtype).view(tensor.shape))
        start += size + -size % 8
    return found
