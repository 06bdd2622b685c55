"""Instances as images of numbers: the better score is on top, LOST ones are left out, and the images agree."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy')
from test_messages import HEIGHT, WIDTH, frame, instance, lost, random_masks

from tar_vis_core.instances import Instance
from tar_vis_core.models.class_sets import CLASS_SETS, YOUTUBE_VIS_2019
from tar_vis_ros.conversions.label_images import (
    BACKGROUND,
    IMAGES,
    KEEPS_STILL,
    Moving,
    class_ids,
    label_image,
    semantic_confidence,
    semantic_mask,
    static_mask,
)


def box_mask(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[rows, columns] = True
    return mask


def of_class(mask: np.ndarray, class_id: int, class_name: str, score: float = 0.5) -> Instance:
    return replace(instance(mask, score=score), class_id=class_id, class_name=class_name)


LEFT, RIGHT = box_mask(slice(10, 20), slice(5, 30)), box_mask(slice(10, 20), slice(20, 40))


def test_label_image_shows_the_better_score_and_no_lost_ones():
    instances = [instance(RIGHT, 9, 0.9), instance(LEFT, 4, 0.3), lost(6)]
    labels = label_image(instances, HEIGHT, WIDTH)
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, np.where(RIGHT, 9, np.where(LEFT, 4, 0)))
    np.testing.assert_array_equal(label_image(instances[::-1], HEIGHT, WIDTH), labels)


def test_label_of_a_high_track_id_is_not_background():
    mask = np.ones((HEIGHT, WIDTH), bool)
    labels = [int(label_image([instance(mask, i)], HEIGHT, WIDTH)[0, 0]) for i in (65535, 65536, 131071)]
    assert labels == [65535, 1, 1]


def test_the_first_class_is_not_background_and_confidence_is_of_the_same_instance():
    instances = [of_class(LEFT, 0, 'person', 0.25), of_class(RIGHT, 79, 'toothbrush', 1.0), lost(3)]
    mask, confidence = (made(instances, HEIGHT, WIDTH) for made in (semantic_mask, semantic_confidence))
    assert mask.dtype == confidence.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.where(RIGHT, 79, np.where(LEFT, 0, BACKGROUND)))
    np.testing.assert_array_equal(confidence, np.where(RIGHT, 255, np.where(LEFT, 64, 0)))


def test_all_images_agree_on_who_is_on_top():
    instances = [of_class(mask, n, f'class {n}', score=0.2 + (11 - n) / 20) for n, mask in enumerate(random_masks(12))]
    instances = [replace(one, track_id=one.class_id + 1) for one in instances]
    labels = label_image(instances, HEIGHT, WIDTH).astype(int)
    assert len(np.unique(labels)) > 6
    np.testing.assert_array_equal(semantic_mask(instances, HEIGHT, WIDTH), np.where(labels, labels - 1, BACKGROUND))
    np.testing.assert_array_equal(semantic_confidence(instances, HEIGHT, WIDTH),
                                  np.where(labels, np.round(255 * (0.2 + (12 - labels) / 20)), 0))
    np.testing.assert_array_equal(static_mask(instances, HEIGHT, WIDTH, Moving()), np.where(labels, 0, 255))


def test_a_frame_with_nobody_is_background_everywhere():
    found = {name: np.unique(pixels(frame([]), Moving(margin_px=5))).tolist() for name, (_, pixels) in IMAGES.items()}
    assert found == {'label_image': [0], 'semantic_mask': [BACKGROUND], 'semantic_confidence': [0],
                     'static_mask': [255]}


def test_a_class_beyond_eight_bits_is_refused_not_folded():
    with pytest.raises(ValueError, match=r'class id 255 \(yak\) does not fit a semantic mask'):
        semantic_mask([of_class(LEFT, BACKGROUND, 'yak')], HEIGHT, WIDTH)


@pytest.mark.parametrize('names', CLASS_SETS.values(), ids=CLASS_SETS)
def test_every_class_set_fits(names):
    ids = class_ids(names)
    assert ids.pop(BACKGROUND) == 'background' and list(ids.values()) == list(names)


@pytest.mark.parametrize('margin', [0, 1, 7])
def test_the_margin_is_as_wide_as_it_says_and_only_around_what_moves(margin):
    person, couch = of_class(LEFT, 0, 'person'), of_class(box_mask(slice(30, 40), slice(5, 30)), 57, 'couch')
    mask = static_mask([person, couch], HEIGHT, WIDTH, Moving(margin_px=margin))
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[10 - margin:20 + margin, max(0, 5 - margin):30 + margin] = 0
    np.testing.assert_array_equal(mask, expected)
    assert (static_mask([couch], HEIGHT, WIDTH, Moving(margin_px=margin)) == 255).all()


def test_classes_that_are_named_take_the_place_of_the_default():
    person, couch = of_class(LEFT, 0, 'person'), of_class(RIGHT, 57, 'couch', 0.9)
    mask = static_mask([person, couch], HEIGHT, WIDTH, Moving(('couch',)))
    np.testing.assert_array_equal(mask, np.where(RIGHT, 0, 255))
    Moving(('couch',)).check(('person', 'couch'))
    with pytest.raises(ValueError, match=r"moving_classes: unknown class 'coach' \(did you mean 'couch'\?\)"):
        Moving(('person', 'coach')).check(('person', 'couch'))


def test_what_nobody_calls_furniture_moves():
    assert {'chair', 'couch', 'tv', 'stop sign'} <= KEEPS_STILL
    assert not KEEPS_STILL & {'person', 'dog', 'car', 'backpack', 'sports ball', *YOUTUBE_VIS_2019}
