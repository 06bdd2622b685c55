"""No room on the disk, for the block that needs it: what pytest itself writes must not be hit."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def little_room(size: int = 4096) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes while the block runs, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
