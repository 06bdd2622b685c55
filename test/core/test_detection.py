import numpy as np
import pytest
import torch

from tar_vis_core import detection, masks
from tar_vis_core.detection import MAX_CANDIDATES, colour_signature, mask_quality
from tar_vis_core.masks import MaskGeometry
from tar_vis_core.models.tracked import Tracked
from tar_vis_core.models.video_model import Features

GEOMETRY = MaskGeometry((16, 24), (64, 96), (60, 90), (120, 180))
IMAGE = np.random.default_rng(0).integers(0, 256, (120, 180, 3), np.uint8)


def block(rows, columns, inside=4.0, shape=(16, 24)):
    logits = torch.full(shape, -4.0)
    logits[slice(*rows), slice(*columns)] = inside
    return logits


def find(probabilities, logits, min_score=0.1, allowed=None, gains=None):
    """Detect in queries with these class probabilities and mask logits, each a channel of the mask features."""
    probabilities, masks = torch.tensor(probabilities), torch.stack(logits)
    count, classes = probabilities.shape[0], probabilities.shape[1] - 1
    tracked = Tracked(probabilities.log()[None], torch.eye(count)[None], None, torch.ones(1, count, 8),
                      np.arange(count)[None])
    allowed = np.ones(classes, bool) if allowed is None else np.array(allowed)
    return detection.detect(tracked, Features(masks[None], []), IMAGE, GEOMETRY, min_score, allowed, gains)


def test_quality_is_the_mean_probability_of_the_positive_pixels():
    quality = mask_quality(torch.stack([block((2, 6), (3, 9), 2.0), block((2, 6), (3, 9), 0.1), block((0, 0), (0, 0))]))
    assert quality.tolist() == pytest.approx([0.8808, 0.5250, 0.0], abs=1e-4)


def test_a_sure_mask_beats_a_vague_one_of_equal_class_probability():
    found = find([[0.8, 0.0, 0.2], [0.8, 0.0, 0.2]], [block((0, 8), (0, 6), 0.05), block((0, 8), (12, 18), 6.0)])
    assert [d.query for d in found] == [1, 0]
    assert found[0].score == pytest.approx(0.8, abs=0.01)
    assert found[1].score == pytest.approx(0.41, abs=0.01)


def test_gains_fit_one_threshold_to_all_classes_and_change_no_class():
    probabilities = [[0.45, 0.0, 0.55], [0.0, 0.45, 0.55], [0.4, 0.5, 0.1], [0.9, 0.0, 0.1]]
    masks = [block(rows, columns, 9) for rows in ((0, 8), (10, 16)) for columns in ((0, 6), (8, 14))]
    found = find(probabilities, masks, 0.5, gains=np.array([1.5, 0.8]))
    assert [(d.query, d.class_id, round(d.score, 2)) for d in found] == [(3, 0, 1.0), (0, 0, 0.67)]
    found = find(probabilities, masks, 0.3, gains=np.array([1.5, 0.8]))
    assert {d.query: (d.class_id, round(d.score, 2)) for d in found} == {
        0: (0, 0.67), 1: (1, 0.36), 2: (1, 0.4), 3: (0, 1.0)}
    # of a class that is not shown only the other one's score counts
    found = find(probabilities, masks, 0.5, allowed=[True, False], gains=np.array([1.5, 0.8]))
    assert [(d.query, round(d.score, 2)) for d in found] == [(3, 1.0), (0, 0.67), (2, 0.6)]


def test_gains_do_not_choose_between_two_that_show_one_object():
    mask = block((2, 12), (4, 10), 9)
    (dog,) = find([[0.5, 0.0, 0.5], [0.0, 0.6, 0.4]], [mask, mask], 0.3, gains=np.array([1.5, 0.8]))
    assert dog.class_id == 1 and dog.score == pytest.approx(0.48, abs=0.01)


def test_distinct_depends_on_scores_not_on_order():
    masks = np.stack([np.indices((8, 8))[1] < n for n in (4, 5, 6)])
    assert detection.without_duplicates(masks, np.array([0.5, 0.9, 0.7]), np.zeros(3)) == [1]
    assert detection.without_duplicates(masks[:0], np.zeros(0), np.zeros(0)) == []


def test_one_object_keeps_its_best_mask():
    whole, shifted, elsewhere = block((2, 12), (4, 10)), block((2, 12), (5, 11)), block((2, 12), (14, 20))
    found = find([[0.6, 0.0, 0.4], [0.9, 0.0, 0.1], [0.7, 0.0, 0.3]], [shifted, whole, elsewhere])
    assert [d.query for d in found] == [1, 2]


def test_a_small_object_before_a_large_one_stays():
    adult, inside = block((2, 14), (4, 14)), block((5, 8), (6, 9))
    for scores in ([0.8, 0.0, 0.2], [0.0, 0.8, 0.2]):       # a child, a phone
        assert len(find([[0.9, 0.0, 0.1], scores], [adult, inside])) == 2


def test_the_same_pixels_are_not_two_classes():
    assert len(find([[0.9, 0.0, 0.1], [0.0, 0.8, 0.2]], [block((2, 12), (4, 10))] * 2)) == 1


