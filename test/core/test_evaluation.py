"""Mask AP: perfect answers score 1, wrong ones less, and nothing is charged where the truth is not known."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH, ellipse, rle_of, write_coco
from pycocotools import mask as coco_mask

from tar_vis_core.data.coco import ImageRecord, load_coco
from tar_vis_core.evaluation.coco_ap import CategoryAP, CocoResult, Prediction, evaluate
from tar_vis_core.evaluation.reported import MANY, as_table, reported


def answers(records: list[ImageRecord], change=lambda *row: [row]) -> list[list[Prediction]]:
    """The truth of each image as predictions, changed by ``change(score, name, mask)``."""
    return [[new for a in record.annotations if not a.crowd
             for new in change(0.9, a.category, coco_mask.decode(a.rle).astype(bool))] for record in records]


def run(path: Path, change=lambda *row: [row], **options):
    records = load_coco(path)
    return evaluate(records, answers(records, change), **options)


def of(result: CocoResult, name: str = 'person') -> CategoryAP:
    """The figures of one category."""
    return next(category for category in result.categories if category.name == name)


def test_perfect_answers_score_one(tmp_path):
    result = run(write_coco(tmp_path), categories=('person', 'voc'))
    assert [c.name for c in result.categories] == ['person', 'cat']
    for category in result.categories:
        assert category.images == category.instances == 3
        assert (category.ap, category.ap50, category.ap75, category.recall) == pytest.approx((1, 1, 1, 1))
        assert math.isnan(category.large), 'no instance is that large'
    row = str(result).splitlines()[1]
    assert ' '.join(row.split()) == 'person 3 3 100.0 100.0 100.0 - 100.0 - 100.0'


def test_no_answers_score_zero(tmp_path):
    person = of(run(write_coco(tmp_path), lambda *row: []))
    assert person.ap == 0.0 and person.recall == 0.0
    assert person.recall50_medium == 0.0


def test_a_half_right_mask_counts_at_low_overlap_only(tmp_path):
    def shave(score, name, mask):
        columns = np.flatnonzero(mask.any(0))
        mask = mask.copy()
        mask[:, columns[int(len(columns) * 0.7)]:] = False
        return [(score, name, mask)]
    person = of(run(write_coco(tmp_path), shave))
    assert person.ap50 == pytest.approx(1.0) and person.ap75 == 0.0 and 0 < person.ap < 1
    found = {person.recall50_small, person.recall50_medium, person.recall50_large}
    assert {share for share in found if not math.isnan(share)} == {1.0}, 'found at one half, however inexact'


def test_a_confident_false_answer_costs_precision(tmp_path):
    elsewhere = np.zeros((HEIGHT, WIDTH), bool)
    elsewhere[:8, :8] = True
    person = of(run(write_coco(tmp_path), lambda *row: [row, (0.99, 'person', elsewhere)]))
    assert 0.2 < person.ap50 < 0.8
    quiet = of(run(write_coco(tmp_path), lambda *row: [row, (0.1, 'person', elsewhere)]))
    assert quiet.ap50 == 1.0


def test_answers_inside_a_crowd_are_not_charged(tmp_path):
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[:20, :40] = True
    crowd = {'id': 99, 'image_id': 1, 'category_id': 1, 'iscrowd': 1, 'segmentation': rle_of(region)}
    records = load_coco(write_coco(tmp_path, extra=(crowd,)))

    def ap_with(false_answer: np.ndarray) -> float:
        first, *others = answers(records)
        return of(evaluate(records, [[*first, (0.99, 'person', false_answer)], *others])).ap

    assert ap_with(ellipse(10, 8, 5, 4)) == pytest.approx(1.0)
    assert ap_with(ellipse(60, 80, 5, 4)) == pytest.approx(0.75, abs=0.005)


def test_images_that_label_only_persons_count_for_persons_only(tmp_path):
    path = write_coco(tmp_path, annotated='person')
    result = run(path, categories=('person', 'cat'))
    assert of(result).ap == pytest.approx(1.0)
    assert of(result, 'cat').images == 0 and math.isnan(of(result, 'cat').ap)
    assert [c.name for c in run(path, categories='voc').categories] == ['person']


def test_pascal_names_are_understood_and_other_names_left_out(tmp_path):
    tv = {'id': 99, 'image_id': 1, 'category_id': 72, 'iscrowd': 0, 'segmentation': rle_of(ellipse(60, 80, 12, 9))}
    path = write_coco(tmp_path, extra=(tv,))

    def rename(score, name, mask):
        return [(score, {'tv': 'tvmonitor', 'cat': 'no such name'}.get(name, name), mask)]
    result = run(path, rename, categories=('tvmonitor', 'cat'))
    assert of(result, 'tv').ap == pytest.approx(1.0) and of(result, 'cat').ap == 0.0


def test_a_mask_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'shape \(4, 5\), the image is \(96, 128\)'):
        run(write_coco(tmp_path), lambda score, name, mask: [(score, name, np.ones((4, 5), bool))])


# What is reported at the threshold

def test_perfect_answers_are_right_and_find_every_size(tmp_path):
    large = {'id': 99, 'image_id': 1, 'category_id': 72, 'iscrowd': 0, 'segmentation': rle_of(np.ones((96, 128), bool))}
    records = load_coco(write_coco(tmp_path, extra=(large,)))
    everything = reported(records, answers(records))
    assert (everything.images, everything.answers, everything.right) == (3, 7, 7)
    assert everything.found == everything.instances == (3, 3, 1)
    person = reported(records, answers(records), 'person')
    assert (person.answers, person.right, person.instances) == (3, 3, (0, 3, 0))
    assert ' '.join(as_table([person]).splitlines()[1].split()) == 'person 3 3 100.0 % 0 of 0 3 of 3 0 of 0'


@pytest.mark.parametrize(('area', 'size'), [(1024.1, 1), (1023.9, 0), (9216.1, 2), (None, 1), (0, 1), (-1, 1), ('', 1)])
def test_sizes_are_those_that_the_file_gives(tmp_path, area, size):
    """Polygons become whole pixels, so a mask's own area may lie on the other side of a bound."""
    path = write_coco(tmp_path, images=1)
    content = json.loads(path.read_text())
    for entry in content['annotations']:
        entry['area'] = area
    path.write_text(json.dumps(content))
    records = load_coco(path)
    assert reported(records, answers(records), 'person').found == tuple(int(size == k) for k in range(3))
    person = of(evaluate(records, answers(records)))
    recalls = person.recall50_small, person.recall50_medium, person.recall50_large
    assert [math.isnan(recall) for recall in recalls] == [size != k for k in range(3)]


