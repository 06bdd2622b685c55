"""What a command says, on any terminal."""

from __future__ import annotations

import sys


def say_anything() -> None:
    """Let print write names in any alphabet: what a terminal's encoding does not have comes out as ``\\xdf``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):      # else replaced, as in a test or a notebook
            stream.reconfigure(errors='backslashreplace')


def one_line(error: BaseException) -> str:
    """Return an error's message on one line."""
    unsaid = 'memory ran out' if isinstance(error, MemoryError) else type(error).__name__
    return ' '.join(str(error).split()) or unsaid
