"""Print on any terminal, and recognise errors about memory."""

from __future__ import annotations

import errno
import re
import sys

from tar_vis_core.errors import one_line


def say_anything() -> None:
    """Let print write names in any alphabet. A character that the terminal cannot show comes out as ``\\xdf``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):      # else replaced, as in a test or a notebook
            stream.reconfigure(errors='backslashreplace')


def line_about(error: BaseException) -> str:
    """Return the line that a program ends with after an error."""
    text = one_line(error)
    if out_of_memory(error):
        return f'memory ran out ({text[:200]}): close other programs, or take a smaller model or input'
    return text


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, in Python's, the system's, torch's or a library's words."""
    return (isinstance(error, MemoryError) or getattr(error, 'errno', None) == errno.ENOMEM
            or re.search("(can(no|')t allocate|out of|insufficient) memory", str(error), re.IGNORECASE) is not None)
