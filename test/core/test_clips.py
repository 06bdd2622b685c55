"""Clips of labelled videos: consecutive frames, one view for all of them, instances at one index throughout."""

import json

import cv2
import numpy as np
import pytest
from coco_files import write_coco
from tubes import rle, square

from tar_vis_core.data.category_maps import FROM_COCO
from tar_vis_core.data.clips import VideoClips, to_and_fro
from tar_vis_core.data.coco import CocoDataset, load_coco
from tar_vis_core.data.folders import find_pictures
from tar_vis_core.data.inspection import open_set
from tar_vis_core.data.pseudo_video import PseudoVideoDataset
from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.errors import DataError
from tar_vis_core.models.class_sets import CLASS_SETS, COCO

HEIGHT, WIDTH = 40, 60
LABELS = {'person': 0, 'giant panda': 1, 'vehicle': 2}
# at each frame the column of a square in the colour (40 x frame, 200, 200); None where it is not seen
TRACKS = {'person': [5, 10, 15, 20, 25, 30], 'giant_panda': [None, None, 40, 40, None, None],
          'Vehical': [None] * 5 + [2]}
ROWS = {'person': 4, 'giant_panda': 24, 'Vehical': 14}


def write(folder, frames=6, crowd=False, **video):
    names = [f'a/{t}.png' for t in range(frames)]
    (folder / 'JPEGImages' / 'a').mkdir(parents=True, exist_ok=True)
    annotations = []
    for number, (category, places) in enumerate(TRACKS.items(), 1):
        masks = [None if x is None else square(x, ROWS[category], 10, (HEIGHT, WIDTH)) for x in places[:frames]]
        annotations.append({'id': number, 'video_id': 1, 'category_id': number, 'iscrowd': int(crowd and number == 2),
                            'segmentations': [None if m is None else text(m) for m in masks]})
    for t in range(frames):
        image = np.full((HEIGHT, WIDTH, 3), (0, 0, 0), np.uint8)
        for category, places in TRACKS.items():
            if places[t] is not None:
                image[square(places[t], ROWS[category], 10, (HEIGHT, WIDTH))] = (40 * t, 200, 200)
        cv2.imwrite(str(folder / 'JPEGImages' / names[t]), image[..., ::-1])
    path = folder / 'instances.json'
    path.write_text(json.dumps({
        'videos': [{'id': 1, 'file_names': names, 'height': HEIGHT, 'width': WIDTH, 'length': frames, **video}],
        'annotations': annotations,
        'categories': [{'id': i, 'name': name} for i, name in enumerate(TRACKS, 1)]}))
    return path


def text(mask):
    encoded = rle(mask)
    return {'size': encoded['size'], 'counts': encoded['counts'].decode()}


def clips(folder, frames=3, labels=LABELS, **options):
    return VideoClips([folder / 'instances.json'], labels, frames,
                      **{'short_sides': [HEIGHT], 'mirror': 0.0, 'max_side': 1000, **options})


def frame_number(sample):
    """Which frame of the video a sample shows, told by the red of its objects."""
    seen = sample.masks.any(0).numpy()
    return round(float(np.median(sample.image[0].numpy()[seen])) / 40)


def drawn(dataset, epochs=30):
    for epoch in range(epochs):
        dataset.epoch = epoch
        yield dataset[0]


def test_a_clip_is_consecutive_frames_from_anywhere(tmp_path):
    write(tmp_path)
    starts = set()
    for clip in drawn(clips(tmp_path)):
        numbers = [frame_number(sample) for sample in clip]
        assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
        starts.add(numbers[0])
    assert starts == {0, 1, 2, 3}


def test_instances_keep_their_index_and_those_never_seen_are_left_out(tmp_path):
    write(tmp_path)
    met = set()
    for clip in drawn(clips(tmp_path)):
        first = frame_number(clip[0])
        expected = [label for label, (_, places) in enumerate(TRACKS.items())
                    if any(x is not None for x in places[first:first + 3])]
        for t, sample in enumerate(clip):
            assert sample.labels.tolist() == expected
            for label, mask, valid in zip(expected, sample.masks, sample.valid, strict=True):
                category = list(TRACKS)[label]
                x = TRACKS[category][first + t]
                truth = np.zeros((HEIGHT, WIDTH), bool) if x is None else square(x, ROWS[category], 10, (HEIGHT, WIDTH))
                assert (mask.numpy() == truth).all() and bool(valid) == (x is not None)
        met.add(tuple(expected))
    assert met == {(0, 1), (0, 1, 2)}


def test_every_frame_of_a_clip_has_the_same_view_and_masks_follow_the_picture(tmp_path):
    write(tmp_path)
    sizes, mirrored = set(), set()
    dataset = clips(tmp_path, short_sides=[40, 80], mirror=0.5, crop=[20, 30])
    for clip in drawn(dataset, 60):
        sizes |= {tuple(sample.image.shape[1:]) for sample in clip}
        assert len({sample.image.shape for sample in clip}) == 1
        for sample in clip:
            bright = sample.image[1].numpy() > 100
            masks = sample.masks.any(0).numpy()
            assert (bright ^ masks).sum() <= 0.15 * (bright | masks).sum() + 3     # some views show no object
        person = [sample.masks[list(sample.labels).index(0)].numpy() for sample in clip if 0 in sample.labels]
        columns = [np.flatnonzero(mask.any(0)).mean() for mask in person if mask.any()]
        if len(columns) > 1 and columns[0] != columns[-1]:
            mirrored.add(columns[0] > columns[-1])
    assert {(40, 60), (80, 120)} <= sizes and len(sizes) > 10 and mirrored == {True, False}