def test_an_instance_makes_one_answer_right(tmp_path):
    records = load_coco(write_coco(tmp_path))
    twice = answers(records, lambda *row: [row, row])
    assert (reported(records, twice).answers, reported(records, twice).right) == (12, 6)


def test_a_second_answer_for_an_instance_is_wrong_also_where_others_are_not_found(tmp_path):
    second = ellipse(118, 12, 8, 8)
    other = {'id': 99, 'image_id': 1, 'category_id': 1, 'iscrowd': 0, 'segmentation': rle_of(second)}
    records = load_coco(write_coco(tmp_path, extra=(other,)))[:1]
    mask = next(mask for _, name, mask in answers(records)[0] if name == 'person')
    assert not (mask & second).any()
    result = reported(records, [[(0.9, 'person', mask), (0.8, 'person', mask)]], 'person')
    assert (result.answers, result.right, result.found, result.instances) == (2, 1, (0, 1, 0), (1, 1, 0))


@pytest.mark.parametrize('change', [
    lambda score, name, mask: [(score, 'cat' if name == 'person' else 'person', mask)],
    lambda score, name, mask: [(score, name, np.roll(mask, 64, 1))]], ids=['another class', 'another place'])
def test_answers_of_another_class_or_place_are_wrong_and_find_nothing(tmp_path, change):
    records = load_coco(write_coco(tmp_path))
    result = reported(records, answers(records, change))
    assert (result.answers, result.right, result.found) == (6, 0, (0, 0, 0))


def test_the_order_of_answers_does_not_matter(tmp_path):
    records = load_coco(write_coco(tmp_path))
    rng = random.Random(0)
    said = [[(rng.random(), name, np.roll(mask, rng.randrange(30), 1)) for _, name, mask in own for _ in range(4)]
            for own in answers(records)]
    before = reported(records, said)
    assert 0 < before.right < before.answers
    for own in said:
        rng.shuffle(own)
    assert reported(records, said) == before


def test_nothing_is_charged_where_labels_are_missing(tmp_path):
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[70:, :] = True
    crowd = {'id': 99, 'image_id': 1, 'category_id': 1, 'iscrowd': 1, 'segmentation': rle_of(region)}
    records = load_coco(write_coco(tmp_path / 'crowd', extra=(crowd,)))
    inside = [[(0.9, 'person', ellipse(60, 84, 6, 4))] if record is records[0] else [] for record in records]
    assert reported(records, inside).answers == 0
    records[0].annotations.reverse()        # the crowd is the first
    assert (reported(records, inside).answers, reported(records, inside).right) == (0, 0)
    elsewhere = [[], *inside[:1], []]
    assert reported(records, elsewhere).answers == 1, 'the crowd is in the first picture'

    def many(count: int):
        row = [{'id': 100 + n, 'image_id': 1, 'category_id': 1, 'iscrowd': 0,
                'segmentation': rle_of(ellipse(5 + 9 * n, 90, 3, 3))} for n in range(count)]
        return load_coco(write_coco(tmp_path / str(count), extra=tuple(row)))
    false = [[(0.9, 'person', ellipse(100, 10, 6, 4)), (0.9, 'cat', ellipse(100, 30, 6, 4))], [], []]
    assert reported(many(MANY - 2), false).answers == 2, 'one person less'
    assert reported(many(MANY - 1), false).answers == 1, 'the cat'
    persons_only = load_coco(write_coco(tmp_path / 'persons', annotated='person'))
    assert reported(persons_only, false).images == 0 and reported(persons_only, false, 'person').answers == 1
