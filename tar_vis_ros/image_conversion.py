"""sensor_msgs/Image to RGB arrays and back, honouring ``step`` and ``is_bigendian``.

Encodings are those of sensor_msgs/image_encodings.hpp; their bytes are described in REP-118 and
in the comments of Image.msg. What is not listed in ENCODINGS is refused, never guessed.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass

import cv2
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header


class ImageError(ValueError):
    """An image message that cannot be read. ``kind`` is one of 'size', 'encoding', 'step', 'data'."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Encoding:
    """How the pixels of an encoding lie in memory, and what makes them RGB."""

    channels: int
    dtype: type
    to_rgb: int | None   # an OpenCV colour conversion; None where the pixels are RGB already


ENCODINGS = {
    'rgb8': Encoding(3, np.uint8, None),
    'bgr8': Encoding(3, np.uint8, cv2.COLOR_BGR2RGB),
    'rgba8': Encoding(4, np.uint8, cv2.COLOR_RGBA2RGB),
    'bgra8': Encoding(4, np.uint8, cv2.COLOR_BGRA2RGB),
    'mono8': Encoding(1, np.uint8, cv2.COLOR_GRAY2RGB),
    'mono16': Encoding(1, np.uint16, cv2.COLOR_GRAY2RGB),
}


def image_to_array(image: Image) -> np.ndarray:
    """The pixels of a message in its own channel order, in the byte order of this machine.

    Gives ``(height, width, channels)``, or ``(height, width)`` for one channel; a view of the
    message's data where its bytes allow that, so do not write into it. Bytes after
    ``height * step`` are ignored. Raises :class:`ImageError`.
    """
    height, width, step = image.height, image.width, image.step
    if height == 0 or width == 0:
        raise ImageError('size', f'image of {width}x{height} pixels: expected at least 1x1')
    encoding = ENCODINGS.get(image.encoding)
    if encoding is None:
        raise ImageError('encoding', f"image encoding '{image.encoding}' is not supported: expected one of "
                                     f'{", ".join(ENCODINGS)}')
    dtype = np.dtype(encoding.dtype)
    row = width * encoding.channels * dtype.itemsize
    if step < row:
        raise ImageError('step', f'image step of {step} bytes is shorter than a row: {width} pixels of '
                                 f'{image.encoding} need {row} bytes')
    data = np.frombuffer(image.data, np.uint8)
    if data.size < height * step:
        raise ImageError('data', f'image data of {data.size} bytes is too short: {height} rows of step {step} '
                                 f'need {height * step} bytes')
    rows = data[:height * step].reshape(height, step)[:, :row]
    if dtype.itemsize > 1:
        rows = rows.view(dtype.newbyteorder('>' if image.is_bigendian else '<'))
        rows = np.require(rows, dtype, ['ALIGNED'])   # an odd step starts rows at odd addresses; OpenCV misreads those
    return rows.reshape(height, width, encoding.channels) if encoding.channels > 1 else rows


def image_to_rgb(image: Image) -> np.ndarray:
    """The message as contiguous RGB ``(height, width, 3)`` uint8; mono is repeated, alpha is dropped.

    mono16 is scaled by 1/257, so that 65535 becomes 255. Raises :class:`ImageError`. An rgb8
    message without padding comes back as a view of its data: do not write into it.
    """
    pixels = image_to_array(image)
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=1 / 257)
    conversion = ENCODINGS[image.encoding].to_rgb
    return np.ascontiguousarray(pixels) if conversion is None else cv2.cvtColor(pixels, conversion)


def array_to_image(pixels: np.ndarray, encoding: str, header: Header | None = None) -> Image:
    """A message of pixels that already lie in the channel order of ``encoding``.

    ``pixels`` is ``(height, width, channels)`` or ``(height, width)`` for one channel, of the
    encoding's type. Raises ValueError where shape or type do not fit. The header is taken over as it is.
    """
    expected = ENCODINGS.get(encoding)
    if expected is None:
        raise ValueError(f"encoding '{encoding}' is not supported: expected one of {', '.join(ENCODINGS)}")
    channels = pixels.shape[2] if pixels.ndim == 3 else 1 if pixels.ndim == 2 else 0
    if channels != expected.channels or pixels.dtype != expected.dtype:
        raise ValueError(f'{encoding} needs {expected.channels} channel(s) of {np.dtype(expected.dtype)}, '
                         f'got shape {pixels.shape} of {pixels.dtype}')
    pixels = np.ascontiguousarray(pixels)
    image = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding,
                  step=pixels.shape[1] * channels * pixels.itemsize,
                  is_bigendian=int(pixels.itemsize > 1 and sys.byteorder == 'big'))
    if header is not None:
        image.header = header
    data = array('B')   # the one type that rclpy takes over without looking at every byte
    if pixels.size:
        data.frombytes(memoryview(pixels).cast('B'))
    image.data = data
    return image