def test_the_long_side_has_a_limit(tmp_path):
    write(tmp_path)
    assert clips(tmp_path, short_sides=[80], max_side=90)[0][0].image.shape == (3, 60, 90)


def test_a_video_shorter_than_the_clip_is_played_to_and_fro(tmp_path):
    write(tmp_path, frames=3)
    assert [frame_number(sample) for sample in clips(tmp_path, frames=6)[0]] == [0, 1, 2, 1, 0, 1]
    assert [to_and_fro(i, 1) for i in range(4)] == [0, 0, 0, 0]


def test_the_same_epoch_gives_the_same_clip(tmp_path):
    write(tmp_path)
    one, other = clips(tmp_path, mirror=0.5, short_sides=[40, 48]), clips(tmp_path, mirror=0.5, short_sides=[40, 48])
    for a, b in zip(drawn(one, 5), drawn(other, 5), strict=True):
        assert all((x.image == y.image).all() and (x.masks == y.masks).all() for x, y in zip(a, b, strict=True))


def test_crowds_and_videos_with_unlabelled_objects_leave_regions_open(tmp_path):
    write(tmp_path, crowd=True)
    for clip in drawn(clips(tmp_path, frames=6), 1):
        assert clip[2].labels.tolist() == [0, 2] and (clip[2].ignore.numpy() == square(40, 24, 10, (40, 60))).all()
    write(tmp_path, exhaustive=0)
    sample = clips(tmp_path)[0][0]
    assert (sample.ignore == ~sample.masks.any(0)).all() and sample.exhaustive
    write(tmp_path, annotated='person')
    assert not clips(tmp_path)[0][0].exhaustive and not clips(tmp_path)[0][0].ignore.any()


def test_an_unknown_category_or_picture_is_named(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match="'Vehical'"):
        clips(tmp_path, labels={'person': 0, 'giant panda': 1})
    dataset = clips(tmp_path, frames=6)
    (tmp_path / 'JPEGImages' / 'a' / '4.png').write_bytes(b'')
    with pytest.raises(DataError, match=r'a/4\.png: not a readable image'):
        dataset[0]


@pytest.mark.parametrize(('annotations', 'pictures'), [
    ('instances.json', 'JPEGImages'), ('train.json', 'train/JPEGImages'), ('train.json', 'train'),
    ('annotations/annotations_train.json', 'train'), ('annotations/instances_train2017.json', 'train2017')])
def test_pictures_are_found_where_the_publishers_put_them(tmp_path, annotations, pictures):
    path = tmp_path / annotations
    path.parent.mkdir(exist_ok=True)
    (tmp_path / pictures / 'a').mkdir(parents=True)
    (tmp_path / pictures / 'a' / '0.jpg').touch()
    assert find_pictures(path, ['a/0.jpg'], 'JPEGImages') == [tmp_path / pictures / 'a' / '0.jpg']
    assert find_pictures(path, ['b/7.jpg'], 'JPEGImages') == [path.parent / 'JPEGImages' / 'b' / '7.jpg']


def test_videos_are_read_from_another_layout(tmp_path):
    write(tmp_path)
    (tmp_path / 'train').mkdir()
    (tmp_path / 'JPEGImages').rename(tmp_path / 'train' / 'JPEGImages')
    path = (tmp_path / 'instances.json').rename(tmp_path / 'train.json')
    assert load_ytvis(path)[0].frame(0).shape == (HEIGHT, WIDTH, 3)
    assert len(open_set(path).records) == 1


def test_the_tables_name_categories_and_classes_that_there_are():
    for name, table in FROM_COCO.items():
        assert table.keys() <= set(COCO) and set(table.values()) <= set(CLASS_SETS[name])
        assert table['person'] == 'person' and 'mouse' not in table


def test_the_tables_are_those_of_the_video_models():
    # COCO's id : the class's number
    published = {
        'youtube_vis_2019': '1:1 2:21 3:6 4:21 5:28 7:17 8:29 9:34 17:14 18:8 19:18 21:15 22:32 23:20 24:30 25:22 '
                            '35:33 36:33 41:5 42:27 43:40',
        'youtube_vis_2021': '1:26 2:23 3:5 4:23 5:1 7:36 8:37 9:4 16:3 17:6 18:9 19:19 21:7 22:12 23:2 24:40 25:18 '
                            '34:14 35:31 36:31 41:29 42:33 43:34',
        'ovis': '1:1 2:21 3:25 4:22 5:23 6:25 8:25 9:24 17:3 18:4 19:5 20:6 21:7 22:8 23:9 24:10 25:11'}
    ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    for name, pairs in published.items():
        numbers = [map(int, pair.split(':')) for pair in pairs.split()]
        table = {COCO[ids.index(coco)]: CLASS_SETS[name][number - 1] for coco, number in numbers}
        assert FROM_COCO[name] == table


def test_stills_of_coco_take_the_classes_of_videos(tmp_path):
    labels = {'cat': 13, 'person': 0}
    records = load_coco(write_coco(tmp_path), labels=labels)
    assert [[a.label for a in r.annotations] for r in records] == [[0, 13]] * 3
    assert [[a.category for a in r.annotations] for r in load_coco(tmp_path / 'instances.json', labels={'cat': 13})] \
        == [['cat']] * 3
    assert load_coco(tmp_path / 'instances.json', labels={'dog': 7}) == []
    stills = CocoDataset(tmp_path / 'instances.json', (64, 96), labels=labels)
    assert {int(label) for sample in PseudoVideoDataset(stills, 2)[0] for label in sample.labels} <= {0, 13}
