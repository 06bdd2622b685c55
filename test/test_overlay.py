"""The overlay marks what was found, in colours that stay, and leaves the rest of the picture as it is."""

import numpy as np
import pytest

pytest.importorskip('cv2')

from tar_vis_core.instances import Instance, TrackStatus, encode_runs
from tar_vis_core.overlay import draw_overlay, track_colour


def disc(track_id: int, x: int, y: int, size: int, score: float = 0.9, status=TrackStatus.TRACKED) -> Instance:
    rows, cols = np.mgrid[:size, :size] - (size - 1) / 2
    mask = rows ** 2 + cols ** 2 <= (size / 2) ** 2
    return Instance(track_id=track_id, status=status, age=1, class_id=0, class_name='person', score=score,
                    box=(x, y, size, size), area=int(mask.sum()), runs=encode_runs(mask))


def grey(height=480, width=640) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def test_only_the_instance_changes_and_the_input_stays():
    picture, before = grey(), grey()
    out = draw_overlay(picture, [disc(3, 200, 150, 120)], labels=False)
    np.testing.assert_array_equal(picture, before)
    changed = np.argwhere((out != before).any(2))
    assert changed.min(0).tolist() >= [147, 197] and changed.max(0).tolist() <= [273, 323]
    inside = out[210, 260].astype(int) - 90
    towards = np.array(track_colour(3)) - 90
    np.testing.assert_allclose(inside, 0.45 * towards, atol=1)


def test_colours_are_stable_and_neighbours_differ():
    assert track_colour(7) == track_colour(7)
    colours = np.array([track_colour(i) for i in range(1, 400)], float)
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 100
    assert len({tuple(c) for c in colours[:60]}) == 60


def test_the_better_score_is_on_top():
    out = draw_overlay(grey(), [disc(1, 100, 100, 80, 0.9), disc(2, 100, 100, 80, 0.4)], opacity=1.0, labels=False)
    assert tuple(out[140, 140]) == track_colour(1)


@pytest.mark.parametrize('shape', [(480, 640), (48, 64), (1, 1), (1080, 1920), (7, 900)])
def test_any_image_size(shape):
    whole = np.ones(shape, bool)
    instance = Instance(track_id=1, status=TrackStatus.NEW, age=0, class_id=0, class_name='dining table', score=1.0,
                        box=(0, 0, shape[1], shape[0]), area=whole.size, runs=encode_runs(whole))
    assert draw_overlay(grey(*shape), [instance]).shape == (*shape, 3)


def test_labels_do_not_hide_each_other():
    crowd = [disc(n, 300, 200, 40, n / 10) for n in range(1, 5)]
    alone = [int((draw_overlay(grey(), [i]) == track_colour(i.track_id)).all(2).sum()) for i in crowd]
    out = draw_overlay(grey(), crowd)
    for instance, pixels in zip(crowd, alone, strict=True):
        assert (out == track_colour(instance.track_id)).all(2).sum() > 0.6 * pixels


def test_lost_tracks_are_drawn_only_when_asked():
    gone = disc(5, 100, 100, 60, status=TrackStatus.LOST)
    np.testing.assert_array_equal(draw_overlay(grey(), [gone]), grey())
    assert (draw_overlay(grey(), [gone], lost=True) != grey()).any()
