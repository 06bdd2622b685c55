"""The inference form of a model gives what the plain form gives, on the same weights and frames."""

import copy

import pytest
import torch
from tiny_model import tiny_model

from tar_vis_core.benchmark import machine
from tar_vis_core.models import deformable
from tar_vis_core.models import packed as packed_form
from tar_vis_core.models.layers import MLP, Attention, Conv, Linear
from tar_vis_core.models.packed import inference_dtype, inference_form, packed, with_weights_in
from tar_vis_core.models.packed_layers import PackedConv, PackedLinear, PackedLinears, PackedPointwise, packable
from tar_vis_core.models.packed_units import PackedChain
from tar_vis_core.models.presets import PRESETS
from tar_vis_core.models.video_model import VideoInstanceModel, build_model
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import compute_context
from tar_vis_core.segmenter import VideoSegmenter
from tar_vis_core.tracking.tracker import make_tracker

CPU = torch.device('cpu')
needs_packing = pytest.mark.skipif(not packable(), reason='this build of torch lacks the operators')
needs_kernels = pytest.mark.skipif(kernels.compiled() is None, reason='the kernels are not built')

MODELS = {
    'nano': tiny_model,
    'referring tracker': lambda: tiny_model(reid=True, tracker_layers=2, tracker_ffn=16, tracker='referring'),
    'referring tracker of 2023': lambda: tiny_model(tracker_layers=2, tracker_ffn=16, tracker='referring_2023'),
    'dynamic anchors': lambda: tiny_model(reid=True, tracker_layers=2, tracker_ffn=16, tracker='dynamic_anchors'),
    'plain convolution': lambda: tiny_model(separable=False, routing=False),
    **{preset: (lambda preset=preset: build_model(preset)) for preset in ('minvis_r50',)},
}


def images(height=96, width=128, seed=1):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


@torch.inference_mode()
def passed(model, size, dtype=torch.float32):
    """All that two frames make of a model, by name; the second one routed where there are routers."""
    found, previous, memory = {}, None, None
    tracker = make_tracker(model.config.tracker, model)
    routing = 'adaptive' if model.config.routing else 'full'
    with compute_context(CPU, dtype):
        for k in range(2):
            features = model.encode(model.normalize(images(*size, seed=k)))
            out = model.decode(features, previous, routing)
            tracked, memory = tracker.track(out, features.mask_features, memory)
            previous = out.queries
            found |= {f'{name} {k}': value.float() for name, value in {
                'mask features': features.mask_features, 'logits': out.logits, 'mask embeddings': out.mask_embeddings,
                'queries': out.queries, 'tracked': tracked.logits}.items()}
            found[f'executed {k}'] = torch.tensor(out.trace.executed)
    return found


@pytest.mark.parametrize('size', [(96, 128), (70, 201)])
@pytest.mark.parametrize('name', MODELS)
def test_equals_the_plain_form(name, size):
    torch.manual_seed(2)
    plain = MODELS[name]().eval()
    fast = inference_form(copy.deepcopy(plain), CPU)
    expected, found = passed(plain, size), passed(fast, size)
    for key, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(found[key], value), key
            continue
        gap = (found[key] - value).abs().flatten() / max(1.0, value.abs().max().item())
        # where a mask logit lies within rounding of 0, a bit of an attention mask differs, and with it a little of all
        # that follows; test_parity.py compares where none does
        limit, most = (2e-5, 2e-5) if 'features' in key else (1e-4, 0.1)
        assert gap.median() < limit and gap.max() < most, key


@pytest.mark.parametrize('lacking', ['kernels', 'operators'])
def test_equals_the_plain_form_without_what_may_be_lacking(monkeypatch, lacking):
    if lacking == 'kernels':
        monkeypatch.setattr(kernels, 'compiled', lambda: None)
    else:
        monkeypatch.setattr(packed_form, 'packable', tuple)
    torch.manual_seed(2)
    plain = tiny_model().eval()
    fast = inference_form(copy.deepcopy(plain), CPU)
    assert any(isinstance(m, PackedLinear) for m in fast.modules()) == (lacking == 'kernels' and bool(packable()))
    expected, found = passed(plain, (96, 128)), passed(fast, (96, 128))
    for key, value in expected.items():
        scale = max(1.0, value.float().abs().max().item())
        torch.testing.assert_close(found[key].float(), value.float(), atol=1e-4 * scale, rtol=0, msg=key)


@needs_packing
def test_no_plain_layer_is_left_on_a_cpu():
    fast = inference_form(build_model('nano'), CPU)
    plain = [type(m).__name__ for m in fast.modules() if type(m) in (Linear, Conv, Attention, torch.nn.Linear,
                                                                   torch.nn.Conv2d)]
    assert not plain
    assert sum(isinstance(m, (PackedLinear, PackedLinears, PackedConv, PackedChain)) for m in fast.modules()) > 100
    assert not any(p.requires_grad for p in fast.parameters())


@needs_packing
@torch.inference_mode()
@pytest.mark.parametrize('activation', ['none', 'relu', 'relu6', 'gelu'])
@pytest.mark.parametrize('layer', [
    'linear', 'wide linear', 'layers', 'pointwise', 'strided pointwise', 'convolution', 'depthwise same'])