def test_masks_are_as_the_network_gives_them():
    apart = torch.maximum(block((1, 6), (1, 6)), block((11, 13), (19, 21)))
    over_it = block((3, 9), (3, 12))
    found = find([[0.9, 0.0, 0.1], [0.8, 0.0, 0.2]], [apart, over_it])
    for one, logits in zip(found, (apart, over_it), strict=True):
        assert np.array_equal(one.mask, (logits[:15, :23] > 0).numpy())


def test_masks_boxes_and_areas_are_those_of_the_source():
    detection, = find([[0.9, 0.0, 0.1]], [block((4, 8), (6, 10))])
    x, y, w, h = detection.box
    # 4x4 cells of 4 px, in an image that was halved: 8 source pixels a cell
    assert (x, y, w, h) == (48, 32, 32, 32)
    assert detection.runs.sum() == w * h
    assert detection.area == detection.runs[1::2].sum()
    assert detection.mask.shape == (15, 23), 'the mask ends where the padding begins'


def test_specks_padding_and_low_scores_are_no_detections():
    assert find([[0.9, 0.0, 0.1]], [block((4, 5), (6, 8))]) == []
    assert find([[0.9, 0.0, 0.1]], [block((0, 16), (23, 24))]) == []
    assert find([[0.05, 0.02, 0.93]], [block((4, 8), (6, 10))]) == []


def test_a_class_that_is_not_allowed_leaves_the_allowed_ones():
    probabilities, logits = [[0.6, 0.3, 0.1]], [block((4, 8), (6, 10))]
    assert find(probabilities, logits)[0].class_id == 0
    only = find(probabilities, logits, allowed=[False, True])
    assert only[0].class_id == 1
    assert only[0].score < 0.3
    assert find(probabilities, logits, min_score=0.35, allowed=[False, True]) == []


def test_only_the_best_candidates_get_a_mask(monkeypatch):
    count = MAX_CANDIDATES + 10
    probabilities = torch.linspace(0.2, 0.9, count)
    asked, masks_of = [], detection.masks_of
    monkeypatch.setattr(detection, 'masks_of', lambda tracked, frame, rows, features: asked.extend(rows.tolist())
                        or masks_of(tracked, frame, rows, features))
    find(torch.stack((probabilities, 1 - probabilities), 1).tolist(), [block((4, 8), (6, 10))] * count)
    assert asked == list(range(count - 1, 9, -1))


def test_a_row_without_a_slot_shows_nothing():
    logits = [block((2, 9), (3, 9)), block((2, 9), (13, 20))]
    tracked = Tracked(torch.tensor([[[3.0, 0.0], [3.0, 0.0]]]), torch.eye(2)[None], None, torch.ones(1, 2, 8),
                      np.array([[-1, 5]]))
    found = detection.detect(tracked, Features(torch.stack(logits)[None], [], None), IMAGE, GEOMETRY, 0.1,
                             np.ones(1, bool))
    assert [one.query for one in found] == [1]


def test_a_gpu_is_waited_for_twice_and_the_answer_is_the_same(monkeypatch):
    """Fixed numbers of candidates and masks in bits, as on a GPU, on a CPU."""
    generator = torch.Generator().manual_seed(3)
    probabilities = (3 * torch.randn(90, 4, generator=generator)).softmax(-1).tolist()
    logits = [block((r, r + 5), (c, c + 6), 0.5 + k / 9) for k, (r, c) in enumerate(
        torch.randint(0, 12, (90, 2), generator=generator).tolist())]
    allowed = [True, True, False]
    expected = find(probabilities, logits, allowed=allowed)
    asked = []
    monkeypatch.setattr(detection, 'on_cpu', lambda _: False)
    monkeypatch.setattr(detection, 'to_host', lambda *tensors: asked.append('candidates') or tensors)
    monkeypatch.setattr(masks, 'to_host', lambda *tensors: asked.append('masks') or tensors)
    found = find(probabilities, logits, allowed=allowed)
    assert asked == ['candidates', 'masks'] and len(found) > 5
    for one, other in zip(found, expected, strict=True):
        assert (one.query, one.class_id, one.box, one.area) == (other.query, other.class_id, other.box, other.area)
        for name in ('class_scores', 'mask', 'embedding', 'colours', 'runs'):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).base is None, 'a track keeps no memory of the other candidates'
    assert find(probabilities, logits, min_score=1.0) == [] and asked[2:] == ['candidates']


@pytest.mark.parametrize('broken', ['probabilities', 'masks'])
def test_numbers_that_are_not_finite_are_said(broken):
    probabilities, logits = [[0.9, 0.0, 0.1], [0.3, 0.2, 0.5]], [block((2, 9), (3, 9)), block((2, 9), (13, 20))]
    assert len(find(probabilities, logits)) == 2
    if broken == 'masks':
        logits[1] = torch.full((16, 24), float('nan'))
    else:
        probabilities[1][0] = float('nan')
    with pytest.raises(FloatingPointError, match='not finite'):
        find(probabilities, logits)


def test_colours_tell_clothes_apart():
    image = np.zeros((10, 6, 3), np.uint8)
    image[:5, :3], image[5:, :3] = (200, 30, 30), (30, 30, 200)      # red shirt, blue trousers
    image[:5, 3:], image[5:, 3:] = (30, 30, 200), (200, 30, 30)      # the other way round
    left = np.indices((10, 6))[1] < 3
    a, b = colour_signature(image, left), colour_signature(image, ~left)
    assert a @ a == pytest.approx(1, abs=1e-6)
    assert a @ b < 0.2
