"""The YouTube-VIS metric: pycocotools' numbers on videos of one frame, and what more than one frame adds."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tubes import SIZE, perfect, rle, square, tube, video

from tar_vis_core.evaluation.tubes import TubePrediction, frame_areas, frame_intersections
from tar_vis_core.evaluation.ytvis_ap import AREA_RANGES, TITLES, evaluate_tubes, tube_ious

LARGE = 420, 560
CLASSES = ['bird', 'cat', 'dog', 'eel']


def blob(rng) -> np.ndarray:
    centre, axes = rng.uniform((0, 0), (LARGE[1], LARGE[0])), rng.uniform(20, 260, 2)
    mask = np.zeros(LARGE, np.uint8)
    cv2.ellipse(mask, centre.astype(int).tolist(), axes.astype(int).tolist(), rng.uniform(0, 180), 0, 360, 1, -1)
    return mask.astype(bool)


def moved(mask: np.ndarray, rng, reach: float) -> np.ndarray:
    step = np.float32([[1, 0, rng.normal(0, reach)], [0, 1, rng.normal(0, reach)]])
    return cv2.warpAffine(mask.astype(np.uint8), step, LARGE[::-1]).astype(bool)


def crowded_stills(seed: int):
    """One-frame videos: many objects, answers of every quality, equal scores, more than 100 answers in one video."""
    rng = np.random.default_rng(seed)
    records, answers = [], []
    for number in range(1, 9):
        tracks = [(str(rng.choice(CLASSES[:3])), [rle(blob(rng))]) for _ in range(rng.integers(1, 12))]
        records.append(video(number, *tracks, size=LARGE))
        for name, (mask,) in tracks:
            for _ in range(rng.integers(0, 4)):
                shape = moved(coco_mask.decode(mask).astype(bool), rng, rng.choice([0, 3, 15, 60]))
                answers.append(TubePrediction(number, name if rng.random() < 0.85 else str(rng.choice(CLASSES)),
                                              round(float(rng.random()), 1), [rle(shape)]))
        for _ in range(110 if number == 1 else 5):
            answers.append(TubePrediction(number, 'bird', round(float(rng.random()), 1), [rle(blob(rng))]))
    return records, answers


def pycocotools_figures(records, answers, name: str) -> dict[str, float]:
    """The same in COCOeval, whose areas and limits are set to those of the videos' metric."""
    def side(rows):
        coco = COCO()
        coco.dataset = {'images': [{'id': r.id, 'height': r.height, 'width': r.width} for r in records],
                        'categories': [{'id': 1}], 'annotations': [{
                            'id': i, 'image_id': image, 'category_id': 1, 'iscrowd': 0, 'segmentation': mask,
                            'area': float(coco_mask.area(mask)), 'bbox': [0, 0, 1, 1], **more}
                            for i, (image, mask, more) in enumerate(rows, 1)]}
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(side([(r.id, t.rles[0], {}) for r in records for t in r.tracks if t.category == name]),
                       side([(a.video_id, a.rles[0], {'score': a.score}) for a in answers if a.category == name]),
                       'segm')
        run.params.areaRng = AREA_RANGES.tolist()
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval['precision'][..., -1], run.eval['recall']

    def mean(values):
        return float(values.mean()) if (values > -1).all() else math.nan
    return {'ap': mean(precision[..., 0]), 'ap50': mean(precision[0, ..., 0]), 'ap75': mean(precision[5, ..., 0]),
            'small': mean(precision[..., 1]), 'medium': mean(precision[..., 2]), 'large': mean(precision[..., 3]),
            'ar1': mean(recall[:, 0, 0, 0]), 'ar10': mean(recall[:, 0, 0, 1])}


@pytest.mark.parametrize('seed', range(4))
def test_videos_of_one_frame_give_the_numbers_of_pycocotools(seed):
    records, answers = crowded_stills(seed)
    result = evaluate_tubes(records, answers)
    assert [c.name for c in result.categories] == CLASSES[:3]        # nothing is labelled as the fourth
    for category in result.categories:
        expected = pycocotools_figures(records, answers, category.name)
        for figure in TITLES:
            assert getattr(category, figure) == pytest.approx(expected[figure], abs=1e-12, nan_ok=True), figure
    assert 0.05 < result.mean.ap < 0.9 and result.mean.ap == pytest.approx(np.mean([c.ap for c in result.categories]))


