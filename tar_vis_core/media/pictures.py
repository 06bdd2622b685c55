"""Decode and write compressed pictures safely, whatever they contain.

The size in the header is checked before anything is allocated: a JPEG of 2 kB may declare a gigapixel. The codec's
stderr is read, because it is the only sign of a JPEG whose middle or end is missing.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image

from tar_vis_core.errors import DataError
from tar_vis_core.io.input_files import problem_of, what_it_is
from tar_vis_core.io.whole_files import write_bytes

RGB_AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
JPEG_START, PNG_START = b'\xff\xd8', b'\x89PNG\r\n\x1a\n'
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}      # by colour type
JPEG_SUFFIXES = '.jpg', '.jpeg'
ORIENTATION = 0x0112                                # EXIF's tag
DEFLATE = 1032                                      # bytes that one byte of deflate holds at most
# markers without a length; frame headers of Huffman coding, and of arithmetic coding (which has no least size)
BARE = {0x01, *range(0xD0, 0xD8)}
AFTER_SCAN = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')     # a marker that ends coded pixels
FRAME_END, SCAN, RESTARTS, PIXELS = 0xD9, 0xDA, 0xDD, -1
RESTART, BASELINE = re.compile(rb'\xff([\xd0-\xd7])'), {0xC0, 0xC1}
HUFFMAN, ARITHMETIC = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7}, {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}

# What libjpeg and libpng say of a picture of which something is missing. A few bytes before a restart or the end are no
# sign of it: some cameras write one to four of them everywhere. More of them are pixels that found no place.
EXTRA = re.compile(r'Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd[0-79]')
FEW = 4                     # of them before each restart, which libjpeg may add up; and four times as many at the end
DAMAGE = re.compile(r'Corrupt JPEG data: |Premature end of JPEG|Inconsistent progression|Invalid SOS|libpng error: ')
CHATTER = re.compile(DAMAGE.pattern + r'|Warning: unknown JFIF|Unknown Adobe|libpng warning: |'
                     r'\[ *(WARN|ERROR|INFO):\d')     # the last one: OpenCV's own lines
STDERR = threading.Lock()


class PictureError(DataError):
    """A picture is damaged, too large, or of an unknown format."""


def max_pixels() -> int:
    """Return how many pixels a picture may declare: OpenCV's own limit, which the package lowers to 100 million."""
    asked = os.environ.get('OPENCV_IO_MAX_IMAGE_PIXELS', '')
    return int(asked) if asked.isdecimal() else 100_000_000


def check_declared_size(data: bytes) -> None:
    """Raise PictureError if a JPEG or PNG declares more pixels than are allowed, or than its bytes can hold.

    Other formats are left to OpenCV, which knows the limit, too.
    """
    declared = declared_size(data)
    if declared is None:
        return
    width, height, least = declared
    if width * height > max_pixels():
        raise PictureError(f'the picture declares {width}x{height} pixels, at most {max_pixels()} are read '
                           '(OPENCV_IO_MAX_IMAGE_PIXELS sets another limit)')
    if least > len(data):
        raise PictureError(f'the picture declares {width}x{height} pixels, for which its {len(data)} bytes are too few')
    if data.startswith(PNG_START):
        parts = png_parts(data)
        if (claimed := max(parts.values(), default=0)) > len(data):
            raise PictureError(f'the picture is damaged: a part of it claims {claimed} bytes, it has {len(data)}')
        if b'IDAT' not in parts:        # OpenCV looks for it behind the end, and takes what it finds for a length
            raise PictureError('the picture is damaged: its pixels (IDAT) are missing')


def png_parts(data: bytes) -> dict[bytes, int]:
    """Return the names of a PNG's chunks and the greatest length that each claims: decoders make room before they read.
    """
    place, parts = len(PNG_START), {}
    while place + 8 <= len(data) and (name := data[place + 4:place + 8]) != b'IEND':
        length, = struct.unpack_from('>I', data, place)
        parts[name] = max(length, parts.get(name, 0))
        place += 12 + length
    return parts


