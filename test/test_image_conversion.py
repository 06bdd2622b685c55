"""Image messages become RGB arrays whatever their encoding, padding and byte order; bad ones are refused."""

import sys
from array import array

import numpy as np
import pytest

pytest.importorskip('sensor_msgs.msg')
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from tar_vis_ros.image_conversion import (
    ENCODINGS,
    ImageError,
    array_to_image,
    image_to_array,
    image_to_rgb,
)

RGB = np.array([[[255, 0, 10], [1, 2, 3], [0, 200, 30]],
                [[9, 8, 7], [100, 110, 120], [255, 255, 255]]], np.uint8)
GREY = np.array([[0, 17, 255], [3, 128, 250]], np.uint8)
ALPHA = np.full((2, 3, 1), 77, np.uint8)
VECTORS = {   # encoding: (pixels as they lie in the message, the RGB they mean)
    'rgb8': (RGB, RGB),
    'bgr8': (RGB[..., ::-1], RGB),
    'rgba8': (np.concatenate([RGB, ALPHA], 2), RGB),
    'bgra8': (np.concatenate([RGB[..., ::-1], ALPHA], 2), RGB),
    'mono8': (GREY, np.repeat(GREY[..., None], 3, 2)),
    'mono16': (GREY.astype(np.uint16) * 257, np.repeat(GREY[..., None], 3, 2)),
}


def message(pixels: np.ndarray, encoding: str, padding: int = 0, big_endian: bool = False) -> Image:
    """A message made byte by byte, apart from the code under test; padding bytes are 0xEE."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype('>u2' if big_endian else '<u2')
    height, width = pixels.shape[:2]
    rows = [np.ascontiguousarray(row).tobytes() + b'\xee' * padding for row in pixels]
    return Image(height=height, width=width, encoding=encoding, step=len(rows[0]), is_bigendian=int(big_endian),
                 data=array('B', b''.join(rows)))


def test_every_encoding_has_a_vector():
    assert set(VECTORS) == set(ENCODINGS)


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('padding', [0, 1, 5, 16])
@pytest.mark.parametrize('encoding', VECTORS)
def test_reads_as_rgb(encoding, padding, big_endian):
    pixels, rgb = VECTORS[encoding]
    got = image_to_rgb(message(pixels, encoding, padding, big_endian))
    assert got.dtype == np.uint8 and got.flags['C_CONTIGUOUS']
    np.testing.assert_array_equal(got, rgb)


@pytest.mark.parametrize('encoding', VECTORS)
def test_round_trip(encoding):
    pixels, _ = VECTORS[encoding]
    header = Header(frame_id='camera')
    image = array_to_image(pixels, encoding, header)
    assert image.header == header and image.is_bigendian == (encoding == 'mono16' and sys.byteorder == 'big')
    np.testing.assert_array_equal(image_to_array(image), pixels)
    assert isinstance(image.data, array) and len(image.data) == image.height * image.step


@pytest.mark.parametrize('encoding', VECTORS)
def test_agrees_with_cv_bridge(encoding):
    bridge = pytest.importorskip('cv_bridge').CvBridge()
    pixels, _ = VECTORS[encoding]
    image = message(pixels, encoding, padding=4)
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(image, 'rgb8' if pixels.dtype == np.uint8 else 'passthrough'),
                                  image_to_rgb(image) if pixels.dtype == np.uint8 else image_to_array(image))


def test_mono16_is_scaled_not_cut():
    image = array_to_image(np.array([[0, 256, 65535, 40000]], np.uint16), 'mono16')
    assert image_to_rgb(image)[0, :, 0].tolist() == [0, 1, 255, 156]


def test_data_longer_than_needed_is_read():
    image = message(RGB, 'rgb8')
    image.data = array('B', image.data.tobytes() + b'tail')
    np.testing.assert_array_equal(image_to_rgb(image), RGB)


def test_rgb8_without_padding_is_not_copied():
    image = message(RGB, 'rgb8')
    assert np.shares_memory(image_to_rgb(image), np.frombuffer(image.data, np.uint8))


@pytest.mark.parametrize(('changes', 'kind', 'words'), [
    ({'encoding': 'yuv422_yuy2'}, 'encoding', ['yuv422_yuy2', 'bgr8', 'mono16']),
    ({'encoding': ''}, 'encoding', ["''"]),
    ({'step': 8}, 'step', ['8 bytes', '9 bytes', '3 pixels']),
    ({'step': 0}, 'step', ['0 bytes']),
    ({'data': array('B', bytes(17))}, 'data', ['17 bytes', '18 bytes']),
    ({'data': array('B')}, 'data', ['0 bytes']),
    ({'height': 4_000_000_000}, 'data', ['36000000000 bytes']),
    ({'height': 0}, 'size', ['3x0']),
    ({'width': 0}, 'size', ['0x2']),
])
def test_refuses_with_one_line(changes, kind, words):
    image = message(RGB, 'rgb8')
    for field, value in changes.items():
        setattr(image, field, value)
    with pytest.raises(ImageError) as error:
        image_to_rgb(image)
    assert error.value.kind == kind and '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(('pixels', 'encoding'), [
    (RGB, 'mono8'), (RGB, 'bgra8'), (GREY, 'rgb8'), (GREY, 'mono16'), (RGB.astype(np.float32), 'rgb8'),
    (RGB[0, 0], 'rgb8'), (RGB, '32FC3'),
])
def test_does_not_write_what_does_not_fit(pixels, encoding):
    with pytest.raises(ValueError, match=encoding):
        array_to_image(pixels, encoding)
