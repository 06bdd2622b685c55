import numpy as np
import torch

from tar_vis_core.nano_detection import absorb_pieces, distinct, shared_out, without_claimed_parts, without_far_parts


def block(rows, columns, inside=4.0, shape=(16, 24)):
    logits = torch.full(shape, -4.0)
    logits[slice(*rows), slice(*columns)] = inside
    return logits


def areas(logits):
    return (logits > 0).sum((1, 2)).tolist()


def test_distinct_depends_on_scores_not_on_order():
    masks = np.stack([np.indices((8, 8))[1] < n for n in (4, 5, 6)])
    assert distinct(masks, np.array([0.5, 0.9, 0.7]), np.zeros(3)) == [1]
    assert distinct(masks[:0], np.zeros(0), np.zeros(0)) == []


def test_parts_that_are_far_or_tiny_go_and_near_ones_stay():
    logits = block((2, 12), (2, 8))
    logits[2:12, 10:12] = 4.0      # beyond a thin gap
    logits[14, 0] = 4.0            # near, but a speck
    logits[4:10, 20:24] = 4.0      # far
    kept = without_far_parts(logits) > 0
    assert kept[2:12, 2:8].all() and kept[2:12, 10:12].all()
    assert kept.sum() == 10 * 8
    whole = block((2, 12), (2, 8))
    assert without_far_parts(whole) is whole
    assert not (without_far_parts(block((0, 0), (0, 0))) > 0).any()



def test_a_part_that_is_another_querys_whole_mask_is_given_up():
    both = torch.maximum(block((2, 12), (2, 8)), block((6, 12), (10, 14)))     # a child beside its mother
    child = block((6, 12), (10, 14))
    first, second = without_claimed_parts(torch.stack([both, child]), np.array([0.9, 0.6]), np.array([0, 0])) > 0
    assert first.sum() == 10 * 6 and not (first & second).any()
    assert torch.equal(second, child > 0)


def test_a_part_stays_where_the_other_query_is_unsure_or_of_another_class_or_has_more():
    both = torch.maximum(block((2, 12), (2, 8)), block((6, 12), (10, 14)))
    child, mother, wide = block((6, 12), (10, 14)), block((2, 12), (2, 8)), block((2, 12), (9, 20))
    for other, score, label in ((child, 0.2, 0), (child, 0.9, 1), (mother, 0.9, 0), (wide, 0.9, 0)):
        out = without_claimed_parts(torch.stack([both, other]), np.array([0.9, score]), np.array([0, label]))
        assert areas(out)[0] == 10 * 6 + 6 * 4


def test_the_surer_of_two_like_masks_takes_the_common_pixels():
    logits = torch.stack([block((0, 10), (0, 10), 2.0), block((0, 10), (8, 18), 5.0)])
    out = shared_out(logits, np.array([0.9, 0.8]), np.array([0, 0]))
    assert areas(out) == [80, 100]
    assert not ((out[0] > 0) & (out[1] > 0)).any()


def test_a_much_better_score_takes_them_whatever_the_masks_say():
    logits = torch.stack([block((0, 10), (0, 10), 2.0), block((0, 10), (8, 18), 5.0)])
    assert areas(shared_out(logits, np.array([0.9, 0.4]), np.array([0, 0]))) == [100, 80]
    assert areas(shared_out(logits, np.array([0.4, 0.9]), np.array([0, 0]))) == [80, 100]


def test_equal_masks_give_each_pixel_to_one():
    logits = torch.stack([block((0, 10), (0, 10)), block((0, 10), (8, 18))])
    assert sorted(areas(shared_out(logits, np.array([0.9, 0.9]), np.array([0, 0])))) == [80, 100]


def test_masks_of_two_classes_may_overlap():
    logits = torch.stack([block((0, 10), (0, 10), 2.0), block((0, 10), (8, 18), 5.0)])
    assert torch.equal(shared_out(logits, np.array([0.9, 0.9]), np.array([0, 1])), logits)
    assert shared_out(logits[:0], np.zeros(0), np.zeros(0)).shape == (0, 16, 24)


def test_a_piece_hands_its_score_to_the_whole_of_its_class():
    masks = np.zeros((4, 20, 20), bool)
    masks[0, 5:8, 5:8] = True            # an eye
    masks[1, 2:18, 2:18] = True          # the cat
    masks[2, 6:7, 6:7] = True            # a piece of the eye
    masks[3, 10:12, 10:12] = True        # another class
    scores = np.array([0.7, 0.5, 0.6, 0.6], np.float32)
    absorbed = absorb_pieces(masks, scores, np.array([1, 1, 1, 2]))
    np.testing.assert_allclose(absorbed, [0, 0.7, 0, 0.6])


def test_a_whole_that_is_hardly_believed_takes_nothing():
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 5:8, 5:8] = True
    masks[1, 2:18, 2:18] = True
    scores = np.array([0.9, 0.2], np.float32)
    np.testing.assert_allclose(absorb_pieces(masks, scores, np.array([1, 1])), scores)
