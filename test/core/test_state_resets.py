import math

import numpy as np
import pytest
import torch
from tiny_model import picture, tiny_model, tiny_segmenter

from tar_vis_core.instances import TrackStatus
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter


@pytest.fixture(scope='module')
def segmenter():
    return tiny_segmenter()


def follow(segmenter, state, frames=3, **size):
    """A few frames at 10 Hz from second 100 on; the last result."""
    for k in range(frames):
        result = segmenter.step(picture(k, **size), state, 100 + 0.1 * k)
    return result


def assert_fresh(result, reason, epoch):
    """A result that knows nothing of the frames before."""
    assert result.reset_reason == reason
    assert result.track_epoch == epoch
    assert result.frame_index == 0
    assert math.isnan(result.frame_mse)
    assert all(i.status == TrackStatus.NEW for i in result.instances)
    assert [i.track_id for i in sorted(result.instances, key=lambda i: i.track_id)] == \
        list(range(1, len(result.instances) + 1))
    assert all(result.routing.executed), 'without a past all layers run'
    assert np.isnan(result.routing.execute_probability).all(), 'without a past no router is asked'


def test_the_first_frame_is_fresh_without_a_reset(segmenter):
    result = segmenter.step(picture(), segmenter.new_state())
    assert_fresh(result, '', 0)
    assert result.instances, 'the test needs something to track'


def test_frames_count_up_and_ids_go_on(segmenter):
    state = segmenter.new_state()
    first = segmenter.step(picture(), state, 100.0)
    second = segmenter.step(picture(), state, 100.1)
    assert (second.frame_index, second.track_epoch, second.reset_reason, second.frame_mse) == (1, 0, '', 0.0)
    assert {i.track_id for i in first.instances} & {i.track_id for i in second.instances}


def test_another_image_size_resets(segmenter):
    state = segmenter.new_state()
    follow(segmenter, state)
    assert_fresh(segmenter.step(picture(3, 64, 96), state, 100.3), 'image size changed from 128x96 to 96x64', 1)
    assert segmenter.step(picture(4, 64, 96), state, 100.4).reset_reason == ''


def test_a_stamp_that_goes_back_resets(segmenter):
    state = segmenter.new_state()
    follow(segmenter, state)
    assert_fresh(segmenter.step(picture(3), state, 97.9), 'stamp went back by 2.300 s', 1)
    assert segmenter.step(picture(4), state, 98.0).reset_reason == ''


def test_a_gap_resets_and_a_shorter_one_does_not(segmenter):
    state = segmenter.new_state()
    follow(segmenter, state)
    assert segmenter.step(picture(3), state, 102.1).reset_reason == ''
    assert_fresh(segmenter.step(picture(4), state, 105.2), 'gap of 3.100 s', 1)


def test_gaps_are_ignored_where_the_option_is_off():
    segmenter = tiny_segmenter(reset_gap_s=0)
    state = segmenter.new_state()
    follow(segmenter, state)
    assert segmenter.step(picture(3), state, 5000.0).reset_reason == ''


def test_an_equal_stamp_and_no_stamp_are_no_break(segmenter):
    state = segmenter.new_state()
    for stamp in (100.0, 100.0, None, 3.0, 3.1):
        assert segmenter.step(picture(), state, stamp).reset_reason == ''
    assert state.epoch == 0


def test_a_requested_reset_is_reported_once_and_every_reset_raises_the_epoch(segmenter):
    state = segmenter.new_state()
    for epoch in (1, 2, 3):
        segmenter.step(picture(epoch), state, 7.2)
        segmenter.reset(state, 'operator')
        assert state.previous is None and state.tracker_memory is None, 'forgotten at once'
        assert_fresh(segmenter.step(picture(3), state, 7.0), 'requested: operator', epoch)
        assert segmenter.step(picture(4), state, 7.1).reset_reason == ''


def test_a_reset_equals_a_new_stream(segmenter):
    used, new = segmenter.new_state(), segmenter.new_state()
    follow(segmenter, used)
    segmenter.reset(used, 'again')
    for k in range(3):
        a, b = segmenter.step(picture(k), used), segmenter.step(picture(k), new)
        assert [(i.track_id, i.box, i.score) for i in a.instances] == [(i.track_id, i.box, i.score)
                                                                      for i in b.instances]
        assert a.routing.executed == b.routing.executed
    assert torch.equal(used.previous.queries, new.previous.queries)


def test_bad_input_leaves_the_state_as_it_was(segmenter):
    state = segmenter.new_state()
    follow(segmenter, state)
    before = (state.frame_index, state.epoch, state.last_stamp_s, state.image_size, state.previous.queries)
    for image, stamp in ((np.zeros((0, 5, 3), np.uint8), 100.3), (np.zeros((4, 4), np.uint8), 100.3),
                         (np.zeros((4, 4, 3), np.float32), 100.3), (picture(), float('nan'))):
        with pytest.raises(ValueError):
            segmenter.step(image, state, stamp)
    assert before == (state.frame_index, state.epoch, state.last_stamp_s, state.image_size, state.previous.queries)
    assert segmenter.step(picture(3), state, 100.3).frame_index == 3


def test_numbers_that_are_not_finite_do_not_stay():
    segmenter = tiny_segmenter()
    state = segmenter.new_state()
    follow(segmenter, state)
    bias = segmenter.model.decoder.class_embed.bias
    good = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(float('nan'))
        assert [i for i in segmenter.step(picture(3), state).instances if i.status != TrackStatus.LOST] == []
        bias.copy_(good)
    assert_fresh(segmenter.step(picture(4), state), 'the network gave numbers that are not finite', 1)


@pytest.mark.parametrize('tracker', ['matching', 'memory_bank'])
@pytest.mark.parametrize('part', ['classes', 'masks'])
def test_they_are_noticed_in_a_first_frame_whatever_the_tracker_makes_of_them(tracker, part):
    model = tiny_model(class_names=('one', 'two'), reid=True, tracker=tracker)
    segmenter = VideoSegmenter.from_model(model, 'cpu', options=SegmenterOptions(score_threshold=0.1))
    broken = model.decoder.class_embed if part == 'classes' else model.pixel_decoder.mask_features
    with torch.no_grad():
        broken.weight.fill_(float('nan'))
    state = segmenter.new_state()
    assert segmenter.step(picture(3), state).instances == []
    assert state.reset_reason == 'the network gave numbers that are not finite' and state.previous is None


def test_two_streams_do_not_know_of_each_other(segmenter):
    alone = segmenter.new_state()
    expected = [segmenter.step(picture(k), alone) for k in range(3)]
    a, b = segmenter.new_state(), segmenter.new_state()
    for k, want in enumerate(expected):
        got = segmenter.step(picture(k), a)
        segmenter.step(picture(50 + k, 64, 64), b)
        assert [(i.track_id, i.box) for i in got.instances] == [(i.track_id, i.box) for i in want.instances]
        assert got.frame_mse == pytest.approx(want.frame_mse, nan_ok=True)


def test_the_state_does_not_grow(segmenter):
    state = segmenter.new_state()
    shapes = set()
    for k in range(12):
        segmenter.step(picture(k % 3), state, 100 + 0.1 * k)
        shapes.add((state.previous.queries.shape, state.tracker_memory.shape, state.small_frame.shape))
        # a view would keep the whole batch of some larger tensor alive
        assert state.tracker_memory.untyped_storage().nbytes() <= 2 * state.tracker_memory.nbytes
    assert len(shapes) == 1
