"""Unpack what recorders and MCAP compress: files, messages, chunks; as far as they go, and never without a limit."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

from lz4.frame import LZ4FrameDecompressor

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKED = '.zstd'            # ending of a file that rosbag2 has compressed
ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
MAX_MESSAGE = 2**28         # bytes that a compressed message may have
PIECE = 2**16               # bytes that are unpacked at a time, so that those before a break come out


def plain_path(file: Path) -> Path:
    """Return the path without the ending of rosbag2's compression."""
    return file.with_suffix('') if file.suffix == PACKED else file


def unpack_file(file: Path, folder: Path) -> Path:
    """Unpack a file of rosbag2's compression into a folder, as far as it goes and half of the folder's room does."""
    goal, room = folder / plain_path(file).name, shutil.disk_usage(folder).free // 2
    with zstd.open(file) as packed, goal.open('wb') as whole, contextlib.suppress(EOFError, zstd.ZstdError):
        while whole.tell() < room and (piece := packed.read1(PIECE)):
            whole.write(piece)
    return goal


def plain_message(data: bytes) -> bytes:
    """Return a message without rosbag2's compression, b'' for a damaged one.

    Only metadata tells of it, which a killed recorder did not write; but CDR begins with a zero, and zstd does not.
    """
    if bytes(data[:4]) != ZSTD_MAGIC:
        return data
    machine = zstd.ZstdDecompressor()
    with contextlib.suppress(zstd.ZstdError):
        data = machine.decompress(data, MAX_MESSAGE)
    return data if machine.eof else b''


def unpack_records(data: bytes, compression: str, size: int) -> bytes:
    """Return the part of compressed records that can be unpacked, ``size`` bytes at most."""
    machine = LZ4FrameDecompressor() if compression == 'lz4' else zstd.ZstdDecompressor()
    parts, length = [], 0
    with contextlib.suppress(Exception):    # of a damaged or cut stream, whatever the library raises
        for start in range(0, len(data), PIECE):
            parts.append(machine.decompress(data[start:start + PIECE], max_length=size - length))
            length += len(parts[-1])
            while length < size and not machine.needs_input and not machine.eof:
                parts.append(machine.decompress(b'', max_length=size - length))
                length += len(parts[-1])
            if machine.eof or length >= size:
                break
    return b''.join(parts)
