"""Memory that a process frees stays its own, for the next frame. No torch here: it comes before torch and ROS do."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

# glibc's mallopt: the numbers of its options (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for the next frame; whether that could be set.

    glibc gives large blocks back to the system as soon as they are free, and the system hands them out again page by
    page: a third of the image encoder's time on a CPU. What it gives back depends on which small block happens to lie
    behind a large one, so that the memory of a process swings by tens of MB from one second to the next.

    One arena for all threads keeps what is free in one place: with several, a frame's memory lies free in one of them
    and is asked for once more in another. Threads that there are already keep the arena they have, so call this
    before ROS or torch start theirs. It holds for the whole process.
    """
    mallopt = _of_c('mallopt')
    return mallopt is not None and all(
        [mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_ARENA_MAX, 1)])


def give_back_free_memory() -> None:
    """Gives the system what is free right now. The next frame takes what it needs anew, and is late by that.

    For now and then: an image that arrives in the middle of a step lies where the step's next block would have been,
    and that block goes behind all others. Such meetings are rare, but none of their memory would ever come back.
    """
    malloc_trim = _of_c('malloc_trim')
    if malloc_trim is not None:
        malloc_trim(0)


def _of_c(name: str) -> Callable[..., int] | None:
    """A function of the C library, where it is glibc."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):     # musl, macOS, Windows
        return None
