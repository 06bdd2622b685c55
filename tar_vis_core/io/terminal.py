"""Print on any terminal, and recognise errors about memory."""

from __future__ import annotations

import errno
import re
import sys


def say_anything() -> None:
    """Let print write names in any alphabet. A character that the terminal cannot show comes out as ``\\xdf``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):      # else replaced, as in a test or a notebook
            stream.reconfigure(errors='backslashreplace')


def one_line(error: BaseException) -> str:
    """Return an error's message on one line."""
    text = ' '.join(str(error).split())
    if out_of_memory(error):
        return f'memory ran out{text and f" ({text[:200]})"}: close other programs, or take a smaller model or input'
    return text or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, in Python's, the system's, torch's or a library's words."""
    return (isinstance(error, MemoryError) or getattr(error, 'errno', None) == errno.ENOMEM
            or re.search("(can(no|')t allocate|out of|insufficient) memory", str(error), re.IGNORECASE) is not None)
