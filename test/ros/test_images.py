"""Image messages become RGB arrays whatever their encoding, padding and byte order; bad ones are refused."""

import sys
from array import array

import numpy as np
import pytest

pytest.importorskip('sensor_msgs.msg')
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from tar_vis_ros.conversions.images import ENCODINGS, ImageError, array_to_image, image_to_array, to_rgb

RGB = np.array([[[255, 0, 10], [1, 2, 3], [0, 200, 30]],
                [[9, 8, 7], [100, 110, 120], [255, 255, 255]]], np.uint8)
GREY = np.array([[0, 17, 255], [3, 128, 250]], np.uint8)
ALPHA = np.full((2, 3, 1), 77, np.uint8)


def yuv422(order: str) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of two pairs of pixels: their bytes in the order of their names, and their RGB (BT.601)."""
    y = np.array([[16, 235, 100, 40], [81, 145, 41, 200]], float)
    u, v = np.array([[128, 90], [90, 54]], float), np.array([[128, 240], [240, 34]], float)   # one for two pixels
    u, v = np.repeat(u, 2, 1), np.repeat(v, 2, 1)
    luma, blue, red = 255 / 219 * (y - 16), (u - 128) * 255 / 224, (v - 128) * 255 / 224
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], 2)
    named = {'Y': y, 'U': u, 'V': v}
    even, odd = [np.stack([named[letter] for letter in order[half:half + 2]], 2) for half in (0, 2)]
    pixels = np.where(np.arange(4)[None, :, None] % 2, odd, even)
    return pixels.astype(np.uint8), rgb.round().clip(0, 255).astype(np.uint8)


def semi_planar(order: str) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of four pixels of one colour for every 2x2, and below them its pairs; their RGB (BT.601)."""
    y = np.array([[16, 235, 100, 40], [81, 145, 41, 200]], float)
    u, v = np.array([110.0, 54.0]), np.array([140.0, 34.0])
    luma, blue, red = 255 / 219 * (y - 16), (np.repeat(u, 2) - 128) * 255 / 224, (np.repeat(v, 2) - 128) * 255 / 224
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], 2)
    pairs = np.stack([u, v] if order == 'UV' else [v, u], 1).reshape(1, 4)
    return np.concatenate([y, pairs]).astype(np.uint8), rgb.round().clip(0, 255).astype(np.uint8)


def sixteen(pixels: np.ndarray) -> np.ndarray:
    """16-bit values of 8-bit ones, with two different bytes each: a wrong byte order shows."""
    return np.minimum(pixels.astype(np.uint32) * 257 + 60, 65535).astype(np.uint16)


def bayer(pattern: str) -> tuple[np.ndarray, np.ndarray]:
    """The mosaic of a colour ramp, 7x5 pixels: straight lines are what interpolation gives back."""
    rows, columns = np.mgrid[:5, :7]
    ramp = np.stack([20 + 8 * columns + 4 * rows, 200 - 4 * columns - 6 * rows, 100 + 10 * columns - 4 * rows], 2)
    colour = np.array(['rgb'.index(letter) for letter in pattern]).reshape(2, 2)[rows % 2, columns % 2]
    mosaic = np.take_along_axis(ramp, colour[..., None], 2)[..., 0].astype(np.uint8)
    return mosaic, np.pad(ramp[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0)), 'edge').astype(np.uint8)   # borders are repeated


