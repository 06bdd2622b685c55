"""CompressedImage messages become the same RGB as the image that was compressed; damaged ones are refused."""

import os
import re
import struct
import zlib
from array import array

import cv2
import numpy as np
import pytest

pytest.importorskip('sensor_msgs.msg')
from sensor_msgs.msg import CompressedImage

from tar_vis_core.media.pictures import codec_messages
from tar_vis_ros.conversions.images import ImageError, array_to_image, to_rgb

rows, columns = np.mgrid[:48, :65]
SMOOTH = np.stack([40 + 2 * columns, 200 - 3 * rows, 90 + columns + rows], 2).astype(np.uint8)   # RGB; JPEG keeps it
GREY = SMOOTH[..., 0]
REPEATED = np.repeat(GREY[..., None], 3, 2)
BGR, ALPHA = SMOOTH[..., ::-1], np.full((48, 65, 1), 9, np.uint8)


def compressed(pixels: np.ndarray, extension: str, text: str) -> CompressedImage:
    """``pixels`` as OpenCV stores them: BGR, BGRA or grey."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, 98] if extension == '.jpg' else []
    return CompressedImage(format=text, data=array('B', cv2.imencode(extension, pixels, parameters)[1].tobytes()))


def assert_rgb(message: CompressedImage, expected: np.ndarray, tolerance: int) -> None:
    got = to_rgb(message)
    assert got.dtype == np.uint8 and got.flags['C_CONTIGUOUS']
    np.testing.assert_allclose(got.astype(int), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(('pixels', 'text', 'expected'), [
    (BGR, 'bgr8; jpeg compressed bgr8', SMOOTH),
    (BGR, 'rgb8; jpeg compressed bgr8', SMOOTH),
    (BGR, 'yuv422; jpeg compressed bgr8', SMOOTH),
    (BGR, 'jpeg', SMOOTH),
    (BGR, 'jpg', SMOOTH),
    (BGR, '', SMOOTH),
    (BGR, 'png', SMOOTH),                                  # what is in the message counts
    (SMOOTH, 'rgb8; jpeg compressed rgb8', SMOOTH),        # stored with red and blue exchanged
    (GREY, 'mono8; jpeg compressed mono8', REPEATED),
    (GREY, 'mono16; jpeg compressed mono8', REPEATED),
    (GREY, 'bayer_rggb8; jpeg compressed mono8', REPEATED),    # image_transport compresses a grey picture of it
])
def test_jpeg(pixels, text, expected):
    assert_rgb(compressed(pixels, '.jpg', text), expected, 6)


@pytest.mark.parametrize(('pixels', 'text', 'expected'), [
    (BGR, 'bgr8; png compressed bgr8', SMOOTH),
    (BGR, 'png', SMOOTH),
    (np.concatenate([BGR, ALPHA], 2), 'png', SMOOTH),
    (np.concatenate([SMOOTH, ALPHA], 2), 'rgba8; png compressed rgb8', SMOOTH),
    (BGR.astype(np.uint16) * 257, 'bgr16; png compressed bgr16', SMOOTH),
    (GREY, 'mono8; png compressed ', REPEATED),
    (GREY.astype(np.uint16) * 257, 'mono16; png compressed ', REPEATED),
    (GREY.astype(np.uint16) * 257, 'png', REPEATED),
])
def test_png_is_exact(pixels, text, expected):
    assert_rgb(compressed(pixels, '.png', text), expected, 0)


@pytest.mark.parametrize('encoding', ['bayer_rggb8', 'bayer_bggr8', 'bayer_gbrg16', 'bayer_grbg16'])
def test_png_of_a_bayer_mosaic_is_interpolated(encoding):
    mosaic = GREY if encoding.endswith('8') else GREY.astype(np.uint16) * 257
    raw = to_rgb(array_to_image(mosaic, encoding))
    assert_rgb(compressed(mosaic, '.png', f'{encoding}; png compressed '), raw, 0)


def test_orientation_tags_are_ignored():
    """EXIF says 'turn by 90 degrees'; the camera's calibration is of the pixels as they are."""
    message = compressed(BGR, '.jpg', 'jpeg')
    turned = struct.pack('>HHHIHHI', 1, 0x0112, 3, 1, 6, 0, 0)   # one tag: orientation, short, 1 value, 6
    exif = b'Exif\0\0' + b'MM\0*' + struct.pack('>I', 8) + turned
    segment = b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif
    data = message.data.tobytes()
    message.data = array('B', data[:2] + segment + data[2:])
    assert cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR).shape == (65, 48, 3), 'no such tag'
    assert_rgb(message, SMOOTH, 6)


def test_zeros_behind_a_jpeg_are_no_damage():
    message = compressed(BGR, '.jpg', 'jpeg')
    message.data = array('B', message.data.tobytes() + bytes(100))
    assert_rgb(message, SMOOTH, 6)


def cut(data: bytes) -> bytes:
    return data[:len(data) // 2]


def without_end(data: bytes) -> bytes:
    return data[:-2]


def thumbnail_then_cut(data: bytes) -> bytes:
    """The end marker of a picture within the picture is not its own."""
    segment = b'\xff\xe1' + struct.pack('>H', len(data) + 2) + data
    return data[:2] + segment + cut(data[2:])


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xff]) + data[middle + 1:]


def end_lost(data: bytes) -> bytes:
    """Half of it, closed by whoever sends it on."""
    return cut(data) + data[-2:]


def hole(data: bytes) -> bytes:
    """Packets lost in the middle."""
    third = len(data) // 3
    return data[:2 * third] + data[2 * third + 100:]