def declared_size(data: bytes) -> tuple[int, int, int] | None:
    """Return width, height, and the bytes that they need at least, as the header of a JPEG or PNG has them.

    A JPEG spends at least one bit on each block of 8x8 pixels; deflate makes PNG's rows smaller by 1032 at most.
    None for other formats, or if there is no such header.
    """
    if data.startswith(PNG_START) and data[12:16] == b'IHDR' and len(data) >= 26:
        width, height, depth, kind = struct.unpack('>IIBB', data[16:26])
        row = 1 + (width * depth * PNG_CHANNELS.get(kind, 1) + 7) // 8
        return width, height, height * row // DEFLATE
    for marker, content in jpeg_segments(data):
        if marker in HUFFMAN | ARITHMETIC and len(content) >= 5:
            height, width = struct.unpack_from('>HH', content, 1)
            return width, height, width * height // 512 if marker in HUFFMAN else 0
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment of a JPEG, behind a scan PIXELS and what is coded."""
    place = 2 if data.startswith(JPEG_START) else len(data)
    while place + 4 <= len(data) and (marker := data[place + 1]) != FRAME_END:
        if data[place] != 0xFF or marker in (0xFF, 0x00):
            place += 1      # between segments decoders look for the next marker, too
        elif marker in BARE:
            place += 2
        else:
            end = place + 2 + int.from_bytes(data[place + 2:place + 4], 'big')
            yield marker, data[place + 4:end]
            place = end
            if marker == SCAN:
                following = AFTER_SCAN.search(data, end)
                place = following.start() if following else len(data)
                yield PIXELS, data[end:place]


def lacks_scans(data: bytes) -> bool:
    """Return whether a JPEG ends before every coefficient of every component had its last bit.

    That is a progressive picture, or one whose colours come one after another, cut between two scans: a whole file for
    libjpeg, which gives it blurred or grey. A picture of one scan is seen through by its headers alone.
    """
    left: dict[int, set[int]] = {}      # component: coefficients that lack bits
    for marker, content in jpeg_segments(data):
        if marker in HUFFMAN | ARITHMETIC:
            left = {number: set(range(64)) for number in content[6::3]}
        elif marker == SCAN:
            first, last, bits = content[-3:].ljust(3, b'\xff')
            for number in content[1:1 + 2 * content[0]:2] if content and not bits & 15 else ():
                left.get(number, set()).difference_update(range(first, last + 1))
            if not any(left.values()):
                return False
    return any(left.values())


def restarts_of(data: bytes) -> int:
    """Return the number of restart markers of a JPEG of one scan; -4 if one is missing or out of order."""
    interval, blocks = 0, 1
    for marker, content in jpeg_segments(data):
        if marker == RESTARTS:
            interval = int.from_bytes(content, 'big')
        elif marker in BASELINE and len(content) >= 9:
            height, width = struct.unpack_from('>HH', content, 1)
            factors = content[7::3] if content[5] > 1 else b'\x11'
            blocks = math.prod(-(-side // (8 * max(each))) for side, each in (
                (width, [factor >> 4 or 1 for factor in factors]), (height, [factor & 15 or 1 for factor in factors])))
        elif marker == PIXELS:
            count = -(-blocks // interval) - 1 if interval else 0
            found = b''.join(RESTART.findall(content))
            return count if found == bytes(0xD0 + i % 8 for i in range(count)) else -4
    return -4


def decode_picture(data: bytes, flags: int = RGB_AS_STORED) -> np.ndarray:
    """Decode any format that OpenCV knows; by default to ``(H, W, 3)`` uint8 RGB, orientation tags ignored.

    Raise PictureError if the picture is damaged, too large or of another format.
    """
    check_declared_size(data)
    try:
        with codec_messages() as said:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        if 'CV_IO_MAX_IMAGE' in str(error):
            raise PictureError(f'the picture declares more than {max_pixels()} pixels, which are not read '
                               '(OPENCV_IO_MAX_IMAGE_PIXELS sets another limit)') from error
        image = None
    if image is None:
        known = what_it_is(data[:512])
        raise PictureError(f'not a readable image, but {known}' if known else
                           'not a readable image: damaged, or of a format that OpenCV does not know')
    damage = next((line for line in said if DAMAGE.match(line)), '')
    extra = EXTRA.match(damage)
    if damage and not (extra and int(extra[1]) <= FEW * (4 + restarts_of(data))):
        raise PictureError(f'the picture is damaged, a part of it is missing: {damage.rpartition(": ")[2]}')
    if lacks_scans(data):
        raise PictureError('the picture is damaged, a part of it is missing: its last scans')
    return image


@contextlib.contextmanager
def codec_messages() -> Iterator[list[str]]:
    """Collect the lines that codecs write to stderr; the list is filled at the end. Other lines come out afterwards."""
    said: list[str] = []
    with STDERR, _scratch_file() as kept:
        try:
            with stderr_into(kept):
                yield said
        finally:
            kept.seek(0)
            for line in kept.read().splitlines(keepends=True):
                text = line.decode(errors='replace').strip()
                if CHATTER.match(text):
                    said.append(text)
                elif text:      # OpenCV puts empty lines after its own
                    os.write(2, line)


@contextlib.contextmanager
def stderr_into(file: IO[bytes]) -> Iterator[None]:
    """Let stderr, also that of compiled code, go into a file while the block runs."""
    try:
        stderr = os.dup(2)
    except OSError:     # no stderr at all
        yield
        return
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _scratch_file() -> IO[bytes]:
    """Return a file in memory if the system has such files: a robot's disk may be full or read-only."""
    return os.fdopen(os.memfd_create('codec'), 'r+b') if hasattr(os, 'memfd_create') else tempfile.TemporaryFile()


