"""The model does not run while the picture stands still, and else it does."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import picture, tiny_segmenter

from tar_vis_core.media.recording import result_line
from tar_vis_core.preprocess import small_grey
from tar_vis_core.still_picture import MAX_REUSED, drift

BOUND = 8.0


class Follower:
    """A stream of its own that counts how often the encoder runs."""

    def __init__(self, bound: float = BOUND, **options) -> None:
        self.segmenter = tiny_segmenter(encoder_reuse=bound, **options)
        self.state, self.encoded = self.segmenter.new_state(), 0
        encode = self.segmenter.model.encode

        def counted(images):
            self.encoded += 1
            return encode(images)

        self.segmenter.model.encode = counted

    def __call__(self, image: np.ndarray, stamp_s: float | None = None):
        before = self.encoded
        result = self.segmenter.step(image, self.state, stamp_s)
        assert result.encoder_reused == (self.encoded == before), 'the answer says what was done'
        return result


def answer(result) -> list:
    return [(i.track_id, i.status, i.score, i.box, i.runs.tolist()) for i in result.instances]


def shifted(image: np.ndarray, by: float) -> np.ndarray:
    """All grey levels raised by ``by``; the pictures here leave room for it."""
    return np.clip(image // 2 + 50 + by, 0, 255).astype(np.uint8)


def test_it_is_off_by_default_and_then_keeps_nothing():
    follower = Follower(0.0)
    for _ in range(3):
        assert not follower(picture()).encoder_reused
        assert follower.state.segmented is None
    assert follower.encoded == 3 and tiny_segmenter().options.encoder_reuse == 0


def test_a_picture_that_stands_still_gives_the_same_answers_without_the_model():
    off, on = Follower(0.0, routing='full'), Follower(routing='full')
    frames = 2 * MAX_REUSED + 3
    for _ in range(frames):
        expected, got = off(picture()), on(picture())
        assert answer(got) == answer(expected) and got.instances
        assert set(got.routing.executed) == {not got.encoder_reused}
        assert result_line(got)['encoder_reused'] == got.encoder_reused
    assert (off.encoded, on.encoded) == (frames, 3)


def test_routers_are_not_asked_where_nothing_runs_and_go_on_from_the_frame_that_did():
    follower, often = Follower(), Follower(0.0)
    for image in (1, 1, 1, 2):
        result = follower(picture(image))
        if not result.encoder_reused:
            expected = often(picture(image))
            assert [i.box for i in result.instances] == [i.box for i in expected.instances]
        assert result.routing.routed == (image == 2)
    assert torch.equal(follower.state.previous.queries, often.state.previous.queries)


def test_after_so_many_frames_in_a_row_the_encoder_runs_whatever_the_drift():
    follower = Follower()
    reused = [follower(picture()).encoder_reused for _ in range(2 * (MAX_REUSED + 1))]
    assert reused == 2 * [False, *[True] * MAX_REUSED]


def test_a_change_that_creeps_is_measured_against_the_encoded_picture():
    follower = Follower()
    reused = [follower(shifted(picture(), 3 * k)).encoder_reused for k in range(7)]
    assert reused == [False, True, True, False, True, True, False], '3 and 6 are below the bound of 8, 9 is not'


def test_another_picture_is_answered_as_a_new_stream_would():
    on, new = Follower(refresh_frames=1), Follower(0.0, refresh_frames=1)
    on(picture(1))
    result = on(picture(2))
    assert not result.encoder_reused
    assert [i.box for i in result.instances if i.area] == [i.box for i in new(picture(2)).instances]


def test_masks_of_a_frame_that_is_reused_are_those_of_the_encoded_picture():
    follower = Follower(255.0, routing='full')
    first, second = follower(picture(1)), follower(picture(2))
    assert second.encoder_reused and first.instances
    masks = [sorted((i.box, i.runs.tolist()) for i in r.instances if i.area) for r in (first, second)]
    assert masks[0] == masks[1], 'even where the picture is quite another: they lag'


@pytest.mark.parametrize(('contrast', 'side'), [(120, 8), (60, 12)])
@pytest.mark.parametrize('size', [(480, 640), (360, 640), (433, 771)])
def test_something_small_that_comes_in_is_seen_wherever_it_is(size, contrast, side):
    # cells are 10 to 12 pixels wide, so it may be spread over four of them, a quarter in each
    ground = np.full((*size, 3), 90, np.uint8)
    before, rng = small_grey(ground), np.random.default_rng(0)
    corners = np.array(size) - side
    for y, x in [(0, 0), tuple(corners), *rng.integers(corners, size=(200, 2))]:
        image = ground.copy()
        image[y:y + side, x:x + side] += contrast
        after = small_grey(image)
        assert drift(before, after) > BOUND, (y, x)
        assert np.abs(after - before).mean() < 0.1, 'a mean over the picture sees nothing'


@pytest.mark.parametrize('upright', [True, False])
def test_an_edge_that_moves_is_seen_as_the_module_says(upright):
    contrast, cell = 80, 10
    for place in range(200, 220):
        for moved in range(1, cell):
            images = []
            for at in (place, place + moved):
                image = np.full((480, 640, 3), 60, np.uint8)
                image[(slice(None), slice(at)) if upright else slice(at)] += contrast
                images.append(small_grey(image))
            assert drift(*images) >= contrast * moved / (2 * cell) - 1          # grey levels are rounded


def test_the_noise_of_a_camera_does_not_hinder_it():
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 200, (480, 640, 3))
    images = [np.clip(ground + rng.normal(0, 8, ground.shape), 0, 255).astype(np.uint8) for _ in range(2)]
    assert drift(*map(small_grey, images)) < 4


def test_a_reset_drops_it():
    follower = Follower()
    follower(picture(), 1.0)
    follower.segmenter.reset(follower.state, 'test')
    assert follower.state.segmented is None
    assert not follower(picture(), 1.1).encoder_reused
    assert follower(picture(), 1.2).encoder_reused
    result = follower(picture(), 0.5)
    assert result.reset_reason and not result.encoder_reused, 'a stamp that goes back'
    other = follower(picture(4, 64, 96), 0.6)
    assert other.reset_reason and not other.encoder_reused, 'another size'


def test_options_that_change_between_frames_hold_from_the_next_one_on():
    follower = Follower()
    options = follower.segmenter.options

    def step(**changes) -> bool:
        follower.segmenter.options = replace(options, **changes)
        return follower(picture()).encoder_reused

    assert [step(), step(), step(input_short_side=96), step(input_short_side=96), step()] == [
        False, True, False, True, False]
    assert not step(encoder_reuse=0.0) and follower.state.segmented is None
    assert [step(), step()] == [False, True], 'nothing is left from before it was off'


def test_numbers_that_are_not_finite_are_not_kept():
    follower = Follower()
    bias = follower.segmenter.model.decoder.class_embed.bias
    good = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(float('nan'))
        follower(picture())
        bias.copy_(good)
    assert follower.state.segmented is None
    result = follower(picture())
    assert result.reset_reason and not result.encoder_reused and result.instances


def test_the_memory_is_that_of_one_frame():
    follower, sizes = Follower(), set()
    for k in range(12):
        follower(picture(k % 5 // 3))
        sizes.add(len(pickle.dumps(follower.state.segmented)))
    assert max(sizes) < 1.2 * min(sizes) and 0 < follower.encoded < 12


def test_a_warm_up_runs_the_model():
    follower = Follower(255.0)
    follower.segmenter.warm_up(96, 128)
    assert follower.encoded == 2 and follower.segmenter.options.encoder_reuse == 255.0


def test_a_latency_budget_learns_nothing_from_frames_that_cost_nothing():
    follower = Follower(latency_budget_ms=1e-3)
    results = [follower(picture()) for _ in range(2 * (MAX_REUSED + 1))]
    assert len(follower.state.budget._recent) == sum(not r.encoder_reused for r in results) == 2


@pytest.mark.parametrize('value', [-1, 256, float('nan'), '4', True])
def test_a_bound_that_is_no_grey_level_is_refused(value):
    with pytest.raises(ValueError, match=r'encoder_reuse is .*expected a number from 0 to 255'):
        tiny_segmenter(encoder_reuse=value)
