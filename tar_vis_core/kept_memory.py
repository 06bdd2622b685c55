"""Memory that a process frees stays its own, for the next frame. No torch here: it comes before torch and ROS do."""

from __future__ import annotations

import ctypes

# glibc's mallopt: the numbers of its options (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for the next frame; whether that could be set.

    glibc gives large blocks back to the system as soon as they are free, and the system hands them out again page by
    page: a third of the image encoder's time on a CPU. What it gives back depends on which small block happens to lie
    behind a large one, so that the memory of a process swings by tens of MB, and some frames later it is more than
    before. Kept, it is the most that a frame ever needed, and stays there.

    One arena for all threads keeps what is free in one place: with several, a frame's memory lies free in one of them
    and is asked for once more in another. Threads that there are already keep the arena they have, so call this
    before ROS or torch start theirs. It holds for the whole process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):     # musl, macOS, Windows
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_ARENA_MAX, 1)])
