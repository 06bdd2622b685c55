"""The machine behind a figure: processor, GPU and its power limit, versions. Never the machine's name."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cpu_facts() -> dict[str, str]:
    """Return what Linux says of a processor, by the first words of its lines; empty elsewhere."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    return {name.strip(): value.strip() for name, _, value in (line.partition(':') for line in reversed(lines))}


def processor() -> str:
    """Return the CPU's name, if the system has it."""
    return cpu_facts().get('model name') or platform.processor() or platform.machine()


def package_version() -> str:
    """Return the version of this package as it is installed; ``not installed`` if Python knows none."""
    try:
        return metadata.version('tar_vis_ros')
    except metadata.PackageNotFoundError:
        return 'not installed'


def smi_name(device: torch.device) -> str:
    """Return nvidia-smi's name of a GPU; torch counts only the GPUs that it may see, in its own order."""
    import torch

    return f'GPU-{torch.cuda.get_device_properties(device).uuid}'


def power_limit_w(device: torch.device) -> float | None:
    """Return the power limit of a GPU in watts, None if nvidia-smi does not have it."""
    if shutil.which('nvidia-smi') is None:
        return None
    answer = subprocess.run(['nvidia-smi', f'--id={smi_name(device)}', '--query-gpu=power.limit',
                             '--format=csv,noheader,nounits'], capture_output=True, text=True, check=False)
    try:
        return float(answer.stdout)
    except ValueError:      # the driver knows of no limit
        return None


@contextlib.contextmanager
def power_draw(device: torch.device) -> Iterator[list[float]]:
    """Collect the watts that a GPU draws while the block runs, every tenth of a second; the list is filled at its end.

    It is empty if there is no GPU or if nvidia-smi has no values.
    """
    watts: list[float] = []
    if device.type != 'cuda' or shutil.which('nvidia-smi') is None:
        yield watts
        return
    process = subprocess.Popen(['nvidia-smi', f'--id={smi_name(device)}', '--query-gpu=power.draw', '--loop-ms=100',
                                '--format=csv,noheader,nounits'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True)
    try:
        yield watts
    finally:
        process.terminate()
        for line in process.communicate()[0].splitlines():
            with contextlib.suppress(ValueError):       # half a line, or a card that does not know
                watts.append(float(line))


def float32_on_gpu() -> str:
    """Return how this process computes what is float32 on a GPU: IEEE, or TF32 with its 10 bits of fraction."""
    import torch

    return ', '.join(f'{what} {"TF32" if place.allow_tf32 else "IEEE"}' for what, place in (
        ('convolutions', torch.backends.cudnn), ('products', torch.backends.cuda.matmul)))


def machine(device: torch.device) -> dict[str, object]:
    """Return the machine and its software as they are now; the GPU only if ``device`` is one."""
    import torch

    found: dict[str, object] = {'processor': processor(), 'cores': os.cpu_count()}
    if device.type == 'cuda':
        found |= {'gpu': torch.cuda.get_device_name(device), 'gpu_power_limit_w': power_limit_w(device),
                  'cuda': torch.version.cuda, 'float32': float32_on_gpu()}
    return found | {'system': platform.system(), 'python': platform.python_version(), 'torch': torch.__version__,
                    'tar_vis_ros': package_version()}


def in_words(found: dict[str, object]) -> str:
    """Return :func:`machine` in one line."""
    gpu = ''
    if 'gpu' in found:
        watts = found['gpu_power_limit_w']
        gpu = f'{found["gpu"]}{"" if watts is None else f" ({watts:.0f} W)"}, '
    return f'{gpu}{found["processor"]} with {found["cores"]} cores, torch {found["torch"]}, ' \
           f'tar_vis_ros {found["tar_vis_ros"]}'
