"""The overlay marks what was found, in colours that stay, and leaves the rest of the picture as it is."""

import numpy as np
import pytest

pytest.importorskip('cv2')

from tar_vis_core.instances import FrameResult, Instance, RoutingTrace, StageTimes, TrackStatus, encode_runs
from tar_vis_core.media.overlay import OUT_OF_SIGHT, Trails, draw_overlay, mask_centre, track_colour


def disc(track_id: int, x: int, y: int, size: int, score: float = 0.9, status=TrackStatus.TRACKED) -> Instance:
    rows, cols = np.mgrid[:size, :size] - (size - 1) / 2
    mask = rows ** 2 + cols ** 2 <= (size / 2) ** 2
    return Instance(track_id=track_id, status=status, age=1, class_id=0, class_name='person', score=score,
                    box=(x, y, size, size), area=int(mask.sum()), runs=encode_runs(mask))


def grey(height=480, width=640) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def test_only_the_instance_changes_and_the_input_stays():
    picture, before = grey(), grey()
    out = draw_overlay(picture, [disc(3, 200, 150, 120)])
    np.testing.assert_array_equal(picture, before)
    changed = (out != before).any(2)
    changed[147:274, 197:324] = False
    assert {row for row, _ in np.argwhere(changed)} <= set(range(120, 151)), 'else only the label above'
    inside = out[210, 260].astype(int) - 90
    towards = np.array(track_colour(3)) - 90
    np.testing.assert_allclose(inside, 0.45 * towards, atol=1)


def test_colours_are_stable_and_neighbours_differ():
    assert track_colour(7) == track_colour(7)
    colours = np.array([track_colour(i) for i in range(1, 400)], float)
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 100
    assert len({tuple(c) for c in colours[:60]}) == 60


def test_the_better_score_is_on_top():
    out = draw_overlay(grey(), [disc(1, 100, 100, 80, 0.9), disc(2, 100, 100, 80, 0.4)])
    below = 0.55 * 90 + 0.45 * np.array(track_colour(2))
    np.testing.assert_allclose(out[140, 140], 0.55 * below + 0.45 * np.array(track_colour(1)), atol=1)


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


def test_lost_tracks_are_not_drawn():
    gone = disc(5, 100, 100, 60, status=TrackStatus.LOST)
    np.testing.assert_array_equal(draw_overlay(grey(), [gone]), grey())


def frame(index: int, *instances: Instance, epoch: int = 0) -> FrameResult:
    return FrameResult(480, 640, index, epoch, list(instances), RoutingTrace((True,), np.ones(1, np.float32)), 0.0,
                       StageTimes(0, 0, 0, 0, 0, 0))


def test_a_mask_centre_is_the_mean_of_its_pixels():
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (1, 9), (9, 1), (20, 30), (31, 7)] * 4:
        mask = rng.random(shape) < 0.5
        mask.flat[rng.integers(mask.size)] = True
        instance = Instance(1, TrackStatus.TRACKED, 1, 0, 'person', 1.0, (40, 50, *shape[::-1]), int(mask.sum()),
                            encode_runs(mask))
        rows, columns = np.nonzero(mask)
        assert mask_centre(instance) == pytest.approx((40 + columns.mean(), 50 + rows.mean()))


def test_the_centre_of_a_large_mask_does_not_overflow():
    whole = np.ones((4320, 7680), bool)
    instance = Instance(1, TrackStatus.TRACKED, 1, 0, 'sky', 1.0, (0, 0, 7680, 4320), whole.size, encode_runs(whole))
    assert mask_centre(instance) == pytest.approx((7679 / 2, 4319 / 2))


def test_a_lost_track_has_no_centre():
    gone = Instance(5, TrackStatus.LOST, 1, 0, 'person', 0.5, (0, 0, 4, 4), 0, np.array([16], np.uint32))
    with pytest.raises(ValueError, match='track 5'):
        mask_centre(gone)


def test_a_trail_is_the_path_of_the_mask_centre_over_the_last_frames():
    trails = Trails(frames=3)
    for index in range(5):
        paths = trails.follow(frame(index, disc(7, 100 + 10 * index, 200, 21)))
    assert paths == {7: [[(130, 210), (140, 210), (150, 210)]]}


def test_a_trail_begins_anew_where_an_id_jumps():
    trails = Trails()
    for index, x in enumerate((0, 20, 300, 310)):
        paths = trails.follow(frame(index, disc(1, x, 0, 21)))
    assert paths == {1: [[(310, 10), (320, 10)]]}


def test_a_trail_has_a_gap_where_frames_were_missed_and_ends_with_its_track():
    trails, gone = Trails(frames=4), {
        track: Instance(track, TrackStatus.LOST, 1, 0, 'person', 0.5, (0, 0, 4, 4), 0, np.array([16], np.uint32))
        for track in (1, 2)}
    trails.follow(frame(0, disc(1, 0, 0, 21), disc(2, 300, 0, 21)))
    trails.follow(frame(1, disc(1, 20, 0, 21), gone[2]))
    paths = trails.follow(frame(3, disc(1, 40, 0, 21), gone[2]))
    assert paths == {1: [[(10, 10), (30, 10)], [(50, 10)]], 2: [[(310, 10)]]}
    assert trails.follow(frame(4, gone[1])) == {1: [[(30, 10)], [(50, 10)]]}
    assert trails.follow(frame(5)) == {}
    assert trails.follow(frame(6, gone[1])) == {}


def test_a_trail_of_what_is_long_out_of_sight_is_not_drawn_before_it_comes_back():
    trails, no_pixels = Trails(), np.array([16], np.uint32)
    gone = Instance(1, TrackStatus.LOST, 1, 0, 'person', 0.5, (0, 0, 4, 4), 0, no_pixels)
    trails.follow(frame(0, disc(1, 0, 0, 21)))
    drawn = [bool(trails.follow(frame(index, gone))) for index in range(1, 60)]
    assert drawn == [True] * OUT_OF_SIGHT + [False] * (59 - OUT_OF_SIGHT)
    assert trails.follow(frame(60, disc(1, 30, 0, 21))) == {1: [[(40, 10)]]}


def test_trails_start_anew_with_the_tracks():
    trails = Trails()
    trails.follow(frame(5, disc(1, 0, 0, 21)))
    assert trails.follow(frame(6, disc(1, 300, 0, 21), epoch=1)) == {1: [[(310, 10)]]}


def test_trails_do_not_grow_with_time():
    trails = Trails(frames=5)
    for index in range(500):    # every track is seen once
        kept = trails.follow(frame(index, disc(index, 0, 0, 5), disc(10_000 + index, 9, 0, 5)))
        assert sum(len(path) for paths in kept.values() for path in paths) <= 10
    assert len(trails._centres) <= 10


def test_trails_are_drawn_in_the_colour_of_their_track_and_only_there():
    paths = {3: [[(100, 100), (200, 100)], [(200, 300)]]}
    out = draw_overlay(grey(), [], trails=paths)
    assert tuple(out[100, 150]) == track_colour(3)
    changed = np.argwhere((out != grey()).any(2))
    assert ((np.abs(changed - [100, 150]) <= [6, 56]).all(1) | (np.abs(changed - [300, 200]) <= 6).all(1)).all()
    np.testing.assert_array_equal(draw_overlay(grey(), [], trails={}), grey())
