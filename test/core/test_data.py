"""Training samples and clips: image, masks and identities never part, and the labels say what is not known."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from coco_files import COLOURS, HEIGHT, WIDTH, edit, ellipse, rle_of, write_coco
from pycocotools import mask as coco_mask

from tar_vis_core.data import transforms as tf
from tar_vis_core.data.coco import CocoDataset, load_coco
from tar_vis_core.data.pseudo_video import Mover, PseudoVideoDataset, align_clip, draw_path, render_clip
from tar_vis_core.data.rle import compressed_total, to_rle
from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.errors import DataError


def painted_scene(number: int = 2) -> tf.Scene:
    """A grey picture in which instance ``i`` is painted in ``COLOURS[i]``."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    masks = np.stack([ellipse(30, 40, 18, 25), ellipse(90, 55, 20, 14), ellipse(64, 20, 12, 9)])[:number]
    for mask, colour in zip(masks, COLOURS, strict=False):
        image[mask] = colour
    return tf.Scene(image, masks, np.zeros(number, np.int64), np.ones(number, bool),
                    np.zeros((HEIGHT, WIDTH), bool), np.ones((HEIGHT, WIDTH), bool), True)


def assert_painted(image: np.ndarray, masks: np.ndarray, colours: np.ndarray = COLOURS) -> None:
    """Each mask is where its colour is; only edge pixels, whose colour is mixed, may differ."""
    for mask, colour in zip(masks, colours, strict=False):
        near = np.abs(image.astype(int) - colour).max(-1) < 60
        disputed = cv2.erode((near != mask).astype(np.uint8), np.ones((3, 3), np.uint8))
        assert not disputed.any()


# geometry

def test_flipping_twice_gives_the_scene_back():
    scene, flip = painted_scene(), tf.flipping(WIDTH)
    once = tf.warp_scene(scene, flip, scene.size)
    assert np.array_equal(once.image, scene.image[:, ::-1])
    assert np.array_equal(once.masks, scene.masks[:, :, ::-1])
    twice = tf.warp_scene(once, flip, scene.size)
    assert np.array_equal(twice.image, scene.image) and np.array_equal(twice.masks, scene.masks)


