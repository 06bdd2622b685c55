from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from tiny_model import picture, tiny_model, tiny_segmenter

from tar_vis_core import segmenter as segmenters
from tar_vis_core.errors import DeviceError, DeviceLostError, WeightsError
from tar_vis_core.instances import TrackStatus
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import available_devices, pick_device
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.tracking.tracker import MatchingTracker


@pytest.fixture(scope='module')
def segmenter():
    return tiny_segmenter()


def run(segmenter, frames=4, **options):
    segmenter.options = SegmenterOptions(**{'score_threshold': 0.1, **options})
    state = segmenter.new_state()
    return [segmenter.step(picture(k), state, 0.1 * k) for k in range(frames)]


def test_masks_boxes_and_areas_fit_together_at_the_sources_size(segmenter):
    result = run(segmenter)[-1]
    assert (result.height, result.width) == (96, 128)
    assert result.instances
    for instance in result.instances:
        x, y, w, h = instance.box
        assert 0 <= x < x + w <= 128 and 0 <= y < y + h <= 96
        mask = instance.mask(result.height, result.width)
        assert mask.shape == (96, 128)
        assert mask.sum() == instance.area
        assert instance.class_name == segmenter.class_names[instance.class_id]
        if instance.status != TrackStatus.LOST:
            crop = instance.crop()
            assert crop[[0, -1]].any(1).all() and crop[:, [0, -1]].any(0).all()


def test_the_same_stream_gives_the_same_answer(segmenter):
    a, b = run(segmenter), run(segmenter)
    for one, other in zip(a, b, strict=True):
        assert one.routing.executed == other.routing.executed
        assert [(i.track_id, i.score, i.box, i.runs.tolist()) for i in one.instances] == \
            [(i.track_id, i.score, i.box, i.runs.tolist()) for i in other.instances]


def test_every_result_says_which_layers_ran_and_how_long_it_took(segmenter):
    for result in run(segmenter):
        assert len(result.routing.executed) == segmenter.num_layers
        times = result.times
        parts = [times.preprocess, times.encoder, times.decoder, times.masks, times.tracker]
        assert min(parts) >= 0
        assert times.total == pytest.approx(sum(parts), abs=0.01)


def test_routing_follows_the_options_from_the_next_frame_on(segmenter):
    state = segmenter.new_state()
    executed = []
    for k, options in enumerate((dict(routing='adaptive'), dict(routing='full'), dict(routing='fixed', fixed_layers=2),
                                 dict(routing='adaptive', skip_bias=100.0), dict(routing='adaptive', skip_bias=-100.0),
                                 dict(routing='fixed', fixed_layers=9))):
        segmenter.options = SegmenterOptions(**options)
        executed.append(segmenter.step(picture(k), state).routing.executed_layers)
    assert executed == [9, 9, 2, 1, 9, 9]


def test_the_network_size_can_change_between_frames(segmenter):
    state = segmenter.new_state()
    segmenter.options = SegmenterOptions(score_threshold=0.1)
    segmenter.step(picture(), state)
    segmenter.options = SegmenterOptions(score_threshold=0.1, input_short_side=96)
    result = segmenter.step(picture(), state)
    assert result.reset_reason == ''
    assert result.frame_index == 1


def test_a_class_filter_reports_nothing_else(segmenter):
    names = {i.class_name for result in run(segmenter, class_filter=('dog', 'cat'), score_threshold=0.001)
             for i in result.instances}
    assert names
    assert names <= {'dog', 'cat'}


def test_no_more_than_the_maximum_is_in_sight(segmenter):
    assert any(len(result.instances) > 1 for result in run(segmenter, score_threshold=0.05))
    for result in run(segmenter, max_instances=1, score_threshold=0.05):
        assert sum(i.status != TrackStatus.LOST for i in result.instances) <= 1


def test_a_high_threshold_reports_nothing(segmenter):
    assert all(result.instances == [] for result in run(segmenter, score_threshold=1.0))


def test_the_frame_difference_is_in_squared_grey_levels(segmenter):
    state = segmenter.new_state()
    black, grey = (np.full((96, 128, 3), value, np.uint8) for value in (0, 30))
    assert np.isnan(segmenter.step(black, state).frame_mse)
    assert segmenter.step(grey, state).frame_mse == pytest.approx(900, rel=1e-3)
    assert segmenter.step(grey, state).frame_mse == 0


@pytest.mark.parametrize('size', [(1, 1), (1, 400), (300, 2), (33, 65), (480, 640)])
def test_any_size_of_image_works(segmenter, size):
    state = segmenter.new_state()
    for k in range(2):
        result = segmenter.step(picture(k, *size), state)
        assert (result.height, result.width) == size


