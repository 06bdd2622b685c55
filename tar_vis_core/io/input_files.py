"""Find out what is wrong with an input file before a parser reads it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

KINDS = {stat.S_IFDIR: 'a folder', stat.S_IFIFO: 'a pipe', stat.S_IFSOCK: 'a socket', stat.S_IFCHR: 'a device',
         stat.S_IFBLK: 'a device'}
COMPRESSED = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ\0': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}


def problem_of(path: str | Path) -> str | None:
    """Return why a path cannot be read (missing, a folder, a pipe, no permission), or None.

    A pipe would make a reader wait for ever, and a device may have no end.
    """
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        return 'no permission to read it'
    except (OSError, ValueError):       # ValueError: a name with a zero byte
        return 'no such file' + (', and ~ in it was not understood' if str(path).startswith('~') else '')
    if not stat.S_ISREG(mode):
        return f'is {KINDS.get(stat.S_IFMT(mode), "no file")}, expected a file'
    return None if os.access(path, os.R_OK) else 'no permission to read it'


def what_it_is(head: bytes) -> str | None:
    """Return the kind of a foreign file by its first hundreds of bytes; None if it is not known."""
    if not head:
        return 'an empty file'
    if not head.strip(b'\0'):
        return 'zero bytes only (a copy or a download that was broken off?)'
    if head.startswith(b'version https://git-lfs'):
        size = re.search(rb'size (\d+)', head)
        return (f'a Git LFS pointer{f" ({int(size[1])} bytes are elsewhere)" if size else ""}: '
                "run 'git lfs pull' where it was cloned")
    text = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
    if text.startswith((b'<!doctype html', b'<html', b'<head', b'<body')):
        return 'a web page (HTML): the download gave a page in place of the file'
    if text.startswith((b'<?xml', b'<!--')) or re.match(rb'<[a-z]+[ >]', text):
        return 'XML'
    return next((f'compressed by {name}: unpack it first' for start, name in COMPRESSED.items()
                 if head.startswith(start)), None)


def is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of a text."""
    return bool(head) and all(byte >= 32 or byte in b'\t\n\r' for byte in head)
