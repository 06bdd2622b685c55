import pickle

import numpy as np
import pytest
from moving_people import HEIGHT, WIDTH, Person, scene

from tar_vis_core.instances import TrackStatus
from tar_vis_core.tracking.identity import MAX_LOST_TRACKS, IdentityTracker

SLOTS = np.arange(50)
NAMES = ('person', 'dog', 'cat')


def see(tracker, *people, slots=SLOTS, elapsed=0.1, new_score=0.5, most=20, **how):
    """One frame; the instances reported."""
    tracks = tracker.update(scene(*people, **how), slots, new_score, most, elapsed, HEIGHT, WIDTH)
    return [tracker.instance(track, status, NAMES) for track, status in tracks]


def ids(instances, lost=False):
    return {i.track_id for i in instances if (i.status == TrackStatus.LOST) == lost}


def id_at(instances, x):
    """The id in sight whose box holds column ``x``, nearest to its centre."""
    visible = [i for i in instances if i.status != TrackStatus.LOST]
    return min(visible, key=lambda i: abs(i.box[0] + i.box[2] / 2 - x)).track_id


def test_a_first_sight_is_new_then_tracked_with_rising_age():
    tracker = IdentityTracker()
    seen = [see(tracker, Person((200 + 5 * k, 240)))[0] for k in range(4)]
    assert [s.status for s in seen] == [TrackStatus.NEW] + [TrackStatus.TRACKED] * 3
    assert [s.age for s in seen] == [0, 1, 2, 3]
    assert {s.track_id for s in seen} == {1}


@pytest.mark.parametrize('step', [4, 12, 30, 48])
@pytest.mark.parametrize(('looks', 'heights'), [((1, 2), (240, 240)), ((1, 1), (240, 240)), ((1, 1), (225, 255))])
def test_crossing_persons_keep_their_ids(step, looks, heights):
    tracker = IdentityTracker()
    left, right = 60, 580
    first = see(tracker, Person((left, heights[0]), slot=1, look=looks[0]),
                Person((right, heights[1]), slot=2, look=looks[1]))
    a, b = id_at(first, left), id_at(first, right)
    while left < 580:
        left, right = left + step, right - step
        # the slot stays with the place, not with the person
        order = (1, 2) if left < right else (2, 1)
        seen = see(tracker, Person((left, heights[0]), slot=order[0], look=looks[0]),
                   Person((right, heights[1]), slot=order[1], look=looks[1]))
    assert (id_at(seen, left), id_at(seen, right)) == (a, b)
    assert ids(seen) | ids(seen, lost=True) == {a, b}


@pytest.mark.parametrize('step', [6, 14, 30])
def test_a_person_who_walks_behind_a_standing_one_comes_out_with_the_same_id(step):
    tracker = IdentityTracker()
    for x in range(60, 600, step):
        seen = see(tracker, Person((x, 240), look=1), Person((320, 250), size=(110, 300), look=1))
        if x == 60:
            walker, standing = id_at(seen, x), id_at(seen, 320)
    assert (id_at(seen, x), id_at(seen, 320)) == (walker, standing)
    assert ids(seen) == {walker, standing}


@pytest.mark.parametrize('share', [0.3, 0.6, -0.6])
def test_a_jump_of_most_of_the_width_keeps_the_id_from_the_first_step(share):
    tracker = IdentityTracker()
    for k in range(6):
        seen = see(tracker, Person((320 + 80 * share * k, 240), slot=k), elapsed=0.2)
        assert ids(seen) == {1}, k


def test_who_enters_the_picture_keeps_the_id_while_the_mask_grows():
    tracker = IdentityTracker()
    for x, y, w, h in ((208, 440, 88, 78), (300, 361, 176, 237), (350, 300, 167, 300), (367, 290, 139, 336)):
        seen = see(tracker, Person((x, y), size=(w, h), look=1), elapsed=0.4)
        assert ids(seen) == {1}