def test_memory_that_is_read_only_or_strided_is_taken_as_it_is(segmenter):
    segmenter.options = SegmenterOptions(score_threshold=0.1)
    image = picture()
    expected = segmenter.step(image, segmenter.new_state())
    read_only = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    bgr = np.ascontiguousarray(image[..., ::-1])[..., ::-1]
    for same in (read_only, bgr):
        result = segmenter.step(same, segmenter.new_state())
        assert [i.box for i in result.instances] == [i.box for i in expected.instances]


@pytest.mark.parametrize(('image', 'message'), [
    (np.zeros((4, 4), np.uint8), r'\(H, W, 3\), got shape \(4, 4\)'),
    (np.zeros((4, 4, 4), np.uint8), r'got shape \(4, 4, 4\)'),
    (np.zeros((4, 4, 3), np.float32), 'uint8 pixels, got float32'),
    (np.zeros((0, 4, 3), np.uint8), 'at least one pixel, got an image of 4x0'),
    ([[1, 2, 3]], 'numpy array .* got list'),
])
def test_what_is_no_image_is_refused(segmenter, image, message):
    with pytest.raises(ValueError, match=message):
        segmenter.step(image, segmenter.new_state())


@pytest.mark.parametrize('stamp', [float('nan'), float('inf'), '1.0', True])
def test_a_stamp_that_is_no_time_is_refused(segmenter, stamp):
    with pytest.raises(ValueError, match='stamp_s is'):
        segmenter.step(picture(), segmenter.new_state(), stamp)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(routing='adaptiv'), r"'adaptiv' \(did you mean 'adaptive'\?\), expected one of auto, adaptive, full, fixed"),
    (dict(fixed_layers=0), 'fixed_layers is 0, expected a whole number from 1 to 9'),
    (dict(fixed_layers=2.5), 'fixed_layers is 2.5'),
    (dict(score_threshold=1.5), 'score_threshold is 1.5, expected a number from 0 to 1'),
    (dict(score_threshold=float('nan')), 'score_threshold is nan'),
    (dict(score_threshold='high'), "score_threshold is 'high'"),
    (dict(max_instances=0), 'max_instances is 0'),
    (dict(max_instances=True), 'max_instances is True'),
    (dict(class_filter='person'), 'expected a list of texts'),
    (dict(class_filter=(1,)), 'expected a list of texts'),
    (dict(input_short_side=16), 'input_short_side is 16, expected 0 or a whole number from 32 to 1333'),
    (dict(skip_bias=float('inf')), 'skip_bias is inf, expected a number from -100 to 100'),
    (dict(reset_gap_s=-1), 'reset_gap_s is -1, expected a number from 0 to 86400'),
    (dict(grace_frames=-1), 'grace_frames is -1'),
])
def test_an_option_out_of_range_says_what_is_expected(options, message):
    with pytest.raises(ValueError, match=message):
        SegmenterOptions(**options)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(routing='fixed', fixed_layers=10), 'fixed_layers is 10, expected a whole number from 1 to 9'),
    (dict(class_filter=('person', 'dgo')), "class_filter: unknown class 'dgo' .did you mean 'dog'"),
])
def test_an_option_that_does_not_fit_the_model_changes_nothing(segmenter, options, message):
    segmenter.options = before = SegmenterOptions()
    with pytest.raises(ValueError, match=message):
        segmenter.options = SegmenterOptions(**options)
    assert segmenter.options is before


def test_a_model_without_routers_runs_all_layers_and_says_why_not_adaptive():
    segmenter = VideoSegmenter.from_model(tiny_model(routing=False), 'cpu')
    assert segmenter.routing == 'full'
    with pytest.raises(ValueError, match='hold no routers'):
        segmenter.options = SegmenterOptions(routing='adaptive')
    state = segmenter.new_state()
    assert [segmenter.step(picture(k), state).routing.executed_layers for k in range(2)] == [9, 9]


def test_an_unknown_preset_or_precision_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown preset 'nanno' .did you mean 'nano'"):
        VideoSegmenter('nanno')
    with pytest.raises(ValueError, match=r"unknown precision 'float61' .did you mean 'float16'"):
        VideoSegmenter('nano', precision='float61')


def test_a_device_that_is_not_there_is_an_error_that_lists_those_that_are():
    with pytest.raises(DeviceError, match=r"'cuda:7' is not there; this machine has cpu"):
        VideoSegmenter('nano', device='cuda:7')
    with pytest.raises(DeviceError, match='tpu'):
        pick_device('tpu')
    assert pick_device('cpu').type == 'cpu'
    assert str(pick_device('auto')) in available_devices()


