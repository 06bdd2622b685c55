"""The DDS profile of this package: shared memory segments that a full-size image fits into.

Fast DDS keeps 512 KiB of shared memory per process by default, less than one 640x480 image, so
images travel as UDP fragments and many are lost. ``config/fastdds_shm.xml`` raises it to 32 MiB;
``config/fastdds_shm_small.xml`` (8 MiB) is used if ``/dev/shm`` is small, as in a container.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tar_vis_ros.process.resources import config_file

# The first is read by Fast DDS 2 (Humble, Jazzy), the second by Fast DDS 3 (Kilted), which warns of the first.
PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
_PACKAGES = ('fastrtps', 'fastdds')     # what the installation calls each of both

_SHARED_MEMORY = Path('/dev/shm')
_MIB = 1 << 20
_PROCESSES = 6   # source, node, viewer, recorder, and two more: each has a segment of its own


def shared_memory_room(folder: Path = _SHARED_MEMORY) -> int:
    """Return the free MiB of the folder. Raise OSError if there is none."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize // _MIB


def shared_memory_profile(folder: Path = _SHARED_MEMORY) -> Path | None:
    """Return the largest profile whose segments fit into ``folder``; None, with one line on stderr, if none does."""
    try:
        free = shared_memory_room(folder)
    except OSError:   # no such folder: not Linux, and Fast DDS finds its own place
        return config_file('fastdds_shm.xml')
    for name, segment in (('fastdds_shm.xml', 32), ('fastdds_shm_small.xml', 8)):
        if free >= segment * _PROCESSES:
            return config_file(name)
    print(f'tar_vis_ros: {folder} has {free} MiB free, images between processes need {8 * _PROCESSES} MiB: '
          'some will be lost; make it larger (docker run --shm-size=1g)', file=sys.stderr)
    return None


def read_variables(prefixes: Iterable[str] | None = None) -> tuple[str, ...]:
    """Return those of the variables that the Fast DDS of this installation reads; both if it is not found."""
    if prefixes is None:
        prefixes = [*filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)), sys.prefix]
    for prefix in prefixes:
        found = [variable for variable, package in zip(PROFILE_VARIABLES, _PACKAGES, strict=True)
                 if Path(prefix, 'share', package).is_dir()]
        if found:
            return tuple(found)
    return PROFILE_VARIABLES


def profile_environment(folder: Path = _SHARED_MEMORY) -> dict[str, str]:
    """Return the variables that make the profile the default of a process.

    It is empty if the user has chosen a profile (a variable of Fast DDS is set, even to an empty text), or if no
    profile fits.
    """
    if any(variable in os.environ for variable in PROFILE_VARIABLES):
        return {}
    profile = shared_memory_profile(folder)
    return {} if profile is None else dict.fromkeys(read_variables(), str(profile))


def use_shared_memory_profile() -> None:
    """Make the profile the default of this process and of its children; call before ``rclpy.init``."""
    os.environ.update(profile_environment())