def read_picture(path: str | Path, flags: int = RGB_AS_STORED) -> np.ndarray:
    """Decode a picture file as :func:`decode_picture` does. Raise PictureError that names the file."""
    path = Path(path)
    if problem := problem_of(path):
        raise PictureError(f'{path}: {problem}')
    try:
        return decode_picture(path.read_bytes(), flags)
    except PictureError as error:
        raise PictureError(f'{path}: {error}') from error
    except OSError as error:
        raise PictureError(f'{path}: cannot be read: {error.strerror or error}') from error


def picture_header(path: Path) -> tuple[int, int, int] | None:
    """Return height, width and EXIF orientation (1: upright) without decoding; None if the header cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')     # of large pictures, which have a limit of their own here
        try:
            with Image.open(path) as picture:
                return picture.height, picture.width, picture.getexif().get(ORIENTATION, 1)
        except Exception:       # damaged files raise anything inside a parser
            return None


def sized_picture(path: Path, height: int, width: int, data: bytes = b'') -> np.ndarray:
    """Read a labelled picture, whose file (or its content ``data``) must be of the size that its labels say.

    An EXIF orientation is followed only if the labels' size fits the upright picture and not the stored one: then they
    were made on the upright one. Raise PictureError.
    """
    def read(flags: int) -> np.ndarray:
        return decode_picture(data, flags) if data else read_picture(path, flags)
    try:
        image = read(RGB_AS_STORED)
        if image.shape[:2] == (height, width):
            return image
        if (upright := read(cv2.IMREAD_COLOR_RGB)).shape[:2] == (height, width):
            return upright
    except PictureError as error:
        raise (PictureError(f'{path}: {error}') if data else error) from error
    raise PictureError(f'{path}: the image is {image.shape[1]}x{image.shape[0]}, its annotation file says '
                       f'{width}x{height}')


def write_picture(path: str | Path, rgb: np.ndarray, quality: int = 95) -> None:
    """Write ``(H, W, 3)`` uint8 RGB as the format that the name ends with; ``quality`` is JPEG's.

    OpenCV's own imwrite does not notice a full disk. Raise WriteError, and DataError for an ending without encoder.
    """
    path = Path(path)
    try:
        suffix = path.suffix.lower()
        done, encoded = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [
            cv2.IMWRITE_JPEG_QUALITY, quality] if suffix in JPEG_SUFFIXES else [])     # others would warn of it
    except cv2.error:
        done = False
    if not done:
        raise DataError(f'{path}: no picture can be written under this ending; expected .png or .jpg')
    write_bytes(path, encoded.tobytes())
