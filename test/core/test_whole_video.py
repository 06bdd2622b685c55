import json

import numpy as np
import pytest
import torch
from decoder_outputs import decoder_output
from parity_data import expected, formula, largest_gap, needs_parity_data

from tar_vis_core.evaluation.whole_video import mean_logits, resize_mask_logits, rows_by_slot, segment_video
from tar_vis_core.masks import MaskGeometry
from tar_vis_core.models.tracked import Tracked
from tar_vis_core.tracking.tracker import MatchingTracker


def tracked(logits, masks, slots):
    """Frames ``(T, R, .)`` with ready-made mask logits ``(T, R, h, w)``, and the mask features to be used with it."""
    rows = masks.shape[1]
    return Tracked(logits, torch.eye(rows).expand(len(masks), -1, -1), None, logits, np.asarray(slots)), masks


def geometry(logits, padded, content, source):
    return MaskGeometry(tuple(logits), tuple(padded), tuple(content), tuple(source))


@pytest.fixture(scope='module')
def reference():
    return expected('synthetic_post')


@pytest.fixture(scope='module')
def synthetic(reference):
    """Five frames whose queries are far from the identity order, through MinVIS; `meta` tells how they are made."""
    meta = json.loads(str(reference['meta']))
    frames, queries, height, width = meta['T'], meta['Q'], meta['h'], meta['w']

    def normal(name, *shape):
        return torch.from_numpy(formula().rng_normal(f'synthetic.{name}', shape, meta['salt']))

    base = normal('base', queries, 512)
    embeddings = torch.stack([(base + 0.35 * normal(f'noise{t}', queries, 512))[normal(f'perm{t}', queries).argsort()]
                              for t in range(frames)]).float()
    logits = (2 * normal('logits', frames, queries, meta['C'])).float()
    masks = (3 * normal('masks', queries, frames, height, width)).float().transpose(0, 1)
    output = decoder_output(logits, torch.eye(queries).expand(frames, -1, -1), embeddings)
    return (MatchingTracker().track(output, masks, None)[0], masks,
            geometry((height, width), meta['first_resize'], meta['img_size'], meta['output']))


@needs_parity_data
def test_matching_and_averaging_equal_the_reference_on_shuffled_queries(synthetic, reference):
    tracked, masks, _ = synthetic
    indices = tracked.slots.argsort(1)
    assert np.array_equal(indices, reference['minvis_indices'])
    assert (indices[1:] != np.arange(indices.shape[1])).mean() > 0.9  # else the case would prove nothing
    numbers, rows = rows_by_slot(tracked.slots)
    assert numbers.tolist() == list(range(indices.shape[1]))
    assert np.array_equal(rows, indices.T)
    assert largest_gap(mean_logits(tracked.logits, torch.from_numpy(rows)), reference['minvis_logits']) < 1e-4
    permuted = torch.stack([frame[row] for frame, row in zip(masks, indices, strict=True)], dim=1)
    assert largest_gap(permuted, reference['minvis_masks']) < 1e-3


@needs_parity_data
def test_top_k_and_resizing_equal_the_reference(synthetic, reference):
    video = segment_video(*synthetic, max_instances=len(reference['minvis_scores']))
    assert largest_gap(video.scores, reference['minvis_scores']) < 1e-4
    assert video.labels.tolist() == reference['minvis_labels'].tolist()
    areas = reference['minvis_mask_areas']
    assert (np.abs(video.masks.sum((2, 3)).numpy() - areas) <= np.maximum(3, 1e-3 * areas)).all()


SMALL = geometry((2, 2), (8, 8), (8, 8), (5, 7))


def test_one_slot_may_come_with_several_classes():
    logits = torch.full((1, 3, 4), -9.0)  # three slots, three classes and no-object
    logits[0, 1, :3] = torch.tensor([5.0, 4.9, 4.8])
    video = segment_video(*tracked(logits, torch.ones(1, 3, 2, 2), [[0, 1, 2]]), SMALL, max_instances=3)
    assert video.queries.tolist() == [1, 1, 1]
    assert video.labels.tolist() == [0, 1, 2]
    assert video.masks.shape == (3, 1, 5, 7)


