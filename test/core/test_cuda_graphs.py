"""Parts of a model that are recorded and played (CUDA graphs) give what the parts themselves give.

On a tape of operators in place of a graph: the same rules, on any machine.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from unittest import mock

import pytest
import torch
from played_models import assert_equal, pair, recordings, spread_routers, steps_of_many_sizes
from tape import TapeRecorder
from test_swin import tiny as tiny_swin
from test_vit_adapter import network as tiny_adapter  # noqa: F401  a fixture
from tiny_model import picture

from tar_vis_core.benchmark.contenders import Contender, operators
from tar_vis_core.errors import DeviceLostError
from tar_vis_core.latency_budget import LatencyBudget
from tar_vis_core.models import cuda_graphs
from tar_vis_core.models.backbones.resnet import ResNet50
from tar_vis_core.models.cuda_graphs import KeepAlive, Recorded, eager
from tar_vis_core.runtime import kernels

# all parts of all models can be recorded
pytestmark = pytest.mark.filterwarnings('error:.*operator by operator')


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch):
    """The tape sees torch's operators only."""
    monkeypatch.setattr(kernels, 'compiled', lambda: None)


def test_a_still_picture_keeps_its_answer_while_another_camera_is_segmented():
    plain, played = pair()
    for one in (plain, played):
        one.options = replace(one.options, encoder_reuse=5.0)
    streams = {one: (one.new_state(), one.new_state()) for one in (plain, played)}
    reused = 0
    for frame in range(4):
        for camera in range(2):
            image = picture(camera * (1 + frame))      # the first one does not move
            results = [one.step(image, streams[one][camera]) for one in (plain, played)]
            assert_equal(*results[::-1])
            reused += results[1].encoder_reused
    assert reused == 3


@pytest.mark.parametrize('routing', ['adaptive', 'full'])
def test_warming_up_records_everything(routing):
    recorder = TapeRecorder()
    _, played = pair(recorder)
    spread_routers(played.model)
    played.options = replace(played.options, routing=routing)
    played.warm_up(96, 128)
    made, state = recorder.made, played.new_state()
    assert made > 10 and made == recordings(played.model)
    for frame in range(5):
        played.step(picture(frame), state)
    assert recorder.made == made
    played.step(picture(9, 70, 128), state)
    assert recorder.made > made, 'another size is recorded anew'


def test_cameras_of_more_sizes_than_are_kept_cost_no_memory_and_leave_the_others_theirs(monkeypatch):
    monkeypatch.setattr(cuda_graphs, 'MOST', 3)
    recorder, held = TapeRecorder(), []
    plain, played = pair(recorder, routing=False, decoder_layers=3)
    for expected, found in steps_of_many_sizes(plain, played, range(96, 136, 8), turns=1):
        assert_equal(found, expected)
        held.append(recordings(played.model))
    assert held[-1] == max(held) < recorder.made, 'some have gone'
    assert len(played.model.prepare._recordings[64,]) == 3
    assert recorder.cuda.streams == 2, 'one for all graphs, and the one that is there'


@torch.inference_mode()
def test_the_sizes_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(cuda_graphs, 'MOST', 2)
    recorder = TapeRecorder()
    part = Recorded(lambda x: 2 * x, recorder, kept=True)
    for size in (2, 3, 2, 4, 2):
        part(torch.ones(size))
    assert recorder.made == 3