RECORDS = [video(1, ('cat', tube(2, 6, 10, 14)), ('cat', tube(40, 36, None, None)),
                 ('dog', tube(20, 20, 20, 20, y=25))),
           video(2, ('dog', tube(5, 9, 13, 17)))]


def test_perfect_predictions_give_one_everywhere():
    result = evaluate_tubes(RECORDS, perfect(RECORDS))
    for category in result.categories:
        assert (category.ap, category.ap50, category.ap75, category.ar10, category.small) == (1,) * 5
        assert math.isnan(category.medium) and math.isnan(category.large)
    assert result['dog'].ar1 == 1 and result['cat'].ar1 == 0.5       # of two cats one prediction can find one
    assert str(result).splitlines()[-1].split()[:3] == ['mean', '2', '4']
    with pytest.raises(KeyError, match='only cat, dog'):
        result['cow']


def test_shuffled_frames_do_not():
    shuffled = [replace(p, rles=[p.rles[t] for t in (2, 3, 0, 1)]) for p in perfect(RECORDS)]
    result = evaluate_tubes(RECORDS, shuffled)
    assert result['cat'].ap == 0 and result['dog'].ap50 < 1


def test_a_video_is_judged_as_a_whole_and_a_missing_frame_adds_to_the_union():
    truth, half = [tube(0, 0, 0, 0)], [tube(0, 0, None, None)]
    for a, b in ((truth, half), (half, truth)):
        areas = frame_areas(a, 4), frame_areas(b, 4)
        assert tube_ious(frame_intersections(a, b, areas[0]).sum(0), *areas) == 0.5
    records = [video(1, ('cat', truth[0]))]
    assert evaluate_tubes(records, [TubePrediction(1, 'cat', 1, half[0])])['cat'].ap50 == 1      # exactly at 0.5
    worse = tube(0, None, None, None)
    assert evaluate_tubes(records, [TubePrediction(1, 'cat', 1, worse)])['cat'].ap50 == 0
    none = [tube(None, None, None, None)]
    areas = frame_areas(none, 4)
    assert tube_ious(frame_intersections(none, none, areas).sum(0), areas, areas) == 0


def test_a_video_may_have_hundreds_of_frames():
    rles = tube(*range(2, 32)) * 10
    assert (frame_areas([rles], 300) == 100).all()


def test_overlaps_count_pixels_exactly():
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 2, *SIZE)) < 0.5, rng.random((4, 2, *SIZE)) < 0.3
    coded = [[[rle(m) for m in one] for one in tubes] for tubes in (a, b)]
    common = frame_intersections(*coded, frame_areas(coded[0], 2))
    assert np.array_equal(common, (a[:, None] & b).sum((3, 4)).transpose(2, 0, 1))


def test_without_predictions_all_is_zero():
    mean = evaluate_tubes(RECORDS, []).mean
    assert (mean.ap, mean.ap50, mean.ar1, mean.ar10, mean.small) == (0,) * 5
    assert math.isnan(evaluate_tubes([video(1, frames=3)], []).mean.ap)


def test_of_equal_scores_the_first_goes_first():
    records = [video(1, ('cat', tube(0, 0)))]
    right, wrong = (TubePrediction(1, 'cat', 0.5, tube(x, x)) for x in (0, 30))
    assert evaluate_tubes(records, [right, wrong])['cat'].ap == 1
    assert evaluate_tubes(records, [wrong, right])['cat'].ap == pytest.approx(0.5)
    assert evaluate_tubes(records, [replace(wrong, score=0.4), right])['cat'].ap == 1


def test_limits_hold_for_each_video_and_category():
    records = [video(n, ('cat', tube(0)), ('dog', tube(20))) for n in (1, 2)]
    noise = [TubePrediction(n, 'cat', 0.9, tube(40)) for n in (1, 2) for _ in range(9)]
    assert evaluate_tubes(records, noise + perfect(records, 0.5)).mean.ar10 == 1     # 9 wrong ones and the tenth
    noise += [TubePrediction(1, 'cat', 0.9, tube(40))]
    result = evaluate_tubes(records, noise + perfect(records, 0.5))
    assert result['cat'].ar10 == 0.5 and result['dog'].ar10 == result['dog'].ar1 == 1
    noise += [TubePrediction(1, 'cat', 0.9, tube(40))] * 90
    assert evaluate_tubes(records, noise + perfect(records, 0.5))['cat'].ap < 0.1    # the 101st is not looked at


