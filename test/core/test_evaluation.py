"""Mask AP: perfect answers score 1, wrong ones less, and nothing is charged where the truth is not known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH, ellipse, rle_of, write_coco
from pycocotools import mask as coco_mask

from tar_vis_core.data.coco import ImageRecord, load_coco
from tar_vis_core.evaluation.coco_ap import CategoryAP, CocoResult, Prediction, evaluate


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
