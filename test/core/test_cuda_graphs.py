"""Parts of a model that are recorded and played (CUDA graphs) give what the parts themselves give.

On a tape of operators in place of a graph: the same rules, on any machine.
"""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from tape import TapeRecorder
from test_swin import tiny as tiny_swin
from test_vit_adapter import network as tiny_adapter  # noqa: F401  a fixture
from tiny_model import picture, tiny_model

from tar_vis_core.benchmark.contenders import Line, operators
from tar_vis_core.models import cuda_graphs
from tar_vis_core.models.backbones.resnet import ResNet50
from tar_vis_core.models.cuda_graphs import MOST, CudaRecorder, Held, Recorded, live, record_parts
from tar_vis_core.models.packed import with_weights_in
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import pick_precision
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter

OFFICIAL = dict(semantic_classes=False, class_names=('one', 'two'))
MODELS = {
    'nano': {}, 'bipartite': dict(synchronizer='bipartite'),
    'plain': dict(routing=False),
    'official': OFFICIAL, 'memory bank': dict(**OFFICIAL, reid=True, tracker='memory_bank'),
    'referring tracker': dict(**OFFICIAL, reid=True, referring_layers=2, referring_ffn=16, tracker='referring')}


# all parts of all models can be recorded
pytestmark = pytest.mark.filterwarnings('error:.*operator by operator')


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch):
    """The tape sees torch's operators only."""
    monkeypatch.setattr(kernels, 'compiled', lambda: None)


def pair(recorder=None, precision='float32', **changes) -> list[VideoSegmenter]:
    """A plain segmenter and one of the same model with its parts recorded."""
    model = tiny_model(**changes)
    options = SegmenterOptions(score_threshold=0.05, max_instances=50, refresh_frames=4)
    cast = with_weights_in(copy.deepcopy(model), pick_precision(precision))
    return [VideoSegmenter.from_model(one, 'cpu', precision, options) for one in (
        model, record_parts(cast, recorder or TapeRecorder()))]


def recordings(model) -> int:
    """How many there are now."""
    parts = [part for module in model.modules() for part in vars(module).values() if isinstance(part, Recorded)]
    assert len(parts) >= 7
    return sum(len(sizes) for part in parts for sizes in part._recordings.values())


def assert_equal(found, expected):
    assert found.routing.executed == expected.routing.executed
    np.testing.assert_array_equal(found.routing.execute_probability, expected.routing.execute_probability)
    assert [(i.track_id, i.status, i.class_id, i.score, i.box, i.runs.tolist()) for i in found.instances] == [
        (i.track_id, i.status, i.class_id, i.score, i.box, i.runs.tolist()) for i in expected.instances]


def spread_routers(model) -> None:
    """Routers that skip some layers, by picture."""
    if model.decoder.routers is not None:
        generator = torch.Generator().manual_seed(1)
        for weight in (model.decoder.routers.weight2, model.decoder.routers.bias2):
            with torch.no_grad():
                weight.copy_(2 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', MODELS)
def test_two_streams_of_two_sizes_are_answered_as_by_the_parts_themselves(name, precision):
    plain, played = pair(precision=precision, **MODELS[name])
    for one in (plain, played):
        spread_routers(one.model)
    streams = {one: (one.new_state(), one.new_state()) for one in (plain, played)}
    executed, seen = set(), 0
    for frame in range(7):
        for camera, size in enumerate([(96, 128), (60, 132)]):
            image = picture(10 * camera + frame, *size)
            results = [one.step(image, streams[one][camera]) for one in (plain, played)]
            assert_equal(*results[::-1])
            executed.add(results[0].routing.executed)
            seen += len(results[0].instances)
    assert seen > 10
    assert name == 'plain' or len(executed) > 1, 'some layers are skipped'


def test_a_still_picture_keeps_its_features_while_another_camera_is_encoded():
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


def test_a_camera_that_changes_its_size_all_the_time_costs_no_memory():
    plain, played = pair()
    states, held = [one.new_state() for one in (plain, played)], []
    for turn in range(3):
        for width in range(96, 96 + 8 * (MOST + 2), 8):
            results = [one.step(picture(turn, 96, width), state) for one, state in zip(
                (plain, played), states, strict=True)]
            assert_equal(*results[::-1])
        held.append(recordings(played.model))
    assert held[1] == held[2]
    assert len(played.model.prepare._recordings[64,]) == MOST


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
    with live():
        assert second(torch.ones(7), 5).tolist() == [5] * 7
    assert recorder.made == 5 and not cuda_graphs.Recorded.live


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


@torch.inference_mode()
def test_what_a_recording_reads_is_held_and_what_it_makes_is_not():
    constant, x = torch.ones(3), torch.ones(3)
    with Held() as held:
        y = x * constant.view(3) + 1
        torch.cat([y, constant, y * 2])
    assert {id(t) for t in held.tensors} == {id(constant), id(x)}


@torch.inference_mode()
def test_holding_what_is_read_leaves_mixed_precision_alone():
    query, features = torch.randn(1, 4, 8, dtype=torch.bfloat16), torch.randn(1, 8, 3, 3)
    with torch.autocast('cpu', dtype=torch.bfloat16), Held():
        assert torch.einsum('nqd,ndhw->nqhw', query, features).dtype == torch.bfloat16


@pytest.mark.parametrize('kept', [True, False])
def test_torch_is_asked_for_a_graph_as_it_wants_to_be(kept, monkeypatch):
    """Its calls have the signatures of the real ones; what happens to be missing without a GPU stands in."""
    asked = {name: mock.create_autospec(getattr(torch.cuda, name)) for name in (
        'Stream', 'graph_pool_handle', 'device', 'current_stream', 'stream', 'graph')}
    for name, stand_in in asked.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', type('CUDAGraph', (), {'replay': lambda self: None}))
    for name in ('device', 'stream', 'graph'):
        asked[name].return_value = mock.MagicMock()
        asked[name].return_value.__exit__.return_value = False
    asked['graph_pool_handle'].side_effect = [(0, 1), (0, 2), (0, 3), (0, 4)]
    ran, x = [], torch.ones(2)

    def function():
        ran.append(torch.backends.cudnn.benchmark)
        return 2 * x

    recorder = CudaRecorder(torch.device('cuda:1'))
    replay, result = recorder.record(function, kept)
    assert ran == [True] * 3 and not torch.backends.cudnn.benchmark
    assert result.tolist() == [2, 2] and any(tensor is x for tensor in replay.__self__.held)
    graph, pool, stream = asked['graph'].call_args.args
    assert graph is replay.__self__ and stream is asked['Stream'].return_value
    assert pool == ((0, 1) if kept else (0, 2))

    def failing():
        if len(ran) > 4:
            raise RuntimeError('something that a graph cannot do')
        ran.append(True)

    stop = mock.Mock()
    monkeypatch.setattr(torch._C, '_cuda_endAllocateToPool', stop)
    ran[:] = [True] * 3
    with pytest.raises(RuntimeError, match='cannot do'):
        recorder.record(failing, kept)
    stop.assert_called_once_with(1, asked['graph'].call_args.args[1])
    recorder.record(function, kept=True)
    assert asked['graph'].call_args.args[1] != (0, 1), 'the shared memory of before is left'


def test_operators_are_looked_at_though_they_are_recorded():
    _, played = pair()
    played.warm_up(96, 128)
    found = operators(Line(played, played.options), picture())
    assert 'scaled_dot_product' in found['attention'] and found['deformable_attention'] == 'embedding_bag'
