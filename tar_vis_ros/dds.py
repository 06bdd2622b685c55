"""The DDS profile of this package: shared memory segments that a full-size image fits into.

Fast DDS's default segment (512 KiB) is smaller than one 640x480 image, so images go by UDP
fragments and many are lost. ``config/fastdds_shm.xml`` raises it to 64 MiB.
"""

from __future__ import annotations

import os
from pathlib import Path

PROFILES_VARIABLE = 'FASTRTPS_DEFAULT_PROFILES_FILE'
_NEWER_VARIABLE = 'FASTDDS_DEFAULT_PROFILES_FILE'   # Fast DDS 3 (Kilted) reads this one


def config_file(name: str) -> Path:
    """Path of a file of ``config/``, found without the ament index.

    pip and colcon installations hold the folder beside this module, an editable
    installation has it in the checkout. Raises FileNotFoundError naming both.
    """
    package = Path(__file__).resolve().parent
    places = [package / 'config' / name, package.parent / 'config' / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f'{name} of tar_vis_ros is not at {places[0]} nor at {places[1]}: install the package again')


def use_shared_memory_profile() -> Path | None:
    """Make ``config/fastdds_shm.xml`` the DDS profile of this process and of its children.

    Call before ``rclpy.init``. Does nothing, and gives None, where the user has chosen a
    profile of their own (either variable of Fast DDS is set, even to an empty text).
    """
    if PROFILES_VARIABLE in os.environ or _NEWER_VARIABLE in os.environ:
        return None
    profile = config_file('fastdds_shm.xml')
    os.environ[PROFILES_VARIABLE] = os.environ[_NEWER_VARIABLE] = str(profile)
    return profile
