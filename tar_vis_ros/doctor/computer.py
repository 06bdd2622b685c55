"""Findings about the computer: versions, processor, kernels, threads, devices, weights, clock. None needs ROS."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from tar_vis_core.benchmark.machine import cpu_facts, package_version, processor
from tar_vis_core.errors import WeightsError
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import available_devices, unused_gpu
from tar_vis_core.weights.manifest import manifest, packaged_weights, sha256_of
from tar_vis_ros.doctor.finding import Finding

DEFAULT_PRESET = 'nano'
FEATURES = ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_bf16', 'asimd', 'bf16', 'i8mm')   # of x86 and ARM
FAST = {'avx2', 'avx512f', 'asimd'}     # without any of them a frame takes several times as long
CPU_QUOTA = Path('/sys/fs/cgroup/cpu.max')      # of a container
BUILD = 'make setup in the checkout, or colcon build'


def computer() -> Iterator[Finding]:
    """Yield the findings about this computer."""
    for look in (versions, cpu, compiled, threads, devices, weights, clock):
        yield look()


def versions() -> Finding:
    ours = package_version()
    text = (f'tar_vis_ros {ours}, Python {platform.python_version()}, torch {torch.__version__}, numpy '
            f'{np.__version__}, OpenCV {cv2.__version__}, {platform.system()} {platform.machine()}')
    return Finding('versions', text)


def cpu() -> Finding:
    facts = cpu_facts()
    flags = set((facts.get('flags') or facts.get('Features', '')).split())     # of x86, of ARM
    has = [feature for feature in FEATURES if feature in flags]
    remedy = '' if not flags or FAST & set(has) else \
        "this processor has no wide vector units: a frame takes several times as long (a virtual machine may hide " \
        "them: let it have the host's processor)"
    return Finding('processor', f'{processor()}: {" ".join(has) or "features unknown"}', remedy)


def compiled() -> Finding:
    if kernels.compiled() is None:
        return Finding('kernels', f'{kernels.LIBRARY.name} was not built or cannot be loaded: attention runs by plain '
                       'PyTorch, two to four times as slow', BUILD, wrong=True)
    return Finding('kernels', 'compiled, attention and group norm')


def allowed_cpus(quota: Path = CPU_QUOTA) -> float:
    """Return how many CPUs this process may use, by its affinity and the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    try:
        most, period = quota.read_text().split()
        return min(count, int(most) / int(period))
    except (OSError, ValueError):       # no container, or 'max'
        return count


def threads(allowed: Callable[[], float] = allowed_cpus) -> Finding:
    cpus, used = allowed(), torch.get_num_threads()
    text, remedy = f'torch takes {used}, this process may use {cpus:g} CPUs', ''
    if used > cpus:
        remedy = f'start with threads:={max(1, int(cpus))}: more threads than CPUs wait for each other'
    elif used < cpus / 2 and 'OMP_NUM_THREADS' in os.environ:
        remedy = 'unset OMP_NUM_THREADS, unless the other CPUs are for other programs'
    return Finding('threads', text, remedy)


def devices() -> Finding:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        there, why = available_devices(), unused_gpu()
    names = [f'{name} ({torch.cuda.get_device_name(name)})' if name != 'cpu' else name for name in there]
    return Finding('devices', ', '.join(names), why)


def weights(preset: str = DEFAULT_PRESET) -> Finding:
    try:
        path = packaged_weights(preset)
    except WeightsError as error:
        return Finding('weights', str(error), 'install the package again, or give a file by weights:=', wrong=True)
    entry = next(known for known in manifest() if known.preset == preset and known.file)
    if entry.sha256 and sha256_of(path) != entry.sha256:
        return Finding('weights', f'{path} is not the file that the manifest names (sha256)',
                       'install the package again; git lfs or an editor may have changed the file', wrong=True)
    return Finding('weights', f'{preset}: {path.name}, {path.stat().st_size / 1e6:.1f} MB, sha256 as published')


def clock(now: Callable[[], float] = time.time) -> Finding:
    text = time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(now()))
    if now() < Path(__file__).stat().st_mtime - 86400:
        return Finding('clock', f'{text} is before this package was installed', 'set the clock (chrony, timedatectl '
                       'set-ntp true): stamps of this machine and of others do not meet', wrong=True)
    return Finding('clock', text)