VECTORS = {   # encoding: (pixels as they lie in the message, the RGB they mean)
    'rgb8': (RGB, RGB),
    'bgr8': (RGB[..., ::-1], RGB),
    'rgba8': (np.concatenate([RGB, ALPHA], 2), RGB),
    'bgra8': (np.concatenate([RGB[..., ::-1], ALPHA], 2), RGB),
    'mono8': (GREY, np.repeat(GREY[..., None], 3, 2)),
    'mono16': (sixteen(GREY), np.repeat(GREY[..., None], 3, 2)),
    '8UC1': (GREY, np.repeat(GREY[..., None], 3, 2)),
    '8UC3': (RGB[..., ::-1], RGB),
    '8UC4': (np.concatenate([RGB[..., ::-1], ALPHA], 2), RGB),
    'rgb16': (sixteen(RGB), RGB),
    'bgr16': (sixteen(RGB[..., ::-1]), RGB),
    'rgba16': (sixteen(np.concatenate([RGB, ALPHA], 2)), RGB),
    'bgra16': (sixteen(np.concatenate([RGB[..., ::-1], ALPHA], 2)), RGB),
    'nv12': semi_planar('UV'),
    'nv21': semi_planar('VU'),
    'yuv422': yuv422('UYVY'),
    'uyvy': yuv422('UYVY'),
    'yuv422_yuy2': yuv422('YUYV'),
    'yuyv': yuv422('YUYV'),
    **{f'bayer_{pattern}8': bayer(pattern) for pattern in ('rggb', 'bggr', 'gbrg', 'grbg')},
    **{f'bayer_{pattern}16': (sixteen(mosaic), rgb)
       for pattern in ('rggb', 'bggr', 'gbrg', 'grbg') for mosaic, rgb in [bayer(pattern)]},
}
CASES = [(encoding, padding, big_endian)
         for encoding in VECTORS for padding in (0, 1, 5, 16, 24) for big_endian in (False, True)]


def message(encoding: str, padding: int = 0, big_endian: bool = False) -> Image:
    """A message made byte by byte, apart from the code under test; padding bytes are 0xEE."""
    pixels, rgb = VECTORS[encoding]
    if pixels.dtype == np.uint16:
        pixels = pixels.astype('>u2' if big_endian else '<u2')
    rows = [np.ascontiguousarray(row).tobytes() + b'\xee' * padding for row in pixels]
    return Image(height=len(rgb), width=len(rgb[0]), encoding=encoding, step=len(rows[0]),
                 is_bigendian=int(big_endian), data=array('B', b''.join(rows)))


def tolerance(encoding: str) -> int:
    """OpenCV rounds the YUV constants."""
    return 1 if 'yuv' in encoding or 'yv' in encoding or 'nv' in encoding else 0


def test_every_encoding_has_a_vector():
    assert set(VECTORS) == set(ENCODINGS)


@pytest.mark.parametrize(('encoding', 'padding', 'big_endian'), CASES)
def test_reads_as_rgb(encoding, padding, big_endian):
    got = to_rgb(message(encoding, padding, big_endian))
    assert got.dtype == np.uint8 and got.flags['C_CONTIGUOUS']
    np.testing.assert_allclose(got.astype(int), VECTORS[encoding][1], rtol=0, atol=tolerance(encoding))


def test_cv_bridge_reads_the_same():
    """All vectors but those that the Python half of cv_bridge cannot read."""
    bridge = pytest.importorskip('cv_bridge').CvBridge()
    for encoding, padding, big_endian in CASES:
        unknown = encoding in ('uyvy', 'yuyv', 'nv12', '8UC1', '8UC3', '8UC4')   # the last three: no colours
        skewed = padding % VECTORS[encoding][0][0, 0].nbytes != 0   # it counts padding in pixels
        fails = big_endian and not hasattr(np.ndarray, 'newbyteorder')   # NumPy 2
        if not (unknown or skewed or fails):
            image = message(encoding, padding, big_endian)
            np.testing.assert_array_equal(bridge.imgmsg_to_cv2(image, 'rgb8'), to_rgb(image),
                                          f'{encoding}, padding {padding}, big endian {big_endian}')


@pytest.mark.parametrize('encoding', VECTORS)
def test_round_trip(encoding):
    pixels, _ = VECTORS[encoding]
    header = Header(frame_id='camera')
    image = array_to_image(pixels, encoding, header)
    assert image.header == header and image.is_bigendian == (pixels.itemsize == 2 and sys.byteorder == 'big')
    np.testing.assert_array_equal(image_to_array(image), pixels)
    assert isinstance(image.data, array) and len(image.data) == len(pixels) * image.step