def test_every_packed_layer_with_every_activation(layer, activation):
    torch.manual_seed(0)
    made = {'linear': lambda: Linear(24, 40, activation), 'wide linear': lambda: Linear(24, 4000, activation),
            'layers': lambda: MLP(24, 50, 40, 3),
            'pointwise': lambda: Conv(24, 40, 1, activation=activation),
            'strided pointwise': lambda: Conv(24, 40, 1, 2, bias=False, activation=activation),
            'convolution': lambda: Conv(24, 40, 3, activation=activation),
            'depthwise same': lambda: Conv(24, 24, 3, 2, groups=24, activation=activation, same=True)}[layer]()
    fast = packed(copy.deepcopy(made), torch.float32)
    assert isinstance(fast, PackedPointwise) == ('pointwise' in layer)
    x = 5 * torch.randn(2, 10, 24) if layer in ('linear', 'wide linear', 'layers') else 5 * torch.randn(2, 24, 10, 14)
    before = x.clone()
    expected = made(x)
    torch.testing.assert_close(fast(x), expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(x, before)
    if activation in ('none', 'relu') and layer != 'layers':     # what models add to
        added = torch.randn_like(expected)
        torch.testing.assert_close(fast(x, added), made(x, added), atol=2e-5, rtol=1e-5)


@needs_packing
@pytest.mark.skipif(torch.bfloat16 not in packable(), reason='this processor has no bfloat16')
def test_bfloat16_is_near_float32():
    torch.manual_seed(2)
    plain = tiny_model().eval()
    fast = inference_form(copy.deepcopy(plain), CPU, torch.bfloat16)
    expected, found = passed(plain, (96, 128)), passed(fast, (96, 128), torch.bfloat16)
    gap = (found['mask features 0'] - expected['mask features 0']).abs()
    assert 0 < gap.mean() < 0.2 * expected['mask features 0'].abs().mean()


@needs_packing
@needs_kernels
def test_auto_is_bfloat16_for_the_default_model_on_a_cpu_that_is_faster_so(monkeypatch):
    for fast in (True, False):
        monkeypatch.setattr(kernels, 'fast_bfloat16', lambda fast=fast: fast)
        assert VideoSegmenter('nano', device='cpu').model.mixes == fast
        assert not VideoSegmenter('nano', device='cpu', precision='float32').model.mixes
        for preset, device in (('minvis_r50', 'cpu'), ('nano', 'cuda')):
            assert inference_dtype('auto', PRESETS[preset], torch.device(device)) == torch.float32
    assert VideoSegmenter('nano', device='cpu', precision='bfloat16').dtype == torch.float32, 'nothing else is rounded'


def test_the_kernel_is_chosen_where_it_can_be():
    with torch.inference_mode():
        assert deformable.sampler(CPU, 32) == ('compiled kernel' if kernels.compiled() else 'embedding_bag')
    assert deformable.sampler(CPU, 32) == 'grid_sample', 'with a gradient'


@pytest.mark.parametrize(('works', 'chosen'), [(True, 'Triton kernel'), (False, 'grid_sample')])
def test_a_gpu_samples_by_grid_where_the_kernel_cannot(works, chosen, monkeypatch):
    monkeypatch.setattr(kernels, 'samples_on_gpu', lambda *_: works)
    with torch.inference_mode():
        assert deformable.sampler(torch.device('cuda:0'), 32) == chosen


def test_whether_the_kernel_works_is_tried_and_what_it_lacks_is_said(monkeypatch):
    pytest.importorskip('triton')
    asked = []

    def right(value, *rest):
        asked.append(value.shape)
        return deformable.sample_by_grid(value, *rest)

    def failing(*_):
        raise RuntimeError('Failed to find C compiler')

    kernels.no_gpu_samples.cache_clear()
    try:
        monkeypatch.setattr(kernels, 'sample_on_gpu', right)
        assert kernels.samples_on_gpu(32, CPU) and kernels.samples_on_gpu(32, CPU)
        assert asked == [(1, 60, 64)]
        for width, kernel, words in (
                (48, right, 'heads of 48 channels'), (64, failing, 'Failed to find C compiler'),
                (16, lambda *args: 1.01 * right(*args), 'off by'),
                (128, lambda *args: float('nan') * right(*args), 'off by')):
            monkeypatch.setattr(kernels, 'sample_on_gpu', kernel)
            with pytest.warns(RuntimeWarning, match=f'grid_sample.*{words}'):
                assert not kernels.samples_on_gpu(width, CPU)
            assert words in kernels.no_gpu_samples(width, CPU)
    finally:
        kernels.no_gpu_samples.cache_clear()


@pytest.fixture
def short_cuts():
    """torch's own short cuts of float32 on GPUs: allowed before, as they were after."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = True
    yield places
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


def test_float32_on_a_gpu_is_float32(monkeypatch, short_cuts):
    monkeypatch.setattr(VideoInstanceModel, 'to', lambda self, *args, **kwargs: self)
    monkeypatch.setattr(packed_form, 'CudaRecorder', lambda device: None)
    assert machine.float32_on_gpu() == 'convolutions TF32, products TF32'
    inference_form(tiny_model(), torch.device('cuda:0'))
    assert not any(place.allow_tf32 for place in short_cuts)
    assert machine.float32_on_gpu() == 'convolutions IEEE, products IEEE'


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_weights_in_the_precision_give_what_casting_them_gives(dtype):
    """What a GPU is given: exactly what mixed precision computes without it."""
    for changes in ({}, *(dict(reid=True, tracker_layers=1, tracker_ffn=16, tracker=tracker)
                          for tracker in ('referring', 'referring_2023', 'dynamic_anchors'))):
        torch.manual_seed(2)
        plain = tiny_model(**changes).eval().requires_grad_(False)
        cast = with_weights_in(copy.deepcopy(plain), dtype)
        assert cast.decoder.layers[0].linear1.weight.dtype == cast.decoder.layers[0].cross_attn.in_proj_bias.dtype \
            == cast.backbone.stem.weight.dtype == dtype
        expected, found = passed(plain, (96, 128), dtype), passed(cast, (96, 128), dtype)
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