def test_missing_and_damaged_weights_are_one_line(tmp_path):
    damaged = tmp_path / 'damaged.safetensors'
    damaged.write_bytes(b'no weights at all')
    for path in (tmp_path / 'absent.safetensors', damaged):
        with pytest.raises(WeightsError, match=path.name) as caught:
            VideoSegmenter('nano', weights=path)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_half_precision_steps_and_stays_close(precision):
    exact = tiny_segmenter()
    half = VideoSegmenter.from_model(tiny_model(), 'cpu', precision, exact.options)
    states = exact.new_state(), half.new_state()
    for k in range(2):
        _, b = (s.step(picture(k), state) for s, state in zip((exact, half), states, strict=True))
        assert b.reset_reason == ''
    similarity = torch.cosine_similarity(states[0].previous.queries.float(), states[1].previous.queries.float(), -1)
    assert similarity.mean() > 0.9


def test_warm_up_leaves_no_trace(segmenter):
    segmenter.options = SegmenterOptions(score_threshold=0.1)
    before = segmenter.step(picture(), segmenter.new_state())
    segmenter.warm_up(96, 128)
    after = segmenter.step(picture(), segmenter.new_state())
    assert [i.box for i in before.instances] == [i.box for i in after.instances]
    assert after.frame_index == 0


def test_a_step_on_a_gpu_that_is_lost_says_so(monkeypatch):
    segmenter, broken = tiny_segmenter(), mock.Mock(side_effect=RuntimeError('CUDA error: illegal access'))
    monkeypatch.setattr(segmenter, '_step', broken)
    monkeypatch.setattr(torch.cuda, 'synchronize', broken)
    segmenter.device = torch.device('cuda:0')
    with pytest.raises(DeviceLostError, match='restart the process'):
        segmenter.step(picture(), segmenter.new_state())


def test_what_runs_slower_than_it_could_is_among_the_remarks(monkeypatch):
    monkeypatch.setattr(kernels, 'compiled', lambda: None)
    slow, = tiny_segmenter().remarks
    assert 'compiled kernels are missing' in slow
    monkeypatch.setattr(segmenters, 'unused_gpu', lambda: 'device auto takes the CPU')
    assert VideoSegmenter(device='auto').remarks == ('device auto takes the CPU', slow)
    assert VideoSegmenter(device='cpu').remarks == (slow,)
    monkeypatch.setattr(kernels, 'no_gpu_samples', lambda width, device: f'{width} channels by grid_sample')
    on_gpu = tiny_segmenter()
    on_gpu.device = torch.device('cuda:0')
    assert on_gpu.remarks and all('channels by grid_sample' in line for line in on_gpu.remarks)


def test_the_network_can_be_trained_after_it_was_stepped():
    # constants that are cached while no gradients are recorded must not break later training
    model = tiny_model()
    VideoSegmenter.from_model(model, 'cpu').warm_up(64, 96)
    images = model.normalize(torch.zeros(1, 3, 64, 96))
    with torch.enable_grad():
        loss = model.supervised(model.encode(images)).mask_embeddings[-1].sum()
    loss.backward()
    assert model.decoder.query_embed.grad is not None


@pytest.mark.parametrize(('every', 'plain'), [(3, [0, 3, 6]), (0, [0]), (1, list(range(8)))])
def test_a_plain_pass_renews_the_queries_every_so_many_frames(every, plain):
    segmenter = tiny_segmenter(refresh_frames=every)
    state = segmenter.new_state()
    traces = [segmenter.step(picture(k), state).routing for k in range(8)]
    assert [k for k, t in enumerate(traces) if np.isnan(t.execute_probability).all()] == plain


class Slots:
    """A tracker that gives rows the slots it is told."""

    def __init__(self, slots_of_frame):
        self.slots_of_frame = slots_of_frame

    def track(self, frames, mask_features, memory):
        memory = 0 if memory is None else memory + 1
        tracked, _ = MatchingTracker().track(frames, mask_features, None)
        tracked.slots = self.slots_of_frame(memory, tracked.slots)
        return tracked, memory


def still_ids(tracker_name, slots_of_frame, frames=3):
    segmenter = VideoSegmenter.from_model(
        tiny_model(), 'cpu', options=SegmenterOptions(score_threshold=0.1, refresh_frames=1), tracker=tracker_name)
    segmenter.tracker = Slots(slots_of_frame)
    state = segmenter.new_state()
    results = [segmenter.step(picture(), state, 0.1 * k) for k in range(frames)]
    return [{i.track_id for i in r.instances if i.status != TrackStatus.LOST} for r in results]


