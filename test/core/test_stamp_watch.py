"""Which steps of the stamps begin new tracks: what a camera does by itself does not."""

import numpy as np
import pytest

pytest.importorskip('torch')
from tar_vis_core.stamp_watch import UNCHANGED, StampWatch
from tar_vis_core.state import TemporalState


def breaks(stamps, reset_gap_s=2.0):
    watch = StampWatch()
    return [watch.add(stamp, reset_gap_s) for stamp in stamps]


@pytest.mark.parametrize('rate_hz', [5, 30, 120])
@pytest.mark.parametrize('seed', range(3))
def test_a_camera_with_jitter_corrections_and_swapped_neighbours_never_breaks(rate_hz, seed):
    random = np.random.default_rng(seed)
    stamps = 1e9 + np.arange(200) / rate_hz + random.uniform(-0.2, 0.2, 200) / rate_hz
    stamps -= np.repeat(random.uniform(0, 0.5, 20), 10).cumsum() * 0.1 / rate_hz    # a clock that is corrected
    for place in range(20, 190, 10):
        stamps[[place, place + 1]] = stamps[[place + 1, place]]
    assert (np.diff(stamps) < 0).sum() > 10, 'the test needs steps back'
    assert set(breaks(stamps)) == {''}


def test_a_bag_that_loops_and_a_clock_that_is_set_break_once():
    loop = [5 + 0.1 * k for k in range(10)]
    assert breaks(loop + loop) == [''] * 10 + ['stamp went back by 0.900 s'] + [''] * 9
    assert breaks([5.0, 5.1, 5.2, 4.95, 5.05]) == ['', '', '', 'stamp went back by 0.250 s', '']


def test_a_video_played_backwards_breaks():
    assert any(breaks([5 - 0.1 * k for k in range(5)]))


def test_a_gap_is_one_between_two_images_of_the_camera():
    watch = StampWatch()
    assert watch.add(10.0, 0.5) == ''
    assert watch.add(14.0, 0.5, missed=39) == '', 'forty images in four seconds'
    assert watch.add(18.0, 0.5, missed=3) == 'gap of 1.000 s'
    assert watch.add(90.0, 0) == '', 'switched off'


def test_stamps_that_do_not_change_are_told():
    watch = StampWatch()
    for problem in ('', 'the stamps are all 0', 'the stamps are all 0'):
        assert watch.add(0.0, 2.0) == '' and watch.problem == problem
    for count in range(UNCHANGED + 1):
        assert watch.add(7.5, 0) == '' and bool(watch.problem) == (count == UNCHANGED)
    assert watch.problem == 'the stamps do not change (always 7.500000000)'
    watch.add(7.6, 0)
    assert watch.problem == ''


def test_whoever_saw_all_frames_decides():
    """A caller that left frames out knows that there was no gap, or that there was one."""
    state = TemporalState()
    state.begin_frame((4, 4), 1.0, 2.0, '')
    assert state.begin_frame((4, 4), 9.0, 2.0, '') == ('', 8.0)
    assert state.begin_frame((4, 4), 9.1, 2.0, 'gap of 3.000 s')[0] == 'gap of 3.000 s' and state.epoch == 1
    assert state.begin_frame((4, 4), 9.05, 2.0, '')[1] == pytest.approx(-0.05), 'late frames have their own time'