@pytest.mark.parametrize('seed', range(30))
def test_image_and_masks_are_warped_together(seed):
    rng = np.random.default_rng(seed)
    scene = painted_scene(3)
    out = tf.warp_scene(scene, tf.random_view(rng, scene, (80, 120), fill=seed % 2 == 0), (80, 120))
    assert out.image.shape == (80, 120, 3) and out.masks.shape == (3, 80, 120)
    assert_painted(out.image, out.masks)
    padding = ~out.inside
    assert not out.masks[:, padding].any()
    if padding.any():
        core = cv2.erode(padding.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(bool)
        assert (out.image[core] == tf.PAD_VALUE).all()


def test_a_filling_view_shows_no_padding_unless_turned():
    scene = painted_scene()
    for seed in range(40):
        matrix = tf.random_view(np.random.default_rng(seed), scene, (60, 120), fill=True)
        if abs(matrix[0, 1]) < 1e-9:
            assert tf.warp_scene(scene, matrix, (60, 120)).inside.all()


def test_warping_masks_inside_their_box_equals_warping_them_whole():
    scene = painted_scene(3)
    for seed in range(10):
        path = draw_path(np.random.default_rng(seed), range(3), scene.size, 6.0, perspective=True)
        for mask in scene.masks:
            whole = cv2.warpPerspective(mask.view(np.uint8), path[-1], (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
            assert (tf.warp_mask(mask, path[-1], scene.size) != whole.astype(bool)).sum() <= 0.02 * mask.sum() + 4


# copy-paste

def test_a_pasted_instance_occludes_and_keeps_the_order():
    scene = painted_scene(2)
    donor = painted_scene(3).select(np.array([2]))
    donor.image[:] = COLOURS[2]
    donor = tf.warp_scene(donor, tf.translation(-34, 25), scene.size)
    out = tf.paste(scene, donor)
    assert len(out.masks) == 3
    assert not (out.masks[0] & out.masks[2]).any() and out.masks[0].sum() < scene.masks[0].sum()
    assert np.array_equal(out.masks[0] | out.masks[2], scene.masks[0] | donor.masks[0])
    assert_painted(out.image, out.masks)
    behind = tf.paste(scene, donor, behind=True)
    assert np.array_equal(behind.masks[:2], scene.masks)
    assert behind.masks[2].sum() < donor.masks[0].sum()
    assert_painted(behind.image, behind.masks)
    assert np.array_equal(scene.image, painted_scene(2).image), 'the scene that was pasted on changed'


def test_instances_with_few_visible_pixels_are_ignored_not_asked_for():
    scene = painted_scene(2)
    scene.masks[1] = False
    scene.masks[1, :3, :4] = True
    out = tf.drop_small(scene, 40, 10)
    assert len(out.masks) == 1 and len(out.labels) == 1
    assert out.ignore[:3, :4].all() and out.ignore.sum() == 12
    crowded = tf.drop_small(painted_scene(3), 40, 2)
    assert len(crowded.masks) == 2 and np.array_equal(crowded.ignore, painted_scene(3).masks[2])


# samples

def test_a_sample_is_deterministic_and_changes_with_epoch_and_seed(tmp_path):
    path = write_coco(tmp_path)
    first, second = CocoDataset(path, (64, 96), copy_paste=1.0), CocoDataset(path, (64, 96), copy_paste=1.0)
    other = CocoDataset(path, (64, 96), copy_paste=1.0, seed=1)
    second[0]                                                # order of access must not matter
    a, b = first[1], second[1]
    assert torch.equal(a.image, b.image) and torch.equal(a.masks, b.masks)
    assert not torch.equal(a.image, other[1].image)
    second.epoch = 1
    assert not torch.equal(a.image, second[1].image)


def test_a_sample_has_the_fixed_size_and_fitting_types(tmp_path):
    dataset = CocoDataset(write_coco(tmp_path), (64, 96), copy_paste=0.8, lookalikes=0.5)
    for epoch in range(15):
        dataset.epoch = epoch
        for index in range(len(dataset)):
            s = dataset[index]
            assert s.image.shape == (3, 64, 96) and s.image.dtype == torch.uint8
            assert s.masks.shape[1:] == (64, 96) and s.masks.dtype == torch.bool
            assert len(s.masks) == len(s.labels) == len(s.trusted) == len(s.valid)
            assert s.labels.dtype == torch.int64 and set(s.labels.tolist()) <= {0, 1}
            assert s.ignore.shape == (64, 96)
            if len(s.masks):
                assert s.masks.flatten(1).sum(1).min() >= 40
                assert not (s.masks.any(0) & s.ignore).any()


def as_sample(path) -> tf.Sample:
    """The first image of a COCO file as it is."""
    return tf.to_sample(load_coco(path)[0].scene())


def test_a_labelled_image_is_a_sample(tmp_path):
    s = as_sample(write_coco(tmp_path))
    assert s.labels.tolist() == [0, 1] and s.exhaustive
    assert_painted(s.image.permute(1, 2, 0).numpy(), s.masks.numpy())


def test_a_crowd_becomes_ignored(tmp_path):
    box = np.zeros((HEIGHT, WIDTH), bool)
    box[10:60, 20:50] = True
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate(([2], box.T.ravel().astype(int), [2]))))).tolist()
    crowd = {'id': 99, 'image_id': 1, 'category_id': 1, 'iscrowd': 1,
             'segmentation': {'size': [HEIGHT, WIDTH], 'counts': runs}}     # uncompressed, as COCO writes crowds
    s = as_sample(write_coco(tmp_path, extra=(crowd,)))
    assert s.labels.tolist() == [0, 1], 'a crowd is not an instance'
    expected = torch.from_numpy(box) & ~s.masks.any(0)
    assert torch.equal(s.ignore, expected)


def test_where_only_persons_are_labelled_the_sample_says_so(tmp_path):
    s = as_sample(write_coco(tmp_path, annotated='person', pseudo=True))
    assert not s.exhaustive and not s.trusted.any()
    assert as_sample(write_coco(tmp_path / 'b', annotated=None)).exhaustive


def test_machine_made_masks_are_never_pasted(tmp_path):
    dataset = CocoDataset(write_coco(tmp_path, pseudo=True), (64, 96), copy_paste=1.0)
    assert dataset.draw_donor(np.random.default_rng(0)) is None
    assert len(dataset[0].masks) <= 2


def test_epoch_and_size_may_change_between_samples(tmp_path):
    dataset = CocoDataset(write_coco(tmp_path), (64, 96))
    first = [sample.image for sample in map(dataset.__getitem__, range(len(dataset)))]
    dataset.epoch = 3
    assert not all(torch.equal(image, dataset[index].image) for index, image in enumerate(first))
    dataset.size = 48, 64
    assert {tuple(dataset[index].image.shape) for index in range(len(dataset))} == {(3, 48, 64)}


# clips