def test_a_category_that_is_nowhere_labelled_does_not_count():
    surplus = [TubePrediction(1, 'cow', 1.0, tube(0, 0, 0, 0))]
    result = evaluate_tubes(RECORDS, perfect(RECORDS) + surplus)
    assert [c.name for c in result.categories] == ['cat', 'dog'] and result.mean.ap == 1
    assert [c.name for c in evaluate_tubes(RECORDS, [], ['dog', 'cow']).categories] == ['dog']


def test_predictions_of_another_size_are_ignored_where_size_matters():
    big = [rle(square(0, 0, side, LARGE)) for side in (200, 200)]
    small = [rle(square(300, 0, 100, LARGE)) for _ in range(2)]
    records = [video(1, ('cat', big), ('cat', small), size=LARGE)]
    wrong = [TubePrediction(1, 'cat', 0.95, [rle(square(420, 300, 100, LARGE)), None])]
    result = evaluate_tubes(records, wrong + perfect(records))['cat']
    assert result.medium == 1 and result.small == pytest.approx(0.5) and result.ap < 1 and math.isnan(result.large)


def test_the_bounds_belong_to_both_sizes_and_empty_frames_do_not_lower_the_area():
    exact = [rle(square(0, 0, 128, LARGE)), None, rle(np.zeros(LARGE, bool))]
    records = [video(1, ('cat', exact), size=LARGE)]
    result = evaluate_tubes(records, perfect(records))['cat']
    assert result.small == result.medium == 1


def test_where_not_all_is_labelled_surplus_predictions_of_labelled_categories_are_not_charged():
    surplus = [TubePrediction(1, name, 1.0, tube(50, 50, 50, 50)) for name in ('cat', 'dog')]
    strict = evaluate_tubes(RECORDS, surplus + perfect(RECORDS))
    assert strict['cat'].ap < 0.8 and strict['dog'].ap < 0.8
    open_ended = [replace(RECORDS[0], exhaustive=False), RECORDS[1]]
    assert evaluate_tubes(open_ended, surplus + perfect(RECORDS)).mean.ap == 1
    assert evaluate_tubes(open_ended, []).mean.ap == 0               # what is missed still counts
    elsewhere = [TubePrediction(2, 'cat', 1.0, tube(50, 50, 50, 50))]
    not_labelled = [RECORDS[0], replace(RECORDS[1], exhaustive=False)]
    assert evaluate_tubes(not_labelled, elsewhere + perfect(RECORDS))['cat'].ap < 0.8


def test_a_video_annotated_for_persons_counts_for_persons_only():
    both = ('person', tube(0, 0)), ('cat', tube(20, 20))
    records = [video(1, *both, annotated='person'), video(2, *both)]
    surplus = [TubePrediction(1, name, 1.0, tube(50, 50)) for name in ('person', 'cat')]
    result = evaluate_tubes(records, surplus + perfect(records))
    assert result['cat'].ap == 1 and result['cat'].tracks == result['cat'].videos == 1
    assert result['person'].ap < 1 and result['person'].tracks == 2


def test_a_crowd_is_neither_found_nor_missed():
    records = [video(1, ('cat', tube(0, 0)), ('cat', tube(30, 30)))]
    records[0].tracks[1].crowd = True
    answers = perfect(records)
    assert evaluate_tubes(records, answers)['cat'].ap == evaluate_tubes(records, answers[:1])['cat'].ap == 1
    assert evaluate_tubes(records, answers)['cat'].tracks == 1


@pytest.mark.parametrize(('change', 'words'), [
    ({'score': math.nan}, 'has the score nan'), ({'video_id': 9}, 'of video 9, which is not in the data'),
    ({'rles': tube(1, 1)}, 'has 2 frames, its video 2 has 4'),
    ({'rles': [rle(np.ones((4, 5), bool))] + [None] * 3}, r'size \[4, 5\], its video 2 has \[40, 60\]')])
def test_a_prediction_that_does_not_fit_is_named(change, words):
    with pytest.raises(ValueError, match=f'prediction 3 .*{words}'):
        evaluate_tubes(RECORDS, [*perfect(RECORDS)[:3], replace(perfect(RECORDS)[3], **change)])
