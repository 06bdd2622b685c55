"""Reading frames without ROS: order, loops, limits, sizes, the built-in photographs, and errors of one line."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tar_vis_core.media import photographs
from tar_vis_core.media.frames import open_frames, play, resize_to_width
from tar_vis_core.media.photographs import HandHeldCamera, PhotographReader, PhotographScene
from tar_vis_core.media.readers import FrameReader, SourceError, VideoFileReader


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (48, 64)) -> None:
    for value, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((*size, 3), 10 * (value + 1), np.uint8))


def write_video(path: Path, frames: int, fps: float = 12.5, size: tuple[int, int] = (96, 64)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, size)
    for index in range(frames):
        picture = np.zeros((size[1], size[0], 3), np.uint8)
        picture[..., 2] = 8 * index       # red rises
        writer.write(picture)
    writer.release()
    return path


def values(frames) -> list[int]:
    return [int(frame.image[0, 0, 0]) for frame in frames]


def test_folder_is_read_in_natural_order_and_other_files_are_left_alone(tmp_path):
    write_images(tmp_path, ['frame_2.png', 'frame_10.png', 'frame_1.png'])
    (tmp_path / 'notes.txt').write_text('not an image')
    with open_frames(str(tmp_path)) as reader:
        assert reader.count == 3
        assert values(play(reader)) == [30, 10, 20]


def test_loop_and_limit_and_positions(tmp_path):
    write_images(tmp_path, ['a.png', 'b.png', 'c.png'])
    with open_frames(str(tmp_path)) as reader:
        frames = list(play(reader, loop=True, limit=8))
        period = 1 / reader.fps
    assert values(frames) == [10, 20, 30, 10, 20, 30, 10, 20]
    assert [frame.index for frame in frames] == list(range(8))
    assert np.allclose([frame.position_s for frame in frames], np.arange(8) * period)
    assert np.allclose([frame.pass_position_s for frame in frames], (np.arange(8) % 3) * period)


def test_limit_beyond_the_end_gives_what_is_there(tmp_path):
    write_images(tmp_path, ['a.png', 'b.png'])
    with open_frames(str(tmp_path)) as reader:
        assert len(list(play(reader, limit=9))) == 2


@pytest.mark.parametrize('size', [(48, 64), (63, 127), (200, 90)])
@pytest.mark.parametrize('width', [32, 64, 250])
def test_resize_keeps_the_aspect(size, width):
    image = np.zeros((*size, 3), np.uint8)
    out = resize_to_width(image, width)
    assert out.shape[1] == width
    assert abs(out.shape[0] - width * size[0] / size[1]) <= 0.5
    assert resize_to_width(image, 0) is image


def test_video_gives_every_frame_in_rgb_and_again_after_a_rewind(tmp_path):
    path = write_video(tmp_path / 'clip.mp4', 20)
    with open_frames(str(path)) as reader:
        assert reader.count == 20
        assert reader.fps == pytest.approx(12.5)
        first = [frame.image for frame in play(reader)]
        reader.rewind()
        second = [frame.image for frame in play(reader)]
    assert len(first) == len(second) == 20
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    red = [float(image[..., 0].mean()) for image in first]
    assert np.allclose(red, 8 * np.arange(20), atol=6)
    assert max(float(image[..., 2].mean()) for image in first) < 10     # blue stays dark: the channels are not swapped


@pytest.mark.parametrize('make, expected', [
    (lambda folder: folder / 'absent.mp4', 'no such file or folder'),
    (lambda folder: folder, 'no images in'),
    (lambda folder: write_text(folder / 'notes.mp4'), 'cannot read a frame from'),
    (lambda folder: cut(write_video(folder / 'cut.mp4', 20)), 'cannot read a frame from'),
    (lambda folder: write_text(folder / 'broken.png'), 'not a readable image'),
    (lambda folder: '/dev/video987', 'there is no camera /dev/video987'),
    (lambda folder: '987', 'there is no camera /dev/video987'),
])
def test_bad_sources_are_one_line_and_the_codecs_are_quiet(tmp_path, capfd, make, expected):
    with pytest.raises(SourceError, match=expected) as caught, open_frames(str(make(tmp_path))) as reader:
        list(play(reader))
    assert '\n' not in str(caught.value)
    assert capfd.readouterr() == ('', '')


def write_text(path: Path) -> Path:
    path.write_text('neither video nor image')
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:400])
    return path


def test_a_missing_camera_names_those_that_exist():
    with pytest.raises(SourceError) as caught:
        open_frames('/dev/video987')
    here = sorted(Path('/dev').glob('video*'))
    assert all(str(path) in str(caught.value) for path in here)
    assert here or 'no /dev/video* exists' in str(caught.value)


def test_a_file_that_ends_early_gives_the_frames_before(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'whole.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48))
    for picture in np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8):
        writer.write(picture)
    writer.release()
    whole = (tmp_path / 'whole.avi').read_bytes()
    short = tmp_path / 'short.avi'
    short.write_bytes(whole[:len(whole) // 2])
    with VideoFileReader(short) as reader:
        assert 5 <= len(list(play(reader))) < 30


def test_photographs_are_the_same_every_time():
    def some():
        with PhotographReader() as reader:
            return [frame.image for frame in play(reader, limit=4)]
    first, again = some(), some()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in pairwise(first))


def test_photographs_move_rest_and_change():
    with PhotographReader() as reader:
        images = [frame.image[::3, ::3].astype(np.float32) for frame in play(reader)]
        assert len(images) == reader.count == round(photographs.SECONDS * photographs.FPS) * len(photographs.SCENES)
        assert 20 <= len(images) / reader.fps <= 28
    assert {image.shape for image in images} == {(160, 214, 3)}
    changes = np.array([np.mean((a - b) ** 2) for a, b in pairwise(images)])
    per = round(photographs.SECONDS * photographs.FPS)
    for start in range(0, len(images), per):
        rest = changes[start + 24:start + 38]
        motion = changes[start + 5:start + 18]
        assert rest.max() < 10 < motion.mean()      # only the sensor's noise and the light while resting
    assert changes[2 * per - 1] > 2000              # a cut


@pytest.mark.parametrize('seed', range(5))
def test_the_camera_never_looks_past_the_edge(seed):
    for size in ((512, 512), (300, 451), (400, 600), (500, 741)):
        camera = HandHeldCamera(PhotographScene('any', share=0.94, aim=(-0.9, 0.9)), seed)
        for t in np.arange(0, 8, 0.1):
            matrix = np.vstack([camera.matrix(t, size, (640, 480)), [0, 0, 1]])
            corners = np.linalg.inv(matrix) @ np.array([[0, 640, 0, 640], [0, 0, 480, 480], [1, 1, 1, 1]])
            assert corners[:2].min() >= -1e-6
            assert corners[0].max() <= size[1] + 1e-6
            assert corners[1].max() <= size[0] + 1e-6


def test_without_scikit_image_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(photographs.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SourceError, match='pip install scikit-image'):
        open_frames('photographs')


# what systems and drivers add

def test_hidden_companions_and_folders_named_like_pictures_are_no_pictures(tmp_path):
    write_images(tmp_path, ['1.png', '2.png'])
    for name in ('._1.png', '.2.png.swp', '.hidden.jpg'):
        (tmp_path / name).write_bytes(b'\0\5\x16\7')
    (tmp_path / 'folder.png').mkdir()
    os.mkfifo(tmp_path / 'pipe.png')
    with open_frames(str(tmp_path)) as reader:
        assert values(play(reader)) == [10, 20]


@pytest.mark.parametrize('name', ['camera', 'by-id/usb-Some_Camera-video-index0'])
def test_a_device_is_told_by_what_it_is(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to('/dev/zero')
    with pytest.raises(SourceError, match='gives no picture: in use elsewhere, or not a capture device'):
        open_frames(str(tmp_path / name))


@pytest.mark.parametrize(('make', 'words'), [
    (os.mkfifo, 'is a pipe'), (lambda p: p.symlink_to('gone'), 'no such file')])
def test_what_is_no_source_is_said_and_nothing_waits(tmp_path, make, words):
    make(tmp_path / 'a.mp4')
    with pytest.raises(SourceError, match=words):
        open_frames(str(tmp_path / 'a.mp4'))


def test_photographs_are_read_upright(tmp_path):
    write_images(tmp_path, ['1.jpg'], (48, 64))
    picture = Image.open(tmp_path / '1.jpg')
    picture.load()
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / '1.jpg', exif=exif)
    with open_frames(str(tmp_path)) as reader:
        assert next(play(reader)).image.shape == (64, 48, 3)


class TimedReader(FrameReader):
    """Frames at given times; None where the source does not say."""

    name, fps = 'timed', 10.0

    def __init__(self, times):
        self.times = times
        self.rewind()

    def rewind(self):
        self.left = iter(self.times)

    def read(self):
        self.time_s = next(self.left, 'end')
        return None if self.time_s == 'end' else np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(('times', 'expected'), [
    ([0, .1, .2, 1.2, 1.3], [0, .1, .2, 1.2, 1.3]), ([5, 5.5, 7], [0, .5, 2]), ([0, 0, 0, 0], [0, .1, .2, .3]),
    ([None] * 3, [0, .1, .2]), ([0, math.nan, .5], [0, .1, .5]), ([-1, -.5, 0], [0, .5, 1]),
    ([0, .3, .2, .6], [0, .3, .4, .6])])
def test_positions_are_the_sources_own_times_or_by_its_rate(times, expected):
    frames = list(play(TimedReader(times), loop=True, limit=2 * len(times)))
    assert np.allclose([f.pass_position_s for f in frames], expected * 2)
    positions = [f.position_s for f in frames]
    assert np.allclose(positions[:len(times)], expected)
    assert np.allclose(positions[len(times):], np.array(expected) + expected[-1] + .1)     # a pass ends a period later


def test_a_video_that_declares_gigapixels_is_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / 'clip.mp4', 3)
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '5000')
    with pytest.raises(SourceError, match='declares 96x64 pixels, at most 5000 are read'):
        open_frames(str(path))


def damaged_videos(folder: Path) -> list[Path]:
    """An AVI file that breaks off, as on a full disk, and an MP4 file whose pictures are zeros from the middle on."""
    writer = cv2.VideoWriter(str(folder / 'whole.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (96, 64))
    for index in range(30):
        writer.write(np.random.default_rng(index).integers(0, 255, (64, 96, 3), np.uint8))
    writer.release()
    whole = (folder / 'whole.avi').read_bytes()
    (folder / 'cut.avi').write_bytes(whole[:len(whole) // 2])
    data = bytearray(write_video(folder / 'zeros.mp4', 30).read_bytes())
    begin = data.find(b'mdat') + 4
    length = int.from_bytes(data[begin - 8:begin - 4], 'big') - 8
    data[begin + length // 2:begin + length] = bytes(length - length // 2)
    (folder / 'zeros.mp4').write_bytes(data)
    return [folder / 'cut.avi', folder / 'zeros.mp4']


def test_a_video_that_breaks_off_is_told_once_and_its_codec_is_not_heard(tmp_path, caplog, capfd):
    for path in damaged_videos(tmp_path):
        caplog.clear()
        with open_frames(str(path)) as reader:
            count = len(list(play(reader)))
            reader.rewind()
            assert len(list(play(reader))) == count and 0 < count < 25
        assert [record.getMessage() for record in caplog.records] == [
            f'{path}: {count} frames could be read, and it says that it has 30: it may be cut off or damaged']
    assert not capfd.readouterr().err
    caplog.clear()
    with open_frames(str(tmp_path / 'whole.avi')) as reader:
        assert len(list(play(reader))) == 30
    assert not caplog.records


@pytest.mark.parametrize(('content', 'word'), [
    (b'', 'an empty file'), (b'<!doctype html>', 'a web page'), (bytes(600), 'zero bytes only'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n', 'git lfs pull')])
def test_what_is_no_video_is_said_to_be_what_it_is(tmp_path, content, word):
    (tmp_path / 'street.mp4').write_bytes(content)
    with pytest.raises(SourceError, match=word):
        open_frames(str(tmp_path / 'street.mp4'))