@pytest.mark.parametrize('encoding', ['yuv422', 'yuyv'])
def test_an_odd_width_of_yuv422_ends_within_a_pair(encoding):
    image = message(encoding)
    image.width -= 1
    expected = to_rgb(message(encoding))[:, :-1]
    got = to_rgb(image)
    assert got.flags['C_CONTIGUOUS'] and got.shape == (2, 3, 3)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(('encoding', 'size'), [('nv12', (2, 3)), ('nv21', (1, 4)), ('nv12', (3, 4))])
def test_an_odd_size_of_colour_that_is_halved_is_refused(encoding, size):
    image = message(encoding)
    image.height, image.width = size
    with pytest.raises(ImageError, match=r'even|at least'):
        to_rgb(image)


def test_the_rows_of_colour_must_be_there():
    image = message('nv12')
    image.data = array('B', image.data.tobytes()[:-1])
    with pytest.raises(ImageError, match='11 bytes is too short: 3 rows of step 4 need 12 bytes'):
        to_rgb(image)


def test_mono16_is_scaled_not_cut():
    image = array_to_image(np.array([[0, 256, 65535, 40000]], np.uint16), 'mono16')
    assert to_rgb(image)[0, :, 0].tolist() == [0, 1, 255, 156]


def test_data_longer_than_needed_is_read():
    image = message('rgb8')
    image.data = array('B', image.data.tobytes() + b'tail')
    np.testing.assert_array_equal(to_rgb(image), RGB)


def test_rgb8_without_padding_is_not_copied():
    image = message('rgb8')
    assert np.shares_memory(to_rgb(image), np.frombuffer(image.data, np.uint8))


@pytest.mark.parametrize(('changes', 'kind', 'words'), [
    ({'encoding': '32FC1'}, 'encoding', ['32FC1', 'bgr8', 'mono16', 'bayer_grbg16']),
    ({'encoding': 'bayer_rggb8'}, 'size', ['3x2', 'at least 3x3', 'bayer_rggb8']),
    ({'encoding': 'yuv422', 'step': 6}, 'step', ['6 bytes', '8 bytes', '3 pixels']),
    ({'encoding': ''}, 'encoding', ["''"]),
    ({'encoding': 'rgb8\n\x1b[2J'}, 'encoding', [r'rgb8\n\x1b[2J']),     # nothing that a terminal obeys
    ({'step': 8}, 'step', ['8 bytes', '9 bytes', '3 pixels']),
    ({'step': 0}, 'step', ['0 bytes']),
    ({'data': array('B', bytes(17))}, 'data', ['17 bytes', '18 bytes']),
    ({'data': array('B')}, 'data', ['0 bytes']),
    ({'height': 4_000_000_000}, 'data', ['36000000000 bytes']),
    ({'height': 0}, 'size', ['3x0']),
    ({'width': 0}, 'size', ['0x2']),
])
def test_refuses_with_one_line(changes, kind, words):
    image = message('rgb8')
    for field, value in changes.items():
        setattr(image, field, value)
    with pytest.raises(ImageError) as error:
        to_rgb(image)
    assert error.value.kind == kind and str(error.value).isprintable()
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(('pixels', 'encoding'), [
    (RGB, 'mono8'), (RGB, 'bgra8'), (GREY, 'rgb8'), (GREY, 'mono16'), (RGB.astype(np.float32), 'rgb8'),
    (RGB[0, 0], 'rgb8'), (RGB, '32FC3'), (RGB[..., :2], 'yuv422'),
    (np.zeros((4, 4), np.uint8), 'nv12'), (np.zeros((3, 3), np.uint8), 'nv21'),
])
def test_does_not_write_what_does_not_fit(pixels, encoding):
    with pytest.raises(ValueError, match=encoding):
        array_to_image(pixels, encoding)