def test_masks_follow_their_slot_through_a_swap():
    left, right = torch.full((4, 4), -5.0), torch.full((4, 4), -5.0)
    left[:, :2], right[:, 2:] = 5.0, 5.0
    masks = torch.stack([torch.stack([left, right]), torch.stack([right, left])])
    logits = torch.tensor([[[3.0, 0, 0], [0, 2.0, 0]], [[0, 2.0, 0], [3.0, 0, 0]]])
    video = segment_video(*tracked(logits, masks, [[0, 1], [1, 0]]), geometry((4, 4), *[(16, 16)] * 3), 2)
    assert video.labels.tolist() == [0, 1]
    assert video.masks[0, :, :, :8].all() and not video.masks[0, :, :, 8:].any()
    assert video.masks[1, :, :, 8:].all() and not video.masks[1, :, :, :8].any()


def test_a_slot_counts_where_it_is_present_and_its_mask_is_empty_elsewhere():
    logits = torch.zeros(4, 2, 3)
    logits[:, 0, 0] = torch.tensor([2.0, 6.0, 9.0, 9.0])
    logits[:, 1, 1] = torch.tensor([1.0, 1.0, 1.0, 1.0])
    slots = [[40, 7], [40, 7], [-1, 7], [-1, 40]]
    numbers, rows = rows_by_slot(np.array(slots))
    assert numbers.tolist() == [7, 40]
    assert rows.tolist() == [[1, 1, 1, -1], [0, 0, -1, 1]]
    mean = mean_logits(logits, torch.from_numpy(rows))
    torch.testing.assert_close(mean, torch.tensor([[0, 1, 0], [8 / 3, 1 / 3, 0]]))
    video = segment_video(*tracked(logits, torch.ones(4, 2, 2, 2), slots), SMALL, max_instances=1)
    assert video.queries.tolist() == [40]
    assert video.masks.flatten(2).all(2).tolist() == [[True, True, False, True]]
    assert video.masks.flatten(2).any(2).tolist() == [[True, True, False, True]]


def test_a_fleeting_slot_of_a_longer_video_is_left_out():
    def left(frames, seen_in):
        slots = np.full((frames, 2), -1)
        slots[:, 0], slots[seen_in, 1] = 0, 1
        numbers, rows = rows_by_slot(slots)
        assert numbers[0] == 0 and (rows[0] == 0).all()
        return [np.flatnonzero(row >= 0).tolist() for row in rows[1:]]

    assert left(10, [3, 4]) == []
    assert left(10, [3, 4, 5]) == [[3, 4, 5]]    # seen often enough
    assert left(10, [4, 8]) == [[4, 8]]          # missing for one frame only
    assert left(9, [3, 4]) == [[3, 4]]           # too early to tell
    assert left(15, [3, 4, 9]) == [[3, 4, 9]]
    assert left(15, [3, 4, 13]) == [[13]]        # forgotten after frame 9, then anew
    assert left(15, [3, 4, 10]) == []


def test_mask_scores_are_the_mean_probability_of_the_masks_pixels():
    masks = torch.full((2, 1, 2, 2), -3.0)
    masks[0], masks[1, 0, 0] = 1.0, 2.0
    video = segment_video(*tracked(torch.zeros(2, 1, 3), masks, [[0], [-1]]), geometry(*[(2, 2)] * 4), 1)
    assert video.mask_scores.tolist() == pytest.approx([1 / (1 + np.exp(-1))])
    video = segment_video(*tracked(torch.zeros(2, 1, 3), masks, [[0], [0]]), geometry(*[(2, 2)] * 4), 1)
    assert video.mask_scores.tolist() == pytest.approx([(4 / (1 + np.exp(-1)) + 2 / (1 + np.exp(-2))) / 6])


def test_a_video_without_any_slot_has_no_instances():
    video = segment_video(*tracked(torch.zeros(2, 3, 4), torch.ones(2, 3, 2, 2), np.full((2, 3), -1)), SMALL)
    assert video.scores.shape == video.labels.shape == (0,)
    assert video.masks.shape == (0, 2, 5, 7)


def test_what_lies_in_the_padding_is_cut_off():
    logits = torch.full((1, 8, 8), -5.0)
    logits[:, :, 6:] = 5.0  # columns 24.. of a 32 wide input, whose image is 20 wide
    assert not (resize_mask_logits(logits, geometry((8, 8), (32, 32), (32, 20), (64, 40))) > 0).any()
