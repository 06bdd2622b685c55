"""Keep freed memory in the process for the next frame. This module needs no torch: it runs before torch and ROS."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

# glibc's mallopt: the numbers of its options (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees for the next frame. Return whether that could be set.

    glibc gives large blocks back to the system as soon as they are free, and the system hands them out again page by
    page: a third of the image encoder's time on a CPU. What it gives back depends on which small block happens to
    lie behind a large one, so the memory of a process swings by tens of MB from one second to the next.

    All threads get one arena. With several arenas, a frame's memory lies free in one of them and is allocated once more
    in another. Existing threads keep the arena that they have, so call this before ROS or torch start theirs. It holds
    for the whole process.
    """
    mallopt = _of_c('mallopt')
    return mallopt is not None and all(
        [mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_ARENA_MAX, 1)])


def give_back_free_memory() -> None:
    """Give free memory back to the system now. The next frame has to allocate again, so it takes longer.

    Call it now and then. An image that arrives in the middle of a step takes the place of the step's next block, and
    that block is allocated behind all others. This is rare, but without this call such memory would never come back.
    """
    malloc_trim = _of_c('malloc_trim')
    if malloc_trim is not None:
        malloc_trim(0)


def _of_c(name: str) -> Callable[..., int] | None:
    """Return a function of the C library, None if that is not glibc."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):     # musl, macOS, Windows
        return None
