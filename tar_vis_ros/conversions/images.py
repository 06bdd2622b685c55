"""Image messages to RGB arrays and back: :func:`to_rgb` takes sensor_msgs/Image and CompressedImage.

Encodings are those of sensor_msgs/image_encodings.hpp; their bytes are described in REP-118, in the comments of
Image.msg and, for the yuv ones, in V4L2's "YUV formats". What is not listed in ENCODINGS is refused, never guessed.

This converter is used even if cv_bridge is installed. cv_bridge 3.4 from Python skews rows whose padding is no
whole number of pixels and yuv422 of odd width, knows neither uyvy nor yuyv, cannot read big endian with NumPy 2, and
takes longer, because it copies more. If both can read a message, they agree (a test compares them).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from tar_vis_core.errors import TarVisError
from tar_vis_core.media.pictures import PictureError, decode_picture


class ImageError(TarVisError, ValueError):
    """An image message that cannot be read. ``kind`` is one of 'size', 'encoding', 'step', 'data'."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Encoding:
    """The layout of an encoding's pixels in memory, and their conversion to RGB."""

    channels: int
    dtype: type
    to_rgb: int | None   # an OpenCV colour conversion; None if the pixels are RGB already
    group: int = 1       # neighbours in a row that share their bytes: a row holds whole groups
    least: int = 1       # smallest width and height
    chroma: bool = False  # below the rows of the picture half as many of pairs of colour: width and height are even
    taken_for: str = ''  # the encoding that is assumed if the name does not define colours


BAYER = {   # OpenCV names a pattern by the second and third pixel of its second row
    'rggb': cv2.COLOR_BayerBG2RGB,
    'bggr': cv2.COLOR_BayerRG2RGB,
    'gbrg': cv2.COLOR_BayerGR2RGB,
    'grbg': cv2.COLOR_BayerGB2RGB,
}
UNNAMED = {'8UC1': 'mono8', '8UC3': 'bgr8', '8UC4': 'bgra8'}    # OpenCV's own types, in the order that it has them
ENCODINGS = {
    'rgb8': Encoding(3, np.uint8, None),
    'bgr8': Encoding(3, np.uint8, cv2.COLOR_BGR2RGB),
    'rgba8': Encoding(4, np.uint8, cv2.COLOR_RGBA2RGB),
    'bgra8': Encoding(4, np.uint8, cv2.COLOR_BGRA2RGB),
    'mono8': Encoding(1, np.uint8, cv2.COLOR_GRAY2RGB),
    'mono16': Encoding(1, np.uint16, cv2.COLOR_GRAY2RGB),
    'rgb16': Encoding(3, np.uint16, None),
    'bgr16': Encoding(3, np.uint16, cv2.COLOR_BGR2RGB),
    'rgba16': Encoding(4, np.uint16, cv2.COLOR_RGBA2RGB),
    'bgra16': Encoding(4, np.uint16, cv2.COLOR_BGRA2RGB),
    'nv12': Encoding(1, np.uint8, cv2.COLOR_YUV2RGB_NV12, least=2, chroma=True),
    'nv21': Encoding(1, np.uint8, cv2.COLOR_YUV2RGB_NV21, least=2, chroma=True),
    'yuv422': Encoding(2, np.uint8, cv2.COLOR_YUV2RGB_UYVY, group=2),
    'uyvy': Encoding(2, np.uint8, cv2.COLOR_YUV2RGB_UYVY, group=2),        # the new name of yuv422
    'yuv422_yuy2': Encoding(2, np.uint8, cv2.COLOR_YUV2RGB_YUYV, group=2),
    'yuyv': Encoding(2, np.uint8, cv2.COLOR_YUV2RGB_YUYV, group=2),        # the new name of yuv422_yuy2
    **{f'bayer_{pattern}8': Encoding(1, np.uint8, to_rgb, least=3) for pattern, to_rgb in BAYER.items()},
    **{f'bayer_{pattern}16': Encoding(1, np.uint16, to_rgb, least=3) for pattern, to_rgb in BAYER.items()},
}
ENCODINGS |= {name: replace(ENCODINGS[meant], taken_for=meant) for name, meant in UNNAMED.items()}
STORED = {   # channel order and number of a decoded picture
    ('BGR', 3): cv2.COLOR_BGR2RGB, ('BGR', 4): cv2.COLOR_BGRA2RGB,
    ('RGB', 3): None, ('RGB', 4): cv2.COLOR_RGBA2RGB,
}
JPEG_START, JPEG_SCAN, JPEG_END = b'\xff\xd8\xff', b'\xff\xda', b'\xff\xd9'
PNG_START = b'\x89PNG\r\n\x1a\n'