def test_cameras_of_four_sizes_that_take_turns_are_recorded_once():
    recorder = TapeRecorder()
    _, played = pair(recorder)
    played.options = replace(played.options, encoder_reuse=5.0)
    sizes = [(96, 128), (60, 132), (96, 96), (128, 64)]
    for size in sizes:
        played.warm_up(*size)
    made, states, reused = recorder.made, [played.new_state() for _ in sizes], 0
    for frame in range(8):
        for size, state in zip(sizes, states, strict=True):
            reused += played.step(picture(frame // 3, *size), state).encoder_reused
    assert recorder.made == made and reused > 8


def test_a_segmenter_goes_when_its_last_user_does():
    played = pair()[1]
    played.warm_up(96, 128)
    weight = weakref.ref(played.model.decoder.query_feat)
    gc.disable()        # nothing goes round in a circle
    try:
        del played
        assert weight() is None
    finally:
        gc.enable()


BACKBONES = {'resnet': lambda: ResNet50().eval(), 'swin': tiny_swin}


@torch.inference_mode()
@pytest.mark.parametrize('name', [*BACKBONES, 'vit adapter'])
def test_every_backbone_can_be_recorded(name, tiny_adapter):  # noqa: F811
    backbone = tiny_adapter if name == 'vit adapter' else BACKBONES[name]()
    played = Recorded(backbone.forward, TapeRecorder(), kept=False)
    for size in ((64, 96), (96, 64), (64, 96)):
        x = torch.randn(1, 3, *size)
        for found, expected in zip(played(x), backbone(x), strict=True):
            torch.testing.assert_close(found, expected, atol=0, rtol=0)


@torch.inference_mode()
def test_what_is_kept_outlives_the_next_playing_and_the_rest_does_not():
    double = Recorded(lambda x: (2 * x, None), TapeRecorder(), kept=True)
    still = Recorded(lambda x: 2 * x, TapeRecorder(), kept=False)
    first, nothing = double(torch.ones(3))
    lying = still(torch.ones(3))
    double(torch.zeros(3))
    assert still(torch.zeros(3)) is lying
    assert nothing is None and first.tolist() == [2, 2, 2] and lying.tolist() == [0, 0, 0]


@torch.inference_mode()
def test_results_are_read_where_they_lie_and_other_arguments_are_copied(monkeypatch):
    recorder = TapeRecorder()
    first, second = (Recorded(lambda x, by: x * by, recorder, kept=False) for _ in range(2))
    outside = torch.ones(2)
    for value in (1.0, 3.0):
        lying = first(torch.full((2,), value), 2)
        assert second(lying, 5).tolist() == [10 * value] * 2
        assert second(outside, 5).tolist() == [5, 5], 'another address, another recording'
    assert recorder.made == 3
    assert second(torch.ones(4), 5).tolist() == [5] * 4 and second(outside, 4).tolist() == [4, 4]
    assert recorder.made == 5
    with eager():
        assert second(torch.ones(7), 5).tolist() == [5] * 7
    assert recorder.made == 5 and not cuda_graphs.Recorded.eager


@torch.inference_mode()
@pytest.mark.filterwarnings('default')
@pytest.mark.parametrize('refused', [
    lambda x: x * float(x.sum()), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0])])
def test_what_cannot_be_recorded_is_said_and_runs_as_it_is(refused):
    part, x = Recorded(refused, TapeRecorder(), kept=True), torch.tensor([2.0, -1.0, 4.0])
    with pytest.warns(RuntimeWarning, match='lambda.* runs operator by operator: operation not permitted'):
        found = part(x)
    assert torch.equal(found, refused(x))
    assert torch.equal(part(2 * x), refused(2 * x)), 'without another warning'


@pytest.mark.filterwarnings('default')
def test_a_segmenter_tells_of_what_falls_back_and_of_what_it_records():
    _, played = pair(Short(), routing=False, decoder_layers=3)
    assert played.needs_recording(96, 128) and played.recordings == 0
    played.model.prepare._recorder.times = 1
    with pytest.warns(RuntimeWarning, match='prepare runs operator by operator at a new size'):
        played.warm_up(96, 128)
    assert not any('prepare' in line for line in played.remarks), 'recorded meanwhile'
    made, state = played.recordings, played.new_state()
    assert made > 5 and not played.needs_recording(96, 128) and played.needs_recording(64, 128)
    played.step(picture(), state)
    assert played.recordings == made
    played.model.prepare._recorder.times = 1000
    with pytest.warns(RuntimeWarning):
        played.step(picture(0, 64, 128), played.new_state())
    assert any('prepare runs operator by operator' in line for line in played.remarks)


def test_steps_that_record_are_no_measure_of_the_latency():
    _, played = pair(routing=False, decoder_layers=3)
    played.options = replace(played.options, latency_budget_ms=1e-3)
    state = played.new_state()
    with mock.patch.object(LatencyBudget, 'update') as updated:
        played.step(picture(), state)
        assert played.recordings > 5 and not updated.called
        played.step(picture(1), state)
        assert updated.called


def test_a_part_that_cannot_be_recorded_is_among_the_remarks():
    plain, played = pair(routing=False, decoder_layers=3)
    refused = 'prepare cannot be recorded as a CUDA graph'
    played.model.prepare.remark = refused
    assert refused in played.remarks and refused not in plain.remarks


