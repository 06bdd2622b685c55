"""The pictures that annotation files name: found where tools put them, turned as they are labelled, or told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH, edit, write_coco
from label_files import load, refused, write_ytvis
from PIL import Image

from tar_vis_core.data.coco import load_coco
from tar_vis_core.data.inspection import describe, open_set
from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.errors import DataError
from tar_vis_core.media.pictures import write_picture


def moved(tmp_path: Path, annotations: str, pictures: str, rename=lambda name: name) -> Path:
    """A COCO file and its pictures at the given places, the names in the file changed."""
    path = write_coco(tmp_path / 'made')
    target = tmp_path / annotations
    target.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / pictures).mkdir(parents=True, exist_ok=True)
    for picture in (tmp_path / 'made').glob('*.png'):
        picture.rename(tmp_path / pictures / picture.name)
    path.rename(target)
    return edit(target, lambda c: [image.update(file_name=rename(image['file_name'])) for image in c['images']])


@pytest.mark.parametrize(('annotations', 'pictures', 'rename'), [
    ('set/annotations.json', 'set/images', str), ('set/labels.json', 'set/data', str), ('set/a.json', 'set/img', str),
    ('set/annotations/instances_default.json', 'set/images', str),
    ('set/annotations/instances_default.json', 'set/images/default', str),
    ('set/annotations/instances_val.json', 'set/val', str), ('set/train/_annotations.coco.json', 'set/train', str),
    ('set/result.json', 'set/images', lambda name: f'images\\{name}'),
    ('set/result.json', 'set/images', lambda name: f'C:\\Users\\me\\export\\images\\{name}'),
    ('set/result.json', 'set/images', lambda name: f'../../label-studio/data/media/upload/1/{name}'),
    ('set/result.json', 'set', lambda name: f'/home/somebody/data/{name}'),
    ('set/result.json', 'set/images', lambda name: f'https://host.example/data/{name}?X-Amz-Date=1'),
    ('set/result.json', 'set/images', lambda name: f'/data/local-files/?d=images/{name}'),
    ('set/result.json', 'set/images/a', lambda name: f'D:\\x\\a\\{name}')])
def test_pictures_are_found_where_tools_put_them(tmp_path, annotations, pictures, rename):
    path = moved(tmp_path, annotations, pictures, rename)
    assert [record.path.name for record in load_coco(path)] == ['1.png', '2.png', '3.png']
    assert len(open_set(path).records) == 3


def test_videos_with_backslashes_are_found_and_named(tmp_path):
    path = edit(write_ytvis(tmp_path), lambda c: [v.update(file_names=[n.replace('/', '\\') for n in v['file_names']])
                                                   for v in c['videos']])
    assert [record.name for record in load_ytvis(path)] == ['v1', 'v2']
    assert load_ytvis(path)[1].frame(1).shape == (HEIGHT, WIDTH, 3)


def test_names_that_fall_together_without_their_folders_are_not_guessed(tmp_path):
    path = moved(tmp_path, 'set/a.json', 'set', lambda name: name)
    edit(path, lambda c: [image.update(file_name=f'/far/{n}/1.png') for n, image in enumerate(c['images'])])
    refused(path, '3 of 3 pictures are missing', 'folders of another machine')


@pytest.mark.parametrize(('rename', 'words'), [
    (lambda name: f'there\\{name}', 'backslashes of Windows'),
    (lambda name: f'/srv/{name}', 'folders of another machine'), (lambda name: name, 'looked there')])
def test_the_hint_fits_what_is_missing(tmp_path, rename, words):
    path = moved(tmp_path, 'set/a.json', 'elsewhere', rename)
    assert 'archive' not in refused(path, '3 of 3 pictures are missing', words)


def test_a_name_in_letters_of_another_alphabet_is_found_under_an_ascii_locale(tmp_path):
    path = moved(tmp_path, 'set/a.json', 'set', str)
    (tmp_path / 'set' / '2.png').rename(tmp_path / 'set' / 'Straße 車.png')
    edit(path, lambda c: c['images'][1].update(file_name='Straße 車.png'))
    edit(path, lambda c: c['categories'][0].update(name='Fußgänger'))
    done = subprocess.run([sys.executable, '-m', 'tar_vis_core.commands.main', 'data', 'check', str(path)],
                          capture_output=True, cwd=Path(__file__).parents[2],
                          env={'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PATH': '/usr/bin:/bin'})
    assert done.returncode == 0 and b'Fu\\xdfg\\xe4nger' in done.stdout, done.stderr


def turn(path: Path, orientation: int) -> None:
    """Give a picture file an EXIF orientation, pixels as they are."""
    picture = Image.open(path)
    picture.load()
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)


@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
@pytest.mark.parametrize('write', [write_coco, write_ytvis])
def test_a_picture_labelled_upright_is_turned(tmp_path, orientation, write):
    path = write(tmp_path)
    picture = next(tmp_path.rglob('2.png' if write is write_coco else 'v2/0.jpg'))
    upright = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    upright[:20, :30] = 255, 0, 0
    stored = {5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 8: np.rot90(upright, -1),
              7: np.rot90(upright, 2).transpose(1, 0, 2)}[orientation]
    write_picture(picture, np.ascontiguousarray(stored))
    turn(picture, orientation)
    record = load(path)[1]
    image = record.image() if write is write_coco else record.frame(0)
    assert image.shape == upright.shape
    assert np.abs(image[5:15, 5:25].astype(int) - (255, 0, 0)).max() < 30
    notes = [note for note in open_set(path).notes if 'orientation' in note]
    assert len(notes) == 1 and notes[0].startswith('1 pictures') and 'is followed' in notes[0]


@pytest.mark.parametrize('orientation', [2, 3, 4])
def test_an_orientation_that_the_size_does_not_tell_is_left_and_told(tmp_path, orientation):
    path = write_coco(tmp_path)
    before = load_coco(path)[0].image()
    turn(tmp_path / '1.png', orientation)
    assert np.array_equal(load_coco(path)[0].image(), before)
    assert any('1 pictures have an EXIF orientation that is not followed' in line for line in describe(open_set(path)))


def test_the_check_compares_every_picture_with_the_file(tmp_path):
    path = write_coco(tmp_path)
    cv2.imwrite(str(tmp_path / '3.png'), np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    with pytest.raises(DataError, match=rf'3\.png: the image is {WIDTH + 1}x{HEIGHT}, its annotation file says'):
        open_set(path)
    (tmp_path / '3.png').write_bytes(b'<html>Not found</html>')
    with pytest.raises(DataError, match=r'3\.png: not a readable image, but a web page'):
        open_set(path)


@pytest.mark.parametrize('write', [write_coco, write_ytvis])
def test_a_picture_that_is_named_twice_is_told(tmp_path, caplog, write):
    def one_name(content):
        if write is write_coco:
            content['images'][1]['file_name'] = content['images'][0]['file_name']
        else:
            content['videos'][0]['file_names'][1] = content['videos'][0]['file_names'][0]
    open_set(edit(write(tmp_path), one_name))
    assert '1 pictures are named more than once, such as' in caplog.text
