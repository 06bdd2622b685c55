"""Device and precision of the network, clocks of the device, and transfers to it and back."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import time
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from tar_vis_core.errors import DeviceError, DeviceLostError, first_line, unknown_name

HIDDEN = '', '-1'       # values of CUDA_VISIBLE_DEVICES that hide all GPUs
GPU_NODES = '/dev/nvidia[0-9]*', '/dev/nvhost-gpu', '/dev/nvgpu/igpu*'

PRECISIONS = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def available_devices() -> list[str]:
    """Return the names of the devices of this machine that :func:`pick_device` accepts."""
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES') in HIDDEN
    return ['cpu', *(f'cuda:{i}' for i in range(0 if hidden or not torch.cuda.is_available()
                                                else torch.cuda.device_count()))]


def pick_device(name: str) -> torch.device:
    """Return the device of that name: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda``, ``cuda:N``.

    Raise :class:`DeviceError` if it is not there, or if this build of torch cannot compute on it. ``auto`` takes the
    CPU then, and warns of a GPU that is not used.
    """
    there = available_devices()
    if name == 'auto':
        why = unused_gpu()
        if why:
            warnings.warn(why, RuntimeWarning, stacklevel=2)
        return torch.device('cpu' if why or len(there) == 1 else there[1])
    wanted = 'cuda:0' if name == 'cuda' else name
    if wanted not in there:
        raise DeviceError(f'device {name!r} is not there; this machine has {", ".join(there)} (or auto)'
                          + (f'; {why}' if wanted.startswith('cuda') and (why := no_cuda(there)) else ''))
    if why := cannot_compute(torch.device(wanted)):
        raise DeviceError(f'device {name!r} is there, but {why}')
    return torch.device(wanted)


def unused_gpu() -> str:
    """Return why ``auto`` takes the CPU although this machine has a GPU, '' if it takes the GPU or there is none."""
    there = available_devices()
    why = cannot_compute(torch.device(there[1])) if len(there) > 1 else no_cuda(there)
    return f'device auto takes the CPU: {why}. Set device to cpu if this is what you want' if why else ''


def no_cuda(there: Sequence[str]) -> str:
    """Return why torch finds no GPU on a machine that has one, '' if it finds one, there is none, or it is hidden."""
    if len(there) > 1 or os.environ.get('CUDA_VISIBLE_DEVICES') in HIDDEN or not gpu_nodes():
        return ''
    if torch.version.cuda is None:
        return (f'this machine has an NVIDIA GPU ({gpu_nodes()[0]}), but torch {torch.__version__} was built without '
                'CUDA; install its CUDA build (README, GPUs)')
    try:
        torch.cuda.init()
        why = 'it counts no device'
    except (RuntimeError, AssertionError) as error:
        why = first_line(error)
    return (f'this machine has an NVIDIA GPU ({gpu_nodes()[0]}), but torch {torch.__version__} for CUDA '
            f'{torch.version.cuda} cannot use it: {why}. Does the driver fit (README, GPUs)?')


def gpu_nodes() -> list[str]:
    """Return the device files of NVIDIA's drivers, of a card or of a Jetson."""
    return sorted(path for pattern in GPU_NODES for path in glob.glob(pattern))


def cannot_compute(device: torch.device) -> str:
    """Return why torch cannot compute on a GPU that it finds, by trying it; '' if it can, and for a CPU."""
    if device.type != 'cuda':
        return ''
    try:
        torch.ones(2, device=device).add_(1).tolist()
    except torch.cuda.OutOfMemoryError:
        return ''       # it could, and loading the model says what is missing
    except RuntimeError as error:
        built_for = ' '.join(torch.cuda.get_arch_list())
        major, minor = torch.cuda.get_device_capability(device)
        return (f'torch {torch.__version__}, built for {built_for}, cannot compute on '
                f'{torch.cuda.get_device_name(device)} (sm_{major}{minor}): {first_line(error)}')
    return ''


def is_lost(device: torch.device) -> bool:
    """Return whether a GPU computes no more in this process. A CPU is never lost.

    After an illegal address, a failed launch or a GPU that fell off the bus, every call fails until the process ends.
    After another error, such as out of memory, calls work again.
    """
    if device.type != 'cuda':
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[None]:
    """Raise DeviceLostError in place of an error in this block if the GPU is lost with it."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(device):
            raise
        raise DeviceLostError(f'the GPU {device} is lost: restart the process ({first_line(error)})') from error


def pick_precision(name: str) -> torch.dtype:
    """Return the dtype of that name, float32 for ``auto``; ValueError with the nearest name otherwise."""
    names = {'auto': torch.float32} | PRECISIONS
    if name not in names:
        raise ValueError(unknown_name('precision', name, names))
    return names[name]


def use_full_float32() -> None:
    """Compute float32 in float32 on GPUs, in the whole process.

    torch's default is TF32 (10 bits of fraction) in convolutions, and float32 in products.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def compute_context(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Return the context of automatic mixed precision if ``dtype`` asks for it."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def mark(device: torch.device) -> float | torch.cuda.Event:
    """Return a mark in the device's time, for :func:`elapsed_ms`, without waiting: on a GPU, an event in its stream."""
    if device.type != 'cuda':
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def elapsed_ms(earlier: float | torch.cuda.Event, later: float | torch.cuda.Event) -> float:
    """Return milliseconds between two marks of one device; on a GPU it waits until the later one is reached."""
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
        """End a stage, which began at the end of the one before. A stage may come several times."""
        end = mark(self._device)
        self._ends.append((stage, end))
        self._ended = end if isinstance(end, float) else time.perf_counter()

    def times(self) -> dict[str, float]:
        """Return milliseconds of each stage, and ``total`` from the beginning to the last end by the host's clock."""
        spent: dict[str, float] = {}
        for (_, begin), (stage, end) in itertools.pairwise(self._ends):
            spent[stage] = spent.get(stage, 0.0) + elapsed_ms(begin, end)
        return spent | {'total': (self._ended - self._began) * 1e3}


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the array on the device. Do not write to it: a CPU shares its memory. A copy to a GPU does not wait."""
    # torch may not be given memory that numpy holds read-only
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type != 'cuda':
        return tensor.to(device)
    # torch keeps such memory for the next call
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor).to(device, non_blocking=True)


def to_host(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of one device on the CPU, from a GPU as one transfer, for which it waits."""
    device = tensors[0].device
    if device.type != 'cuda':
        return [tensor.cpu() for tensor in tensors]
    together = _bytes_of(tensors)
    host = torch.empty(together.shape, dtype=torch.uint8, pin_memory=True)
    host.copy_(together, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return _from_bytes(host, tensors)


def _bytes_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the bytes of all tensors, each begun at a multiple of eight, where any type may lie."""
    parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    return torch.cat([F.pad(part, (0, -len(part) % 8)) for part in parts])


def _from_bytes(together: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors that :func:`_bytes_of` was made of; memory is shared."""
    found, start = [], 0
    for tensor in like:
        size = tensor.numel() * tensor.element_size()
        found.append(together[start:start + size].view(tensor.dtype).view(tensor.shape))
        start += size + -size % 8
    return found
