"""Write a result file whole or not at all.

A disk that fills up, a quota and a killed process leave half a file. A file is therefore written under a hidden name
beside its own, and moved to its name when it is whole and on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tar_vis_core.errors import TarVisError


class WriteError(TarVisError, OSError):
    """A result file could not be written."""


def make_folder(path: str | Path) -> None:
    """Make a folder for results, if it is not there. Raise WriteError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        there = next(part for part in (path, *path.parents) if os.path.lexists(part) and not part.is_dir())
        raise WriteError(f'{path} cannot be a folder for results: {there} is a file; give another name') from error
    except OSError as error:
        raise WriteError(f'cannot make the folder {path}: {error.strerror or error}') from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give the name to write to in place of ``path``, and move that file to ``path`` if the block ends well.

    The name has the ending of ``path``. If the block raises, the half file is removed and a file that was at ``path``
    before stays as it was. A device or a pipe, such as ``/dev/stdout``, is written directly.

    Raises:
        WriteError: for any OSError of the block, or of the move; it names ``path`` and the reason.
    """
    path = Path(path)
    goal = Path(os.path.realpath(path))     # a link stays one
    try:
        if goal.exists() and not stat.S_ISREG(goal.stat().st_mode):
            yield goal      # a folder fails in the block
            return
        half = goal.with_name(f'.{goal.stem[:100]}.{uuid.uuid4().hex[:8]}{goal.suffix}')
        try:
            yield half
            with half.open('rb') as file:
                os.fsync(file.fileno())     # some file systems report a full disk only now
            os.replace(half, goal)
        finally:
            half.unlink(missing_ok=True)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f'cannot write {path}: {error.strerror or error}') from error


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a binary file whole. Raise WriteError."""
    with replacing(path) as half:
        half.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole, in UTF-8 whatever the locale. Raise WriteError."""
    write_bytes(path, text.encode('utf-8', 'surrogateescape'))


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file whole. Raise WriteError, and ValueError for numbers that JSON does not have."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + '\n')