def test_clip_masks_follow_the_picture_and_keep_their_order():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scene = painted_scene(2)
        donor = painted_scene(3).select(np.array([2]))
        camera = draw_path(rng, range(4), scene.size, 5.0, perspective=seed % 2 == 0)
        mover = Mover(donor, tf.translation(0, 30), draw_path(rng, range(4), scene.size, 8.0), behind=seed % 3 == 0)
        clip = render_clip(scene, np.eye(3), camera, [mover], scene.size)
        assert len(clip) == 4 and all(len(frame.masks) == 3 for frame in clip)
        for frame in clip:
            assert_painted(frame.image, frame.masks)


def test_a_mover_moves_while_the_camera_rests():
    scene, donor = painted_scene(2), painted_scene(3).select(np.array([2]))
    path = [tf.translation(9 * index, 12) for index in range(3)]
    clip = render_clip(scene, np.eye(3), [np.eye(3)] * 3, [Mover(donor, np.eye(3), path)], scene.size)
    boxes = [tf.mask_box(frame.masks[2]) for frame in clip]
    assert [box[0] - boxes[0][0] for box in boxes] == [0, 9, 18]
    assert all(np.array_equal(frame.masks[0] | frame.masks[2], scene.masks[0] | frame.masks[2]) for frame in clip)


def test_too_small_in_one_frame_is_empty_and_ignored_there_only():
    frames = [painted_scene(3), painted_scene(3), painted_scene(3)]
    frames[1].masks[0] = False
    frames[1].masks[0, 5, :9] = True
    for frame in frames:
        frame.masks[2] = False
    aligned = align_clip(frames, 40, 10)
    assert [len(frame.masks) for frame in aligned] == [2, 2, 2], 'what no frame shows is left out'
    assert not aligned[1].masks[0].any() and aligned[1].ignore[5, :9].all()
    assert np.array_equal(aligned[2].masks, painted_scene(2).masks) and not aligned[2].ignore.any()


def test_no_amplitude_is_a_camera_at_rest():
    path = draw_path(np.random.default_rng(0), range(5), (64, 96), 0.0, perspective=True)
    assert all(np.allclose(matrix, np.eye(3)) for matrix in path)


def test_clips_hold_identities_and_say_where_one_is_out_of_view(tmp_path):
    clips = PseudoVideoDataset(CocoDataset(write_coco(tmp_path), (64, 96)), frames=4, movers=1.0)
    lost = 0
    for epoch in range(25):
        clips.stills.epoch = epoch
        clip = clips[epoch % 3]
        assert len(clip) == 4
        for sample in clip:
            assert torch.equal(sample.labels, clip[0].labels) and sample.masks.shape == clip[0].masks.shape
            assert torch.equal(sample.valid, sample.masks.flatten(1).any(1))
            lost += int((~sample.valid).sum())
        assert torch.stack([sample.valid for sample in clip]).any(0).all(), 'an instance that no frame shows'
    assert lost, 'no instance ever left the view'
    again = clips[24 % 3]
    assert all(torch.equal(a.image, b.image) and torch.equal(a.masks, b.masks)
               for a, b in zip(clip, again, strict=True))


def test_clips_have_the_length_that_is_asked_for(tmp_path):
    stills = CocoDataset(write_coco(tmp_path), (64, 96))
    assert [len(PseudoVideoDataset(stills, frames)[0]) for frames in (3, 1)] == [3, 1]
    with pytest.raises(ValueError, match='0 frames'):
        PseudoVideoDataset(stills, 0)


# faulty data

def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r'nowhere\.json'):
        load_coco(tmp_path / 'nowhere.json')
    path = write_coco(tmp_path)
    (tmp_path / '2.png').unlink()
    with pytest.raises(DataError, match=r'1 of 3 pictures are missing, the first is .*2\.png'):
        CocoDataset(path)


def test_text_that_is_not_coco_is_refused(tmp_path):
    path = tmp_path / 'a.json'
    for text, words in (('{', 'the JSON ends in the middle'), ('{"images": []}', 'not a COCO annotation file'),
                        ('[]', 'not a COCO annotation file')):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            load_coco(path)


@pytest.mark.parametrize('segmentation', [
    {'size': [HEIGHT, WIDTH], 'counts': 'zzz'}, {'size': [HEIGHT, WIDTH], 'counts': ''},
    {'size': [HEIGHT, WIDTH], 'counts': '0\x7f'}, {'size': [HEIGHT, WIDTH], 'counts': [5, 6]},
    {'size': [9, 9], 'counts': [81]}, {'counts': 'abc'}, [['x'] * 6]])