def with_restarts(damage):
    def damaged(data: bytes) -> bytes:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return damage(cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes())
    return damaged


def progressive(damage):
    def damaged(data: bytes) -> bytes:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return damage(cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes())
    return damaged


def shorter_stream(data: bytes) -> bytes:
    """A PNG whose chunks are in order, and whose rows are not all there."""
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
    place = data.index(b'IDAT')
    length = struct.unpack('>I', data[place - 4:place])[0]
    rows = zlib.decompress(data[place + 4:place + 4 + length])
    return data[:place - 4] + chunk(b'IDAT', zlib.compress(rows[:len(rows) // 2])) + chunk(b'IEND', b'')


def half_as_high(data: bytes) -> bytes:
    """A bit of the header flipped: the decoder ends in the middle of the pixels."""
    frame = data.index(b'\xff\xc0')
    return data[:frame + 5] + struct.pack('>H', 24) + data[frame + 7:]


def zeros(data: bytes) -> bytes:
    """A block of a disk that was never written: it decodes to more of the picture than was coded there."""
    return data[:-700] + bytes(200) + data[-500:]


@pytest.mark.parametrize(('extension', 'damage'), [
    ('.jpg', half_as_high), ('.jpg', zeros),
    ('.jpg', end_lost), ('.jpg', hole), ('.jpg', with_restarts(end_lost)), ('.jpg', with_restarts(hole)),
    ('.jpg', with_restarts(zeros)),
    ('.jpg', progressive(end_lost)), ('.png', shorter_stream), ('.png', hole), ('.png', end_lost),
    ('.jpg', cut), ('.jpg', without_end), ('.jpg', thumbnail_then_cut), ('.jpg', lambda data: data[:30]),
    ('.png', cut), ('.png', flipped), ('.bmp', bytes), ('.tiff', bytes),
    ('.jpg', lambda data: b''), ('.jpg', lambda data: bytes(500)), ('.png', lambda data: data[:8]),
])
def test_what_is_no_whole_jpeg_or_png_is_refused_with_one_line(extension, damage, capfd):
    message = compressed(BGR, extension, 'bgr8; jpeg compressed bgr8')
    message.data = array('B', damage(message.data.tobytes()))
    with pytest.raises(ImageError) as error:
        to_rgb(message)
    assert error.value.kind == 'data' and '\n' not in str(error.value)
    for word in (f'{len(message.data)} bytes', "'bgr8; jpeg compressed bgr8'", 'JPEG or PNG'):
        assert word in str(error.value)
    assert capfd.readouterr().err == '', 'the codec is quiet'


def test_bytes_that_some_cameras_leave_before_the_end_are_no_damage(capfd):
    message = compressed(BGR, '.jpg', 'jpeg')
    data = message.data.tobytes()
    message.data = array('B', data[:-2] + b'\x17\x18' + data[-2:])
    assert_rgb(message, SMOOTH, 6)
    assert capfd.readouterr().err == ''


RESTARTED = re.compile(rb'\xff[\xd0-\xd7]')
SAMPLING = {'444': cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, '420': cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
            '422': cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422}


def camera_jpeg(pixels: np.ndarray, sampling: str, interval: int) -> bytes:
    """What a common webcam sends: bytes that nobody needs before each restart marker."""
    data = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_RST_INTERVAL, interval, cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
                                         SAMPLING[sampling]])[1].tobytes()
    return RESTARTED.sub(lambda found: b'\x11\x12\x13' + found[0], data)


@pytest.mark.parametrize('interval', [1, 3, 5])
@pytest.mark.parametrize('sampling', SAMPLING)
@pytest.mark.parametrize('grey', [False, True])
def test_bytes_that_some_cameras_leave_before_every_restart_are_no_damage(grey, sampling, interval, capfd):
    pixels = cv2.resize(SMOOTH[..., 0] if grey else SMOOTH[..., ::-1], (251, 133))
    data = camera_jpeg(pixels, sampling, interval)
    plain = RESTARTED.sub(lambda found: found[0], data.replace(b'\x11\x12\x13\xff', b'\xff'))
    first, second = (to_rgb(CompressedImage(format='jpeg', data=array('B', part))) for part in (data, plain))
    np.testing.assert_array_equal(first, second)
    assert capfd.readouterr().err == ''
    places = [found.start() for found in RESTARTED.finditer(data)]
    assert len(places) > 10
    lost = [data[:places[4]] + data[places[5]:], data[:places[-1]] + data[-2:], data[:places[5]] + data[-2:]]
    lost += [data[:places[1]] + data[places[9]:]]       # eight: the markers are in order, but not all there
    for part in lost:
        with pytest.raises(ImageError, match='a part of it is missing'):
            to_rgb(CompressedImage(format='jpeg', data=array('B', part)))


def test_what_others_say_meanwhile_is_not_lost(capfd):
    """The codec's lines are caught where the whole process writes its own."""
    with codec_messages() as said:
        os.write(2, b'Corrupt JPEG data: premature end of data segment\n[ERROR] of somebody else\n')
    assert said == ['Corrupt JPEG data: premature end of data segment']
    assert capfd.readouterr().err == '[ERROR] of somebody else\n'


def test_a_picture_too_large_to_be_one_is_refused():
    """A header of 65000x65000 pixels before a few bytes."""
    data = bytearray(compressed(BGR, '.jpg', 'jpeg').data.tobytes())
    frame = data.index(b'\xff\xc0')
    data[frame + 5:frame + 9] = struct.pack('>HH', 65000, 65000)
    with pytest.raises(ImageError, match='JPEG or PNG'):
        to_rgb(CompressedImage(format='jpeg', data=array('B', bytes(data))))