@torch.inference_mode()
@pytest.mark.filterwarnings('default')
def test_a_part_that_gives_up_takes_nothing_of_the_others_along():
    recorder, double, x = TapeRecorder(), 2 * torch.eye(4), torch.ones(2, 4)
    stays = Recorded(lambda x: x @ double, recorder, kept=True)
    goes = Recorded(lambda x: x @ double if len(x) == 2 else x[x > 0], recorder, kept=True)
    stays(x), goes(x)
    with pytest.warns(RuntimeWarning, match='operator by operator'):
        goes(torch.ones(3, 4))
    assert torch.equal(stays(3 * x), 6 * x), 'what cuBLAS works in has not gone'
    assert not recorder.cuda.workspaces, 'nor does any of it stay for the next capture, or the next configure'


class Short(TapeRecorder):
    """Has no memory for so many recordings to come; torch raises what is said of the capture then."""

    times = 0

    def record(self, function, kept):
        if self.times:
            self.times -= 1
            try:
                raise torch.cuda.OutOfMemoryError('CUDA out of memory')
            except RuntimeError:
                raise RuntimeError('operation failed due to a previous error during capture')  # noqa: B904
        return super().record(function, kept)


@torch.inference_mode()
@pytest.mark.filterwarnings('default')
def test_want_of_memory_costs_one_call_and_neither_the_part_nor_its_other_sizes():
    recorder, ran = Short(), []
    part = Recorded(lambda x: ran.append(len(x)) or 2 * x, recorder, kept=True)
    first, second = torch.ones(2), torch.ones(3)
    part(first)
    recorder.times, ran[:] = 1, []
    with pytest.warns(RuntimeWarning, match='no memory for its CUDA graph'):
        assert part(second).tolist() == [2, 2, 2]
    assert ran == [3] and 'no memory' in part.remark
    assert part(first).tolist() == [2, 2] and ran == [3], 'the first size is played'
    assert part(second).tolist() == [2, 2, 2] and recorder.made == 2 and not part.remark, 'and the second is recorded'


@torch.inference_mode()
def test_lasting_want_of_memory_is_asked_about_more_and_more_seldom():
    recorder = Short()
    recorder.times = 1000
    part = Recorded(lambda x: 2 * x, recorder, kept=True)
    with pytest.warns(RuntimeWarning, match='no memory'):
        for _ in range(200):
            assert part(torch.ones(3)).tolist() == [2, 2, 2]
    assert 5 <= 1000 - recorder.times <= 8
    recorder.times = 0
    for _ in range(200):
        part(torch.ones(3))
    assert recorder.made == 1
    recorder.times = 1
    with pytest.warns(RuntimeWarning, match='no memory'):
        part(torch.ones(4))
    part(torch.ones(4))
    assert recorder.made == 2, 'the next time it begins anew'


@torch.inference_mode()
def test_a_lost_gpu_is_no_part_that_cannot_be_recorded(monkeypatch):
    recorder = TapeRecorder()
    monkeypatch.setitem(recorder._patches, 'synchronize', mock.Mock(side_effect=RuntimeError('CUDA error')))
    part = Recorded(lambda x: x[x > 0], recorder, kept=True)
    with pytest.raises(DeviceLostError, match='restart the process'):
        part(torch.ones(3))
    assert not part.remark and not part._refused


@torch.inference_mode(False)
@torch.no_grad()
def test_what_was_recorded_in_inference_mode_is_played_outside_of_it():
    with torch.inference_mode():
        part = Recorded(lambda x: 2 * x, TapeRecorder(), kept=True)
        part(torch.ones(3))
    assert part(torch.full((3,), 4.0)).tolist() == [8, 8, 8]


@torch.inference_mode()
def test_what_a_recording_reads_is_held_and_what_it_makes_is_not():
    constant, x = torch.ones(3), torch.ones(3)
    with KeepAlive() as held:
        y = x * constant.view(3) + 1
        torch.cat([y, constant, y * 2])
    assert {id(t) for t in held.tensors} == {id(constant), id(x)}


@torch.inference_mode()
def test_holding_what_is_read_leaves_mixed_precision_alone():
    query, features = torch.randn(1, 4, 8, dtype=torch.bfloat16), torch.randn(1, 8, 3, 3)
    with torch.autocast('cpu', dtype=torch.bfloat16), KeepAlive():
        assert torch.einsum('nqd,ndhw->nqhw', query, features).dtype == torch.bfloat16


def test_operators_are_looked_at_though_they_are_recorded():
    _, played = pair()
    played.warm_up(96, 128)
    found = operators(Contender(played, played.options), picture())
    assert 'scaled_dot_product' in found['attention'] and found['deformable_attention'] == 'embedding_bag'