def test_a_bad_segmentation_names_its_annotation(tmp_path, segmentation):
    bad = {'id': 4711, 'image_id': 1, 'category_id': 1, 'iscrowd': 0, 'segmentation': segmentation}
    with pytest.raises(DataError, match='annotation 4711: bad segmentation'):
        load_coco(write_coco(tmp_path, extra=(bad,)))


def test_an_annotation_without_its_image_or_category_is_named(tmp_path):
    for wrong in ({'image_id': 77, 'category_id': 1}, {'image_id': 1, 'category_id': 77}):
        bad = {'id': 4711, 'iscrowd': 0, 'segmentation': rle_of(ellipse(30, 30, 5, 5)), **wrong}
        with pytest.raises(DataError, match='annotation 4711 names'):
            load_coco(write_coco(tmp_path, extra=(bad,)))


def test_an_image_that_does_not_fit_its_record_is_named(tmp_path):
    dataset = CocoDataset(edit(write_coco(tmp_path), lambda c: c['images'][0].update(annotated='all')))
    (tmp_path / '1.png').write_bytes(b'no image')
    with pytest.raises(DataError, match=r'1\.png: not a readable image'):
        CocoDataset(tmp_path / 'instances.json')[0]
    assert len(dataset[0].image) == 3, 'pictures are read once, when the data set is made'
    cv2.imwrite(str(tmp_path / '2.png'), np.zeros((10, 12, 3), np.uint8))
    with pytest.raises(DataError, match=r'2\.png: the image is 12x10'):
        CocoDataset(tmp_path / 'instances.json')[1]
    edit(tmp_path / 'instances.json', lambda c: c['images'][0].update(annotated='some'))
    with pytest.raises(DataError, match="annotated is 'some'"):
        load_coco(tmp_path / 'instances.json')


def test_held_out_images_and_impossible_sizes(tmp_path):
    path = write_coco(tmp_path)
    assert [r.id for r in CocoDataset(path, skip_image_ids={2}).records] == [1, 3]
    with pytest.raises(DataError, match='no image in'):
        CocoDataset(path, skip_image_ids={1, 2, 3})
    with pytest.raises(ValueError, match='too small'):
        CocoDataset(path, (0, 96))


def test_all_three_forms_of_run_lengths_agree():
    mask = ellipse(40, 50, 20, 11)
    compressed = rle_of(mask)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate(([2], mask.T.ravel().astype(int), [2]))))).tolist()
    for form in (compressed, {**compressed, 'counts': compressed['counts'].encode()},
                 {'size': [HEIGHT, WIDTH], 'counts': runs}):
        assert np.array_equal(coco_mask.decode(to_rle(form, HEIGHT, WIDTH)).astype(bool), mask)
    assert compressed_total(compressed['counts'].encode()) == HEIGHT * WIDTH


def test_stills_become_videos_that_load_again(tmp_path, capsys):
    from tar_vis_core.commands.main import main
    path = write_coco(tmp_path / 'stills', annotated='person')
    assert main(['data', 'move', str(path), str(tmp_path / 'out'), '--frames', '3', '--size', '64x96']) == 0
    assert 'videos of 3 frames' in capsys.readouterr().out
    records = load_ytvis(tmp_path / 'out' / 'instances.json')
    assert records and all(len(r.paths) == 3 and (r.height, r.width) == (64, 96) for r in records)
    assert all(r.annotated == 'person' for r in records), 'what is not labelled stays unknown'
    tracks = [track for record in records for track in record.tracks]
    assert tracks and {track.category for track in tracks} <= {c['name'] for c in
                                                              json.loads(path.read_text())['categories']}
    assert any(track.mask(0) is not None and track.mask(0).any() for track in tracks)


def test_a_split_holds_every_picture_once_and_both_parts_load(tmp_path, capsys):
    from tar_vis_core.commands.main import main
    path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    first = content['images'][0]
    content['images'] += [{**first, 'id': 100 + n} for n in range(4)]
    content['annotations'] += [{**content['annotations'][0], 'id': 1000 + n, 'image_id': 100 + n} for n in range(4)]
    path.write_text(json.dumps(content))
    assert main(['data', 'split', str(path), '--every', '2']) == 0
    fit, held = (load_coco(path.with_name(f'{path.stem}_{name}.json')) for name in ('fit', 'held'))
    ids = [image['id'] for image in content['images']]
    assert [r.id for r in held] == ids[::2] and [r.id for r in fit] == ids[1::2]
    assert sum(len(r.annotations) for r in fit + held) == len(content['annotations'])
    path.write_text('[]')
    assert main(['data', 'split', str(path)]) == 1 and 'found a list' in capsys.readouterr().err
