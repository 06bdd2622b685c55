"""Where and how precisely the network computes, and clocks that wait for the device."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Iterable

import torch

from tar_vis_core.errors import DeviceError

PRECISIONS = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def unknown_name(what: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that is none of ``known``, with the nearest of them."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    return f'unknown {what} {name!r}{hint}; expected one of {", ".join(known)}'


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
    """Measures consecutive stages; each boundary waits until the device has finished."""

    def __init__(self, device: torch.device):
        self._device = device
        self._start = self._last = self._now()

    def _now(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def lap(self) -> float:
        """Milliseconds since the previous boundary."""
        now = self._now()
        elapsed, self._last = (now - self._last) * 1e3, now
        return elapsed

    def total(self) -> float:
        """Milliseconds from the start to the last boundary."""
        return (self._last - self._start) * 1e3
