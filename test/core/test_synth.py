"""Made-up crowds: exact, repeatable, made of look-alikes that touch; their files give back the same masks."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from coco_files import write_coco

from tar_vis_core.commands.main import main
from tar_vis_core.data.clip_times import draw_times
from tar_vis_core.data.shapes import Shape
from tar_vis_core.data.synth import SynthVideos, draw_crowd, render, smooth_offsets
from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.models.class_sets import CROWD

SIZE = 96, 144


def equal(first, second) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(first, second, strict=True)
               for name in ('image', 'masks', 'labels', 'valid', 'ignore'))


def crowds(number: int, frames: int = 2):
    return [draw_crowd(np.random.default_rng(seed), frames, SIZE) for seed in range(number)]


def grown(mask: np.ndarray) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def test_the_same_seed_epoch_and_index_give_the_same_clip():
    first, second = SynthVideos(SIZE, 3, seed=5), SynthVideos(SIZE, 3, seed=5)
    second[7]                                                # the order of access does not matter
    assert equal(first[2], second[2])
    assert not torch.equal(first[2][0].image, first[3][0].image)
    assert not torch.equal(first[2][0].image, SynthVideos(SIZE, 3, seed=6)[2][0].image)
    second.epoch = 1
    assert not torch.equal(first[2][0].image, second[2][0].image)
    second.epoch = 0
    assert equal(first[2], second[2])


def test_size_and_epoch_may_change_between_clips():
    made, other = SynthVideos(SIZE, 2), SynthVideos((64, 80), 2)
    assert made[1][0].image.shape == (3, *SIZE)
    made.size, made.epoch, other.epoch = (64, 80), 4, 4
    assert made[1][0].image.shape == (3, 64, 80)
    assert equal(made[1], other[1])


def test_masks_are_disjoint_and_identities_keep_their_index():
    for clip in map(SynthVideos(SIZE, 4).__getitem__, range(15)):
        for sample in clip:
            assert sample.masks.sum(0).max() <= 1
            assert not (sample.ignore & sample.masks.any(0)).any()
            assert torch.equal(sample.labels, clip[0].labels) and len(sample.masks) == len(clip[0].masks)
            assert torch.equal(sample.valid, sample.masks.flatten(1).any(1)) and sample.exhaustive
        assert torch.stack([sample.valid for sample in clip]).any(0).all()     # each is seen somewhere


def test_a_mask_holds_the_pixels_that_show_its_body():
    """Where one body alone is recoloured by half the range, at most half of that appears outside its mask."""
    checked = 0
    for seed, crowd in enumerate(crowds(30)):
        streaks = [crowd.camera[1] @ body.pose(1) - crowd.camera[0] @ body.pose(0) for body in crowd.bodies]
        if np.abs(streaks).max() > 3:                        # motion blur smears the picture, not the mask
            continue
        chosen = seed % 4
        body, before = crowd.bodies[chosen], render(crowd, 0, SIZE)
        crowd.looks.append(crowd.looks[body.look] + np.uint8(128))
        crowd.bodies[chosen] = replace(body, look=len(crowd.looks) - 1)
        after = render(crowd, 0, SIZE)
        change = np.abs(before.image.astype(int) - after.image).max(-1)
        mask = before.masks[chosen]
        assert np.array_equal(before.masks, after.masks)
        assert change[~mask].max() <= 65 and change[~grown(mask)].max() <= 40
        if mask.sum() > 40:
            checked += 1
            assert (change[mask] > 0).mean() > 0.97 and change[mask].mean() > 50
    assert checked > 10


def test_the_body_in_front_takes_the_pixels():
    hidden = 0
    for crowd in crowds(12):
        masks = render(crowd, 0, SIZE).masks
        top = max(range(len(crowd.bodies)), key=lambda i: crowd.bodies[i].depths[0])
        for i, body in enumerate(crowd.bodies):
            whole = render(replace(crowd, bodies=[body]), 0, SIZE).masks[0]
            assert not (masks[i] & ~whole).any()
            hidden += whole.sum() > masks[i].sum() + 20
            if i == top:
                assert np.array_equal(masks[i], whole)
    assert hidden > 30


def test_what_leaves_and_comes_back_has_the_same_index():
    """A truth of its own: bodies are followed by where their poses put them, not by their masks."""
    returned = 0
    made = SynthVideos(SIZE, 60, seed=1)
    for index in range(12):
        clip = made[index]
        seen = torch.stack([sample.valid for sample in clip]).numpy()
        crowd = draw_crowd(np.random.default_rng([1, 0, index]), 60, SIZE)
        masks = np.stack([render(crowd, frame, SIZE).masks for frame in range(60)])     # (60, n, h, w)
        areas = masks.sum((2, 3))
        kept = [i for i in range(len(crowd.bodies)) if areas[:, i].max() >= made.min_pixels]
        assert np.array_equal(seen, areas[:, kept] >= made.min_pixels)
        for column, i in enumerate(kept):
            on = np.flatnonzero(seen[:, column])
            if not seen[on[0]:on[-1], column].all():
                returned += 1
                assert torch.equal(clip[on[-1]].masks[column], torch.from_numpy(masks[on[-1], i]))
    assert returned >= 3


def test_a_sliver_is_ignored_not_asked_for():
    slivers = 0
    for index in range(40):
        rng = np.random.default_rng([0, 0, index])
        crowd = draw_crowd(rng, 2, SIZE)
        for frame, sample in enumerate(SynthVideos(SIZE, 2)[index]):
            masks = render(crowd, frame, SIZE).masks
            areas = masks.sum((1, 2))
            small = masks[areas < 40].any(0)
            assert np.array_equal(sample.ignore.numpy(), small)
            assert sorted(sample.masks[sample.valid].sum((1, 2)).tolist()) == sorted(areas[areas >= 40].tolist())
            slivers += small.any()
    assert slivers > 3


def test_all_classes_occur_and_numbers_and_sizes_are_those_promised():
    bodies = [crowd.bodies for crowd in crowds(60)]
    assert {len(b) for b in bodies} == set(range(4, 15))
    counts = np.bincount([body.shape.label for b in bodies for body in b], minlength=4)
    assert len(counts) == len(CROWD) and counts.min() > 0.1 * counts.sum()
    across = np.array([body.diameter for b in bodies for body in b]) / min(SIZE)
    assert 0.12 <= across.min() < 0.2 and 0.3 < across.max() < 0.4 + 1e-9


def test_look_alikes_of_one_class_and_texture_touch():
    touching = 0
    for crowd in crowds(40):
        masks = render(crowd, 0, SIZE).masks
        kinds = [(body.shape.label, body.look) for body in crowd.bodies]
        assert all(kinds.count(kind) >= 2 for kind in kinds)             # none is alone of its kind
        touching += any(kinds[i] == kinds[j] and (grown(masks[i]) & masks[j]).any()
                        for i in range(len(kinds)) for j in range(i))
    assert touching >= 38


@pytest.mark.parametrize('label', range(len(CROWD)))
def test_outlines_do_not_cross_themselves_and_change_with_the_phase(label):
    for seed in range(20):
        shape = Shape.draw(np.random.default_rng(seed), label)
        for phase in (0.0, 2.0, 4.0):
            corners = (200 + 100 * shape.outline(phase)).astype(np.int32)
            drawn = cv2.fillPoly(np.zeros((400, 400), np.uint8), [corners], 1)
            holes = cv2.connectedComponents(1 - drawn, connectivity=4)[0] - 2      # less the body and the ground
            assert cv2.connectedComponents(drawn)[0] == 2 and holes == 0
        assert np.abs(shape.outline(0.0) - shape.outline(2.5)).max() > 0.02


def test_motion_goes_from_none_to_strong_and_stays_in_bounds():
    changes = []
    for index in range(30):
        first, second = SynthVideos(SIZE, 2, seed=2)[index]
        changes.append(((first.image.float() - second.image.float()) ** 2).mean().item())
    assert min(changes) < 15 and max(changes) > 300
    long = smooth_offsets(np.random.default_rng(0), 2000, 5.0, 20.0)
    assert np.abs(long).max() <= 40 and np.abs(np.diff(long)).max() <= 5.0 and (long == 0).any()


@pytest.mark.parametrize(('call', 'said'), [
    (lambda: SynthVideos((8, 96)), 'too small'), (lambda: SynthVideos(SIZE, 0), 'at least 1')])
def test_impossible_clips_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# files

@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('crowd') / 'new'
    options = '--videos', '3', '--frames', '4', '--size', '96x144', '--seed', '8'
    assert main(['data', 'synth', str(folder), *options]) == 0
    return folder


def test_written_videos_are_read_back_with_the_same_masks(written):
    records, made = load_ytvis(written / 'instances.json'), SynthVideos(SIZE, 4, seed=8)
    assert len(records) == 3
    for index, record in enumerate(records):
        clip = made[index]
        assert record.exhaustive and (record.height, record.width) == SIZE
        assert [track.category for track in record.tracks] == [CROWD[label] for label in clip[0].labels]
        for frame, (sample, image) in enumerate(zip(clip, record.frames(), strict=True)):
            for track, mask, valid in zip(record.tracks, sample.masks.numpy(), sample.valid, strict=True):
                assert (track.mask(frame) is not None) == valid
                assert not valid or np.array_equal(track.mask(frame), mask)
            assert np.abs(image.astype(int) - sample.image.permute(1, 2, 0).numpy()).mean() < 8     # JPEG


def test_written_areas_and_boxes_are_those_of_the_masks(written):
    records = load_ytvis(written / 'instances.json')
    tracks = {track.id: track for record in records for track in record.tracks}
    for entry in json.loads((written / 'instances.json').read_text())['annotations']:
        for frame, (area, box) in enumerate(zip(entry['areas'], entry['bboxes'], strict=True)):
            mask = tracks[entry['id']].mask(frame)
            assert (mask is None) == (area is None) == (box is None)
            if mask is not None:
                assert area == mask.sum() and tuple(box) == cv2.boundingRect(mask.view(np.uint8))


def test_a_folder_with_videos_is_not_written_over(written, capsys):
    before = (written / 'instances.json').read_bytes()
    assert main(['data', 'synth', str(written), '--videos', '1']) == 1
    assert 'choose another folder' in capsys.readouterr().err
    assert (written / 'instances.json').read_bytes() == before


def test_check_tells_what_is_there_and_draws_it(written, tmp_path, capsys):
    sheet = tmp_path / 'sheet.png'
    assert main(['data', 'check', str(written), '--sheet', str(sheet)]) == 0
    told = capsys.readouterr().out
    tracks = [track for record in load_ytvis(written / 'instances.json') for track in record.tracks]
    assert 'YouTube-VIS, 3 videos' in told and '144x96 (3)' in told and 'a video has 4' in told
    rows = {line.split()[0]: line.split()[1:3] for line in told.splitlines() if line.split(' ')[0] in CROWD}
    assert rows == {name: [str(sum(t.category == name for t in tracks)),
                           str(sum(rle is not None for t in tracks if t.category == name for rle in t.rles))]
                    for name in CROWD}
    picture = cv2.imread(str(sheet))
    assert picture.shape == (2 * 3 * 192, 4 * 288, 3) and picture.std() > 10


def test_check_reads_coco_and_tells_what_is_partly_labelled(tmp_path, capsys):
    path = write_coco(tmp_path, annotated='person', pseudo=True)
    assert main(['data', 'check', str(path), '--sheet', str(tmp_path / 'sheet.jpg')]) == 0
    told = capsys.readouterr().out
    assert 'COCO, 3 images' in told and '3 images show objects that are not labelled' in told
    assert '6 machine-made masks' in told
    rows = [line.split() for line in told.splitlines() if line.startswith(('person', 'cat', 'tv'))]
    assert [row[1] for row in rows] == ['3', '3', '0']


def test_check_names_what_is_wrong_in_one_line(written, tmp_path, capsys):
    content = json.loads((written / 'instances.json').read_text())
    lost = tmp_path / 'lost.json'
    lost.write_text(json.dumps(content))
    (tmp_path / 'broken.json').write_text('{"categories": []}')
    for path, words in ((lost, ['12 of 12 pictures are missing', '00001/00000.jpg']),
                        (tmp_path / 'broken.json', ["field 'images' is missing"]),
                        (tmp_path, ['2 JSON files']), (tmp_path / 'none.json', ['no such'])):
        assert main(['data', 'check', str(path)]) == 1
        error = capsys.readouterr().err
        assert error.count('\n') == 1 and all(word in error for word in words)


def test_gaps_show_the_same_world_at_other_moments():
    every, seldom = SynthVideos(SIZE, 7, seed=5)[2], SynthVideos(SIZE, 3, seed=5, gaps=[3])[2]
    for sample, other in zip(every[::3], seldom, strict=True):
        # shown moments differ by the noise of the camera alone; which bodies the clip ever shows may differ
        assert (sample.image.float() - other.image.float()).abs().mean() < 8
    rests = SynthVideos(SIZE, 12, seed=5, gaps=[0, 4])[2]
    moved = [bool((a.masks != b.masks).any()) for a, b in pairwise(rests)]
    assert 0 < sum(moved) < len(moved), 'now it rests, now it jumps'


@pytest.mark.parametrize('gaps', [[], [0], [-1, 2]])
def test_gaps_that_lead_nowhere_are_refused(gaps):
    with pytest.raises(ValueError, match='gaps'):
        SynthVideos(SIZE, 3, gaps=gaps)


def test_moments_rise_by_the_gaps_and_one_gap_draws_nothing():
    rng = np.random.default_rng(0)
    assert draw_times(rng, 4, (1,)) == [0, 1, 2, 3] and draw_times(rng, 3, (5,)) == [0, 5, 10]
    assert rng.random() == np.random.default_rng(0).random()
    steps = np.diff(draw_times(rng, 200, (0, 1, 8)))
    assert set(steps) == {0, 1, 8} and draw_times(rng, 1, (0, 1)) == [0]