def to_rgb(message: Image | CompressedImage) -> np.ndarray:
    """Return the picture of a message as contiguous RGB ``(height, width, 3)`` uint8. Do not write into it.

    16 bits are scaled by 1/257, so that 65535 becomes 255; alpha is dropped. Raise :class:`ImageError`.
    """
    return compressed_to_rgb(message) if isinstance(message, CompressedImage) else image_to_rgb(message)


def image_to_array(image: Image, encodings: Mapping[str, Encoding] = ENCODINGS) -> np.ndarray:
    """Return the pixels of a message in its own channel order, in the byte order of this machine.

    The array is ``(height, width, channels)``, or ``(height, width)`` for one channel. It is a view of the message's
    data if the bytes allow that, so do not write into it. yuv422 of an odd width has one column more, because two
    pixels share their bytes. nv12 and nv21 have half as many rows again. Bytes after the last row are ignored. Raise
    :class:`ImageError`.
    """
    height, width, step = image.height, image.width, image.step
    encoding = encodings.get(image.encoding)
    if encoding is None:
        raise ImageError('encoding', f"image encoding '{image.encoding}' is not supported: expected one of "
                                     f'{", ".join(encodings)}')
    if min(height, width) < encoding.least:
        raise ImageError('size', f'image of {width}x{height} pixels: expected at least '
                                 f'{encoding.least}x{encoding.least} of {image.encoding}')
    dtype = np.dtype(encoding.dtype)
    columns = -(-width // encoding.group) * encoding.group
    row = columns * encoding.channels * dtype.itemsize
    if step < row:
        raise ImageError('step', f'image step of {step} bytes is shorter than a row: {width} pixels of '
                                 f'{image.encoding} need {row} bytes')
    data = np.frombuffer(image.data, np.uint8)
    if encoding.chroma and (height % 2 or width % 2):
        raise ImageError('size', f'image of {width}x{height} pixels: expected an even width and height of '
                                 f'{image.encoding}')
    lines = height * 3 // 2 if encoding.chroma else height
    if data.size < lines * step:
        raise ImageError('data', f'image data of {data.size} bytes is too short: {lines} rows of step {step} '
                                 f'need {lines * step} bytes')
    rows = data[:lines * step].reshape(lines, step)[:, :row]
    if dtype.itemsize > 1:
        rows = rows.view(dtype.newbyteorder('>' if image.is_bigendian else '<'))
        rows = np.require(rows, dtype, ['ALIGNED'])   # an odd step starts rows at odd addresses; OpenCV misreads those
    return rows.reshape(lines, columns, encoding.channels) if encoding.channels > 1 else rows


def image_to_rgb(image: Image) -> np.ndarray:
    """Return :func:`to_rgb` of an Image: mono is repeated, Bayer is interpolated, yuv is BT.601 of limited range.

    An rgb8 message without padding comes back as a view of its data. Raise :class:`ImageError`.
    """
    rgb = _converted(image_to_array(image), ENCODINGS[image.encoding].to_rgb)
    return rgb if rgb.shape[1] == image.width else np.ascontiguousarray(rgb[:, :image.width])


def compressed_to_rgb(message: CompressedImage) -> np.ndarray:
    """Return :func:`to_rgb` of a JPEG or PNG. Raise :class:`ImageError` if it is damaged.

    ``format`` is read as image_transport writes it, 'ENCODING; CODEC compressed [ENCODING]'. It shows a Bayer mosaic
    (PNG only) and colours that were stored as RGB although the codec expects BGR. A bare 'jpeg', 'png' or empty format
    has no such information. Orientation tags are ignored, because camera_info does not have them. A picture whose
    middle or end is missing is damaged. Single changed bytes of a JPEG are not always noticed, because a JPEG has no
    checksum.
    """
    data = bytes(message.data)
    png = data.startswith(PNG_START)
    # Older OpenCV gives the upper part of a JPEG that was cut off.
    whole = png or (data.startswith(JPEG_START) and data.rfind(JPEG_END) > data.rfind(JPEG_SCAN))
    try:
        if not whole:
            raise PictureError('its begin or end is missing')
        pixels = decode_picture(data, cv2.IMREAD_UNCHANGED)
    except PictureError as error:
        raise ImageError('data', f"compressed image of {len(data)} bytes, format '{message.format}', cannot be "
                                 f'decoded: expected a whole JPEG or PNG; {error}') from None
    if pixels.ndim == 3:
        stored = 'RGB' if 'compressed rgb' in message.format else 'BGR'
        return _converted(pixels, STORED[stored, pixels.shape[2]])
    pattern = message.format.removeprefix('bayer_')[:4] if png else ''
    return _converted(pixels, BAYER.get(pattern, cv2.COLOR_GRAY2RGB))


def _converted(pixels: np.ndarray, to_rgb: int | None) -> np.ndarray:
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=1 / 257)
    return np.ascontiguousarray(pixels) if to_rgb is None else cv2.cvtColor(pixels, to_rgb)


