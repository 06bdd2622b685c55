"""What torch.cuda is asked for when a CUDA graph is captured, without a GPU: stand-ins have the real signatures."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch

from tar_vis_core.models.cuda_graphs import CudaRecorder


@pytest.fixture
def asked(monkeypatch):
    """Stand-ins for what torch.cuda lacks without a GPU, with the signatures of the real ones."""
    found = {name: mock.create_autospec(getattr(torch.cuda, name)) for name in (
        'Stream', 'graph_pool_handle', 'device', 'current_stream', 'stream', 'graph', 'synchronize', 'current_device')}
    for name, stand_in in found.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name in ('device', 'stream', 'graph'):
        found[name].return_value = mock.MagicMock()
        found[name].return_value.__exit__.return_value = False
    found['graph_pool_handle'].side_effect = [(0, n) for n in range(1, 9)]
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', type('CUDAGraph', (), {
        'replay': lambda self: None, 'reset': mock.Mock()}))
    for name in ('_cuda_clearCublasWorkspaces', '_cuda_endAllocateToPool'):
        found[name] = mock.Mock()
        monkeypatch.setattr(torch._C, name, found[name], raising=False)
    return found


@pytest.mark.parametrize('kept', [True, False])
def test_torch_is_asked_for_a_graph_as_it_wants_to_be(kept, asked):
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


@pytest.mark.parametrize('fails', [False, True])
def test_a_graph_works_in_a_workspace_of_its_own(fails, asked):
    happened = []
    asked['_cuda_clearCublasWorkspaces'].side_effect = lambda: happened.append('forget')
    asked['graph'].return_value.__enter__.side_effect = lambda *_: happened.append('capture')

    def function():
        happened.append('run')
        if fails and 'capture' in happened:
            raise RuntimeError('something that a graph cannot do')

    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        CudaRecorder(torch.device('cuda:1')).record(function, kept=True)
    assert happened == ['run', 'run', 'forget', 'capture', 'run', 'forget']


@pytest.mark.parametrize('version', ['2.13.0+cu130', '2.14.1'])
def test_a_capture_that_cannot_be_ended_is_left_behind(version, asked, monkeypatch):
    monkeypatch.setattr(torch, '__version__', torch.torch_version.TorchVersion(version))
    recorder = CudaRecorder(torch.device('cuda:1'))
    asked['graph'].return_value.__exit__.side_effect = RuntimeError('capture was invalidated')
    with pytest.raises(RuntimeError, match='invalidated'):
        recorder.record(lambda: None, kept=True)
    graph, pool = asked['graph'].call_args.args[:2]
    if version.startswith('2.13'):
        asked['_cuda_endAllocateToPool'].assert_called_once_with(1, pool)
        assert recorder._failed == [graph], 'the allocator goes on asking it'
    else:       # its reset does that, and a second time would be an error
        graph.reset.assert_called_once_with()
        asked['_cuda_endAllocateToPool'].assert_not_called()
    asked['graph'].return_value.__exit__.side_effect = None
    recorder.record(lambda: None, kept=True)
    assert asked['graph'].call_args.args[1] != pool, 'the shared memory of before is left'


def test_a_capture_that_ends_in_an_error_of_its_function_leaves_nothing_behind(asked):
    recorder, ran = CudaRecorder(torch.device('cuda:1')), []

    def function():
        ran.append(True)
        if len(ran) == 3:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    with pytest.raises(torch.cuda.OutOfMemoryError):
        recorder.record(function, kept=True)
    pool = asked['graph'].call_args.args[1]
    assert not recorder._failed and not asked['_cuda_endAllocateToPool'].called
    recorder.record(function, kept=True)
    assert asked['graph'].call_args.args[1] == pool


def test_a_gpu_without_a_number_is_the_current_one(asked):
    asked['current_device'].return_value = 3
    CudaRecorder(torch.device('cuda'))
    asked['Stream'].assert_called_once_with(torch.device('cuda:3'))