def test_two_who_walk_side_by_side_do_not_swap():
    tracker = IdentityTracker()
    for k in range(8):
        x = 60 + 40 * k
        seen = see(tracker, Person((x, 240)), Person((x + 100, 240)), elapsed=0.2)
        if k == 0:
            a, b = id_at(seen, x), id_at(seen, x + 100)
        assert (id_at(seen, x), id_at(seen, x + 100)) == (a, b), k


@pytest.mark.parametrize('hidden', [1, 5, 10])
def test_a_brief_disappearance_is_lost_then_tracked_again(hidden):
    tracker = IdentityTracker(grace_frames=10)
    for k in range(5):
        last = see(tracker, Person((100 + 10 * k, 240)))[0]
    for _ in range(hidden):
        gone = see(tracker)
        assert [(i.track_id, i.status, i.area, i.box) for i in gone] == [(1, TrackStatus.LOST, 0, last.box)]
        assert not gone[0].mask(HEIGHT, WIDTH).any()
    back = see(tracker, Person((140 + 10 * min(hidden, 5), 240)))
    assert [(i.track_id, i.status, i.age) for i in back] == [(1, TrackStatus.TRACKED, 5 + hidden)]


def test_after_the_grace_the_same_place_gives_a_new_id():
    tracker = IdentityTracker(grace_frames=10)
    see(tracker, Person((100, 240)))
    for _ in range(11):
        gone = see(tracker)
    assert gone == []
    back = see(tracker, Person((100, 240)))
    assert [(i.track_id, i.status, i.age) for i in back] == [(2, TrackStatus.NEW, 0)]


def test_a_lost_person_is_looked_for_where_a_slowing_walk_leads():
    tracker = IdentityTracker()
    for x in range(40, 201, 40):
        see(tracker, Person((x, 240)))
    for _ in range(10):
        assert ids(see(tracker), lost=True) == {1}
    assert ids(see(tracker, Person((320, 240)))) == {1}     # at its old pace it would be at 640 by now


@pytest.mark.parametrize(('away', 'same'), [(0, True), (1, False)])
def test_who_was_out_of_sight_must_be_more_alike_than_who_was_not(away, same):
    tracker = IdentityTracker()
    see(tracker, Person((200, 240), look=1, slot=1))
    for _ in range(away):
        see(tracker)
    assert ids(see(tracker, Person((310, 240), look=2, slot=9))) == {1 if same else 2}


def test_someone_else_far_away_does_not_take_a_lost_id():
    tracker = IdentityTracker()
    for _ in range(3):
        see(tracker, Person((100, 240), look=1))
    see(tracker)
    seen = see(tracker, Person((560, 240), look=2))
    assert ids(seen) == {2}
    assert ids(seen, lost=True) == {1}


def test_a_flicker_of_the_class_breaks_neither_id_nor_name():
    tracker = IdentityTracker()
    for k in range(20):
        label = 2 if k % 4 == 3 else 1
        seen = see(tracker, Person((200 + 6 * k, 240), label=label, slot=label))
        assert [(i.track_id, i.class_name) for i in seen] == [(1, 'dog')], k


def test_another_class_in_other_colours_at_the_same_place_is_another_object():
    tracker = IdentityTracker()
    for _ in range(5):
        see(tracker, Person((300, 240), label=0, look=1))
    after_a_cut = see(tracker, Person((300, 240), label=2, look=2))
    assert ids(after_a_cut) == {2} and ids(after_a_cut, lost=True) == {1}


def test_a_low_score_continues_a_track_but_starts_none():
    tracker = IdentityTracker()
    assert see(tracker, Person((200, 240), score=0.4)) == []
    assert ids(see(tracker, Person((200, 240), score=0.6))) == {1}
    assert ids(see(tracker, Person((205, 240), score=0.4))) == {1}
    assert ids(see(tracker, Person((210, 240), score=0.4), Person((500, 240), score=0.4))) == {1}


