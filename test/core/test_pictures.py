"""Compressed pictures of strangers: what they declare is checked first, damage is one line, disks fill up."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from tar_vis_core.io.whole_files import WriteError
from tar_vis_core.media.pictures import (
    PictureError,
    check_declared_size,
    declared_size,
    decode_picture,
    lacks_scans,
    read_picture,
    write_picture,
)

ROOT = Path(__file__).parents[2]


def encoded(suffix: str, image: np.ndarray, *params: int) -> bytes:
    done, data = cv2.imencode(suffix, image, list(params))
    assert done
    return data.tobytes()


def png(width: int, height: int, depth: int = 8, kind: int = 2, data: bytes = b'0' * 100) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, kind, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


def jpeg_that_says(width: int, height: int, *params: int) -> bytes:
    data = bytearray(encoded('.jpg', np.full((120, 160, 3), 90, np.uint8), *params))
    place = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
    data[place + 5:place + 9] = struct.pack('>HH', height, width)
    return bytes(data)


# a header that declares 30000x30000, and too few bytes, in every format that OpenCV reads with a header of its own
GIGAPIXELS = {
    'baseline JPEG': jpeg_that_says(30000, 30000),
    'progressive JPEG': jpeg_that_says(65500, 30000, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    'PNG': png(30000, 30000), 'PNG of one bit': png(60000, 60000, 1, 0), 'PNG of 16 bits': png(20000, 20000, 16, 6),
    'PPM': b'P6 30000 30000 255\n' + b'0' * 1000, 'PGM': b'P5 30000 30000 255\n' + b'0' * 1000,
    'PFM': b'PF\n30000 30000\n-1.0\n' + b'0' * 1000,
    'BMP': b'BM' + struct.pack('<IHHIIiiHHIIiiII', 1000, 0, 0, 54, 40, 30000, 30000, 1, 24, *[0] * 6) + b'0' * 99,
    'HDR': b'#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n' + b'0' * 1000,
    'Sun raster': struct.pack('>8I', 0x59A66A95, 30000, 30000, 24, 0, 1, 0, 0) + b'0' * 100,
    'GIF': b'GIF89a' + struct.pack('<HH', 30000, 30000) + b'\0\0\0,' + struct.pack('<HHHH', 0, 0, 30000, 30000)
           + b'\0\2\2\x44\1\0;',
}


@pytest.mark.parametrize('channels', [3, 1])
def test_a_progressive_jpeg_that_ends_between_two_scans_is_damaged(channels):
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8), (5, 5), 0)
    data = encoded('.jpg', picture if channels == 3 else picture[..., 0], cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert decode_picture(data).shape == (96, 128, 3)
    scans = [place for place in range(len(data)) if data[place:place + 2] == b'\xff\xda']
    assert len(scans) > 3
    for scan in scans[1:]:
        with pytest.raises(PictureError, match='a part of it is missing: its last scans'):
            decode_picture(data[:scan] + b'\xff\xd9')


@pytest.mark.parametrize(('scans', 'lacks'), [
    ([(1, 2, 3)], False), ([(1,), (2,), (3,)], False), ([(1,), (2,)], True), ([(2, 3)], True), ([], True)])
def test_colours_may_come_one_after_another_but_must_all_come(scans, lacks):
    frame = bytes.fromhex('ffc00011080008000803 011100 021100 031100')
    parts = [b'\xff\xda' + struct.pack('>HB', 6 + 2 * len(scan), len(scan))
             + b''.join(bytes([one, 0]) for one in scan) + bytes([0, 63, 0]) + b'pixels\xff\x00pixels\xff\xd0'
             for scan in scans]
    assert lacks_scans(b'\xff\xd8' + frame + b''.join(parts) + b'\xff\xd9') == lacks


def test_codecs_leave_nothing_on_the_terminal(tmp_path, capfd):
    for suffix in ('.tif', '.ppm', '.jp2', '.png', '.jpg', '.webp', '.bmp'):
        data = encoded(suffix, np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
        with pytest.raises(PictureError):
            decode_picture(data[:len(data) // 2])
    assert not capfd.readouterr().err


@pytest.mark.parametrize('name', GIGAPIXELS)
def test_gigapixels_are_refused_before_they_are_decoded(name, tmp_path):
    path = tmp_path / 'picture'
    path.write_bytes(GIGAPIXELS[name])
    program = ('import resource, sys\nfrom tar_vis_core.media.pictures import PictureError, read_picture\n'
               'before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
               'try: read_picture(sys.argv[1])\n'
               'except PictureError as error: print(error)\n'
               'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)')
    done = subprocess.run([sys.executable, '-c', program, str(path)], cwd=ROOT, capture_output=True, text=True)
    said, grown = done.stdout.splitlines()
    assert 'declares' in said and str(path) in said, done
    assert int(grown) < 100_000     # KiB


@pytest.mark.parametrize('data', [jpeg_that_says(9000, 9000), png(9000, 9000), png(9000, 9000, 16, 4)])
def test_a_size_that_the_bytes_cannot_hold_is_refused(data):
    with pytest.raises(PictureError, match=r'declares 9000x9000 pixels, for which its \d+ bytes are too few'):
        decode_picture(data)


@pytest.mark.parametrize('shape', [(1, 1, 3), (480, 640, 3), (1080, 1920, 3), (2000, 3000, 3), (7, 900, 1)])
@pytest.mark.parametrize(('suffix', 'params'), [
    ('.jpg', ()), ('.jpg', (cv2.IMWRITE_JPEG_QUALITY, 1)), ('.png', ()), ('.png', (cv2.IMWRITE_PNG_COMPRESSION, 9)),
    ('.jpg', (cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1)),
    ('.jpg', (cv2.IMWRITE_JPEG_RST_INTERVAL, 3, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x411111))])
def test_the_flattest_pictures_are_not_taken_for_too_small(shape, suffix, params):
    data = encoded(suffix, np.zeros(shape, np.uint8), *params)
    width, height, least = declared_size(data)
    assert (height, width) == shape[:2]
    assert least <= len(data)
    check_declared_size(data)
    assert decode_picture(data).shape == (*shape[:2], 3)


def test_the_size_is_found_behind_other_segments():
    data = encoded('.jpg', np.zeros((30, 50, 3), np.uint8))
    for extra in (b'\xff\xe1\0\x08\xff\xc0\0\x11\x08\x7f', b'\xff\xff\xfe\0\x02', b'\xff\xe2\xff\xff' + bytes(65533)):
        assert declared_size(data[:2] + extra + data[2:])[:2] == (50, 30)


@pytest.mark.parametrize('data', [b'', b'\xff\xd8', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'\xff\xd8' + b'\xff' * 99,
                                  b'\xff\xd8\xff\xe0\0\0' * 9, b'<html>', b'\0' * 999, b'hello'])
def test_what_is_no_picture_is_one_line(data):
    with pytest.raises(PictureError) as caught:
        decode_picture(data)
    assert '\n' not in str(caught.value)


def test_damaged_pictures_are_pictures_or_one_error():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (40, 60, 3), np.uint8)
    began = time.monotonic()
    for suffix in ('.jpg', '.png', '.bmp', '.webp', '.tiff', '.ppm'):
        whole = encoded(suffix, picture)
        for _ in range(40):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), 200), rng.integers(1, 6)):
                data[place] = rng.integers(256)
            try:
                assert decode_picture(bytes(data[:rng.integers(1, len(data) + 1)])).ndim == 3
            except PictureError as error:
                assert '\n' not in str(error)
    assert time.monotonic() - began < 60


def test_the_limit_can_be_set(tmp_path):
    write_picture(tmp_path / 'a.png', np.zeros((100, 100, 3), np.uint8))
    program = 'import sys\nfrom tar_vis_core.media.pictures import read_picture\nread_picture(sys.argv[1])'
    done = subprocess.run([sys.executable, '-c', program, str(tmp_path / 'a.png')], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, 'OPENCV_IO_MAX_IMAGE_PIXELS': '9999'})
    assert done.stderr.strip().endswith('declares 100x100 pixels, at most 9999 are read (OPENCV_IO_MAX_IMAGE_PIXELS '
                                        'sets another limit)')


@pytest.mark.parametrize(('make', 'words'), [
    (lambda p: p.mkdir(), 'is a folder'), (lambda p: None, 'no such file'), (os.mkfifo, 'is a pipe'),
    (lambda p: p.write_text('<!DOCTYPE html><p>Sign in'), 'web page'), (lambda p: p.write_bytes(b''), 'empty'),
    (lambda p: p.write_text('version https://git-lfs.github.com/spec/v1\nsize 12345\n'), '12345.*git lfs pull')])
def test_what_is_no_picture_file_is_said(tmp_path, make, words):
    make(tmp_path / 'a.jpg')
    with pytest.raises(PictureError, match=rf'a\.jpg.*{words}'):
        read_picture(tmp_path / 'a.jpg')


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.PNG', '.webp'])
def test_a_picture_comes_back(tmp_path, suffix):
    rgb = np.zeros((60, 80, 3), np.uint8)
    rgb[:, 40:] = 250, 120, 10
    write_picture(tmp_path / f'a{suffix}', rgb)
    back = read_picture(tmp_path / f'a{suffix}')
    assert np.abs(back[:, 50:].astype(int) - rgb[:, 50:]).max() < 12


def test_a_full_disk_is_noticed(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limit[1]))
    try:
        with pytest.raises(WriteError, match=r'noise\.png'):
            write_picture(tmp_path / 'noise.png', np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['a.png', 'a.JPG', 'a.jpeg', 'a.webp', 'a.bmp'])
def test_a_picture_is_written_in_silence(tmp_path, capfd, name):
    write_picture(tmp_path / name, np.full((20, 30, 3), 90, np.uint8), quality=80)
    assert read_picture(tmp_path / name).shape == (20, 30, 3) and not capfd.readouterr().err


@pytest.mark.parametrize('claimed', [10**6, 2**30, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize('chunk', [b'IDAT', b'IEND', b'tEXt'])
def test_a_chunk_of_a_png_that_claims_more_than_there_is_takes_no_memory(claimed, chunk):
    data = encoded('.png', np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    if chunk == b'tEXt':
        data = data[:33] + struct.pack('>I4s', claimed, chunk) + data[33:]
    place = data.find(chunk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        decode_picture(data[:place - 4] + struct.pack('>I', claimed) + data[place:])
        assert chunk == b'IEND', 'the pixels are whole'
    except PictureError:
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_png_whose_pixels_have_no_name_takes_no_memory():
    data = encoded('.png', np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PictureError, match='IDAT'):
        decode_picture(data.replace(b'IDAT', b'IDA\x8e'))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