def test_identities_are_the_trackers_slots_unless_motion_decides():
    def always_others(frame, slots):
        return slots + 100 * frame

    held = still_ids('motion', always_others)
    assert held[0] and held[0] == held[1] == held[2]
    others = still_ids('matching', always_others)
    assert others[0] and not others[0] & others[1] and not others[1] & others[2]


def test_a_hidden_slot_is_lost_and_one_that_has_ended_is_gone():
    segmenter = VideoSegmenter.from_model(
        tiny_model(), 'cpu', options=SegmenterOptions(score_threshold=0.1, refresh_frames=1), tracker='matching')
    state, plain, found = segmenter.new_state(), segmenter.tracker, []

    class Hiding:
        def track(self, frames, mask_features, memory):
            tracked, memory = plain.track(frames, mask_features, memory)
            absent = state.frame_index == 4
            hidden = np.full(tracked.slots.shape, state.frame_index in (1, 2))
            return replace(tracked, slots=np.full_like(tracked.slots, -1) if absent else tracked.slots,
                           hidden=hidden), memory

    segmenter.tracker = Hiding()
    for k in range(6):
        result = segmenter.step(picture(), state, 0.1 * k)
        found.append({i.track_id: i.status for i in result.instances})
    ids = found[0].keys()
    assert ids and [frame.keys() for frame in found[1:4]] == [ids] * 3
    assert [set(frame.values()) for frame in found[:5]] == [
        {TrackStatus.NEW}, {TrackStatus.LOST}, {TrackStatus.LOST}, {TrackStatus.TRACKED}, set()]
    assert found[5] and not ids & found[5].keys()


def test_users_get_classes_and_scores_from_the_logits_so_far_where_a_tracker_has_them():
    segmenter = VideoSegmenter.from_model(tiny_model(class_names=tuple(f'thing {n}' for n in range(20))), 'cpu',
                                          options=SegmenterOptions(score_threshold=0.1), tracker='matching')
    plain = segmenter.tracker

    class Averaging:
        def track(self, frames, mask_features, memory):
            tracked, memory = plain.track(frames, mask_features, memory)
            sure = torch.zeros_like(tracked.logits)
            sure[..., 7] = 50
            return replace(tracked, logits_so_far=sure), memory

    segmenter.tracker = Averaging()
    result = segmenter.step(picture(), segmenter.new_state())
    assert result.instances and {i.class_id for i in result.instances} == {7}


def test_what_has_no_slot_is_no_instance():
    seen = still_ids('matching', lambda frame, slots: slots if frame != 1 else np.full_like(slots, -1))
    assert seen[0] and seen[1] == set() and seen[2] == seen[0]


@pytest.mark.parametrize(('name', 'needs'), [
    ('referring', r'DVIS\+\+'), ('referring_2023', 'of DVIS,'), ('dynamic_anchors', 'of DVIS-DAQ,'),
    ('memory_bank', 're-identification'), ('matchin', "did you mean 'matching'")])
def test_a_tracker_that_the_model_cannot_have_says_what_it_needs(name, needs):
    with pytest.raises(ValueError, match=needs):
        VideoSegmenter.from_model(tiny_model(), 'cpu', tracker=name)


def test_the_memory_bank_takes_the_models_threshold():
    made = VideoSegmenter.from_model(tiny_model(reid=True, match_threshold=0.35), 'cpu', tracker='memory_bank')
    assert made.tracker.match_threshold == 0.35
    assert made.step(picture(), made.new_state()).height == 96


def test_a_latency_budget_moves_the_bias_of_its_stream_alone_and_outlives_a_reset():
    """No step takes a microsecond: after eleven frames the first rise comes. An hour is enough for all layers."""
    segmenter = tiny_segmenter(routing='adaptive', refresh_frames=0, latency_budget_ms=0.001, score_threshold=1)
    tight, other = segmenter.new_state(), segmenter.new_state()
    for k in range(13):
        segmenter.step(picture(k), tight)
    assert tight.budget.bias > 0 and other.budget is None
    tight.budget.bias = 10.0
    assert segmenter.step(picture(13), tight).routing.executed_layers == 1, 'the warm-up layer alone'
    segmenter.reset(tight, 'elsewhere')
    bias = tight.budget.bias
    segmenter.step(picture(14), tight)
    assert tight.budget.bias == bias
    segmenter.options = replace(segmenter.options, latency_budget_ms=3.6e4)
    segmenter.step(picture(15), tight)
    assert tight.budget.bias == 0 and tight.budget.budget_ms == 3.6e4
    segmenter.options = replace(segmenter.options, latency_budget_ms=0.0)
    segmenter.step(picture(16), tight)
    assert tight.budget is None