def test_beyond_the_maximum_those_already_followed_go_first():
    tracker = IdentityTracker()
    assert ids(see(tracker, Person((100, 240), score=0.6), most=1)) == {1}
    for _ in range(3):
        seen = see(tracker, Person((100, 240), score=0.6), Person((500, 240), score=0.9), most=1)
        assert ids(seen) == {1}
    assert ids(see(tracker, Person((100, 240), score=0.6), Person((500, 240), score=0.9), most=2)) == {1, 2}


def test_visible_ones_come_by_falling_score_then_the_lost():
    tracker = IdentityTracker()
    people = [Person((100, 240), score=0.6), Person((320, 240), score=0.9), Person((540, 240), score=0.7)]
    see(tracker, *people)
    seen = see(tracker, *people[:2])
    assert [i.score for i in seen] == pytest.approx([0.9, 0.6, 0.7])
    assert seen[-1].status == TrackStatus.LOST


def test_a_change_of_the_network_size_keeps_the_ids():
    tracker = IdentityTracker()
    see(tracker, Person((200, 240)))
    seen = see(tracker, Person((210, 240)), grid=(48, 64))
    assert [(i.track_id, i.status) for i in seen] == [(1, TrackStatus.TRACKED)]


def test_without_time_between_frames_the_ids_hold():
    tracker = IdentityTracker()
    for k in range(5):
        assert ids(see(tracker, Person((200 + 10 * k, 240)), elapsed=0.0)) == {1}


def test_memory_stays_flat_and_no_id_comes_twice_over_2000_frames():
    tracker = IdentityTracker(grace_frames=5)
    rng = np.random.default_rng(0)
    frames = []
    for k in range(60):
        # a crowd that changes: everyone is somewhere else every few frames
        rng_k = np.random.default_rng(k // 4)
        frames.append(scene(*(Person((x, y), size=(60, 160), slot=i, look=i) for i, (x, y) in
                              enumerate(zip(rng_k.uniform(40, 600, 6), rng_k.uniform(90, 390, 6))))))
    started, sizes = [], []
    for k in range(2000):
        tracks = tracker.update(frames[k % 60] if rng.random() > 0.1 else [], SLOTS, 0.5, 20, 0.1, HEIGHT, WIDTH)
        started += [t.track_id for t, status in tracks if status == TrackStatus.NEW]
        assert len(tracker.tracks) <= 20 + MAX_LOST_TRACKS
        if k % 100 == 0:
            sizes.append(len(pickle.dumps(tracker)))
    assert started == list(range(1, len(started) + 1))
    assert len(started) > 400
    assert max(sizes[10:]) < 1.2 * max(sizes[:10]), sizes


@pytest.mark.parametrize('by_slot', [True, False])
def test_by_slot_an_object_is_who_has_the_slot_whatever_motion_and_looks_say(by_slot):
    tracker = IdentityTracker(by_slot=by_slot)
    first = see(tracker, Person((100, 240), slot=1, look=1), Person((540, 240), slot=2, look=2))
    left, right = id_at(first, 100), id_at(first, 540)
    seen = see(tracker, Person((100, 240), slot=2, look=1), Person((540, 240), slot=1, look=2))
    assert (id_at(seen, 100), id_at(seen, 540)) == ((right, left) if by_slot else (left, right))


def test_by_slot_an_id_returns_with_its_slot_within_its_grace_and_never_after():
    tracker = IdentityTracker(grace_frames=3, by_slot=True)
    assert ids(see(tracker, Person((100, 240), slot=4))) == {1}
    for _ in range(3):
        assert ids(see(tracker), lost=True) == {1}
    assert ids(see(tracker, Person((500, 200), slot=4))) == {1}
    assert ids(see(tracker, Person((500, 200), slot=5))) == {2}
    for _ in range(4):
        see(tracker)
    assert ids(see(tracker, Person((500, 200), slot=4))) == {3}
