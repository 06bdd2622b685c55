"""Identity measures on cases worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tubes import perfect, tube, video

from tar_vis_core.evaluation.identity_measures import OVERLAPS, identity_measures
from tar_vis_core.evaluation.tubes import TubePrediction

LEFT, RIGHT = tube(0, 0, 0, 0), tube(30, 30, 30, 30)
RECORDS = [video(1, ('cat', LEFT), ('cat', RIGHT))]


def predicted(*tubes, score=0.9, category='cat', number=1):
    return [TubePrediction(number, category, score, rles) for rles in tubes]


def measured(*tubes, records=RECORDS, **more):
    return identity_measures(records, predicted(*tubes), **more)


def test_perfect_tubes_give_one():
    result = identity_measures(RECORDS, perfect(RECORDS))
    assert (result.switches, result.idf1, result.hota, result.detection, result.association) == (0, 1, 1, 1, 1)
    assert (result.objects, result.masks, result.predicted) == (2, 8, 8)
    assert str(result).endswith('0 identity switches, HOTA 100.0, DetA 100.0, AssA 100.0, IDF1 100.0')


def test_without_tubes_all_is_zero_and_without_objects_nothing_is_known():
    result = measured()
    assert (result.switches, result.idf1, result.hota, result.predicted) == (0, 0, 0, 0)
    assert math.isnan(identity_measures([video(1, frames=2)], []).hota)


def test_a_track_that_breaks_in_the_middle():
    result = measured(LEFT[:2] + [None] * 2, [None] * 2 + LEFT[2:], RIGHT)
    assert result.switches == 1
    assert result.idf1 == pytest.approx(2 * 6 / 16)         # half of one object goes with another tube
    assert result.detection == 1
    # its four masks have an association of 2/4 each, the other object's four of 1
    assert result.association == pytest.approx((4 * 0.5 + 4 * 1) / 8)
    assert result.hota == pytest.approx(np.sqrt(0.75))


def test_two_objects_that_swap_their_tubes():
    result = measured(LEFT[:2] + RIGHT[2:], RIGHT[:2] + LEFT[2:])
    assert result.switches == 2 and result.idf1 == pytest.approx(0.5) and result.detection == 1
    assert result.association == pytest.approx(2 / (4 + 4 - 2)) and result.hota == pytest.approx(np.sqrt(1 / 3))


def test_an_object_that_comes_back_under_its_old_identity_has_not_switched():
    gap = [LEFT[0], None, None, LEFT[3]]
    assert measured(gap, RIGHT).switches == 0
    other = [LEFT[0], None, None, None], [None, None, None, LEFT[3]]
    assert measured(*other, RIGHT).switches == 1


def test_missed_and_surplus_masks_cost_detection():
    half = measured(LEFT)
    assert (half.detection, half.association, half.switches) == (0.5, 1, 0) and half.idf1 == pytest.approx(2 * 4 / 12)
    surplus = measured(LEFT, RIGHT, tube(0, 0, 0, 0, y=28))
    assert surplus.detection == pytest.approx(8 / 12) and surplus.idf1 == pytest.approx(2 * 8 / 20)


def test_a_mask_counts_up_to_its_overlap():
    shifted = tube(5, 5, 5, 5)                              # IoU 50 / 150
    result = measured(shifted, RIGHT)
    low = (OVERLAPS <= 1 / 3).sum()
    assert result.detection == pytest.approx((low + (len(OVERLAPS) - low) * 4 / 12) / len(OVERLAPS))
    assert result.idf1 == pytest.approx(2 * 4 / 16)


def test_a_tube_that_still_fits_is_kept_though_another_fits_better():
    truth = [video(1, ('cat', tube(10, 10, 10)))]
    close, exact = tube(10, 12, 12), tube(None, 10, 10)     # IoU 80 / 120 is enough
    assert measured(close, exact, records=truth).switches == 0
    assert measured(tube(10, 20, 20), exact, records=truth).switches == 1


def test_tubes_below_the_least_score_take_no_part():
    weak = predicted(tube(0, 0, 0, 0, y=28), score=0.4)
    assert identity_measures(RECORDS, perfect(RECORDS) + weak).hota == 1
    assert identity_measures(RECORDS, perfect(RECORDS) + weak, min_score=0.3).hota < 1


def test_categories_and_videos_are_kept_apart():
    records = [*RECORDS, video(2, ('dog', LEFT))]
    wrong = predicted(LEFT, category='dog') + predicted(RIGHT, number=2, category='dog')
    result = identity_measures(records, perfect(RECORDS) + wrong)
    assert result.detection == pytest.approx(8 / 20) and result.association == 1
    assert identity_measures(records, perfect(RECORDS) + wrong, categories=['cat']).hota == 1


def test_what_is_not_labelled_is_not_charged():
    surplus = predicted(tube(0, 0, 0, 0, y=28))
    for records in ([replace(RECORDS[0], exhaustive=False)],
                    [*RECORDS, video(2, ('person', LEFT), annotated='person')]):
        more = surplus if len(records) == 1 else predicted(LEFT, number=2)
        result = identity_measures(records, perfect(records) + more)
        assert result.hota == result.idf1 == 1
        assert identity_measures(records, more).hota == 0
    switching = measured(LEFT[:2] + RIGHT[2:], RIGHT[:2] + LEFT[2:], records=[replace(RECORDS[0], exhaustive=False)])
    assert switching.switches == 2 and switching.hota == pytest.approx(np.sqrt(1 / 3))