def array_to_image(pixels: np.ndarray, encoding: str, header: Header | None = None,
                   encodings: Mapping[str, Encoding] = ENCODINGS) -> Image:
    """Return a message of pixels that already lie in the channel order of ``encoding``.

    ``pixels`` is ``(height, width, channels)`` or ``(height, width)`` for one channel, of the
    encoding's type. Raise ValueError if shape or type do not fit. The header is taken over as it is.
    """
    expected = encodings.get(encoding)
    if expected is None:
        raise ValueError(f"encoding '{encoding}' is not supported: expected one of {', '.join(encodings)}")
    channels = pixels.shape[2] if pixels.ndim == 3 else 1 if pixels.ndim == 2 else 0
    if channels != expected.channels or pixels.dtype != expected.dtype:
        raise ValueError(f'{encoding} needs {expected.channels} channel(s) of {np.dtype(expected.dtype)}, '
                         f'got shape {pixels.shape} of {pixels.dtype}')
    if channels > 1 and pixels.shape[1] % expected.group:
        raise ValueError(f'{encoding} holds {expected.group} pixels together: the width of {pixels.shape[1]} is odd')
    if expected.chroma and (pixels.shape[0] % 3 or pixels.shape[1] % 2):
        raise ValueError(f'{encoding} has half as many rows of colour as of grey, and pairs of columns: '
                         f'got shape {pixels.shape}')
    pixels = np.ascontiguousarray(pixels)
    image = Image(height=pixels.shape[0] * 2 // 3 if expected.chroma else pixels.shape[0], width=pixels.shape[1],
                  encoding=encoding,
                  step=pixels.shape[1] * channels * pixels.itemsize,
                  is_bigendian=int(pixels.itemsize > 1 and sys.byteorder == 'big'))
    if header is not None:
        image.header = header
    data = array('B')   # the one type that rclpy takes over without looking at every byte
    if pixels.size:
        data.frombytes(memoryview(pixels).cast('B'))
    image.data = data
    return image
