"""The inference form of a model gives what the plain form gives, on the same weights and frames."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_model

from tar_vis_core.benchmark import machine
from tar_vis_core.models import deformable
from tar_vis_core.models import packed as packed_form
from tar_vis_core.models.layers import MLP, Attention, Conv, Linear
from tar_vis_core.models.packed import inference_form, packed, with_weights_in
from tar_vis_core.models.packed_layers import PackedConv, PackedLinear, PackedLinears, PackedPointwise, packable
from tar_vis_core.models.packed_units import PackedChain
from tar_vis_core.models.video_model import VideoInstanceModel, build_model
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import compute_context
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


KERNEL_CASES = {       # frames, heads, width, points, value levels, queries
    'all levels': (1, 8, 32, 4, ((3, 4), (6, 8), (12, 16)), 252), 'wide': (2, 2, 64, 4, ((7, 5),), 33),
    'narrow': (2, 3, 16, 2, ((9, 1), (1, 9)), 70), 'any width': (3, 3, 5, 3, ((4, 6), (2, 2)), 41)}


def kernel_case(name, spread=2.0):
    frames, heads, width, points, shapes, queries = KERNEL_CASES[name]
    generator = torch.Generator().manual_seed(0)
    cells, levels = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(frames, cells, heads * width, generator=generator)
    offsets = spread * torch.randn(frames, queries, heads, levels, points, 2, generator=generator)
    logits = 3 * torch.randn(offsets.shape[:-1], generator=generator)
    return value, offsets, logits, torch.rand(queries, 2, generator=generator), shapes


@needs_kernels
@pytest.mark.parametrize('spread', [0.0, 2.0, 50.0])
@pytest.mark.parametrize('name', KERNEL_CASES)
def test_every_way_to_sample_gives_the_same(name, spread):
    case = kernel_case(name, spread)
    expected = deformable.sample_by_grid(*(t.double() if torch.is_tensor(t) else t for t in case))
    for way, sample in deformable.SAMPLERS.items():
        if way == 'Triton kernel':      # below
            continue
        found = sample(*case).double()
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0, msg=lambda text, w=way: f'{w}: {text}')


@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='Triton is not installed')
def test_the_triton_kernel_gives_the_same():
    """Run by Triton's interpreter, which needs no GPU; it must be told before Triton is imported."""
    script = """
import torch
from test_packed import KERNEL_CASES, kernel_case
from tar_vis_core.runtime.kernels.triton_deformable import sample_by_triton
from tar_vis_core.models.deformable import sample_by_grid

def few(case):      # the interpreter takes its time
    value, offsets, logits, reference, shapes = case
    return value, offsets[:, :20], logits[:, :20], reference[:20], shapes

for name, spread in (('all levels', 2.0), ('wide', 0.0), ('narrow', 2.0), ('narrow', 50.0)):
    case = few(kernel_case(name, spread))
    exact = sample_by_grid(*(t.double() if torch.is_tensor(t) else t for t in case))
    torch.testing.assert_close(sample_by_triton(*case).double(), exact, atol=2e-5, rtol=0)
value, offsets, logits, reference, shapes = few(kernel_case('narrow'))
assert sample_by_triton(value.half(), offsets, logits.half(), reference, shapes).dtype == torch.float16
offsets[0, 0], offsets[0, 1], offsets[0, 2] = float('nan'), float('inf'), -1e30
assert torch.equal(sample_by_triton(value, offsets, logits, reference, shapes)[0, :3], torch.zeros(3, value.shape[-1]))
try:
    sample_by_triton(*kernel_case('any width'))
except ValueError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, '-c', script], cwd=Path(__file__).parent, capture_output=True, text=True,
                           env={**os.environ, 'TRITON_INTERPRET': '1',
                                'PYTHONPATH': str(Path(__file__).parents[1] / 'helpers')})
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith('5 channels a head, expected one of')


@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='Triton is not installed')
@pytest.mark.parametrize('capability', [75, 87, 90])
def test_the_triton_kernel_compiles_for_gpus_that_are_not_here(capability, tmp_path):
    """To machine code, by Triton and the assembler that comes with it."""
    script = f"""
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tar_vis_core.runtime.kernels.triton_deformable import BLOCK, _sample
from tar_vis_core.runtime.kernels import TRITON_WIDTHS
for kind, width in [('fp16', w) for w in TRITON_WIDTHS] + [('fp32', 32), ('bf16', 32)]:
    signature = dict(value='*' + kind, offsets='*fp32', logits='*' + kind, reference='*fp32', levels='*i32',
                     out='*' + kind, queries='i32', cells='i32')
    constants = dict(heads=8, level_count=3, points=4, width=width, block=BLOCK)
    aligned = {{(k,): [['tt.divisibility', 16]] for k in range(6)}}     # as torch's memory is
    source = ASTSource(_sample, {{**signature, **dict.fromkeys(constants, 'constexpr')}}, constants, aligned)
    made = triton.compile(source, target=GPUTarget('cuda', {capability}, 32))
    assert len(made.asm['cubin']) > 1000
"""
    found = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                           env={**os.environ, 'TRITON_CACHE_DIR': str(tmp_path)})
    assert found.returncode == 0, found.stderr


@needs_kernels
def test_the_kernel_takes_samples_that_are_nowhere():
    value, offsets, logits, reference, shapes = kernel_case('all levels')
    offsets[0, 0], offsets[0, 1], offsets[0, 2], offsets[0, 3] = float('nan'), float('inf'), -1e30, 1e9
    out = kernels.sample_deformable(value, offsets, logits, reference, shapes)
    assert torch.equal(out[0, :4], torch.zeros_like(out[0, :4])) and out.isfinite().all() and out[0, 4:].any()


@needs_kernels
def test_the_kernel_refuses_what_does_not_fit_and_takes_any_strides():
    value, offsets, logits, reference, shapes = kernel_case('wide')
    expected = kernels.sample_deformable(value, offsets, logits, reference, shapes)
    turned = value.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(kernels.sample_deformable(turned, offsets, logits, reference, shapes), expected)
    with pytest.raises(ValueError, match='shapes do not fit'):
        kernels.sample_deformable(value[:, 1:], offsets, logits, reference, shapes)
    half = kernels.sample_deformable(value.bfloat16(), offsets, logits, reference, shapes)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.02)


@needs_kernels
@pytest.mark.parametrize('name', KERNEL_CASES)
def test_samples_of_bfloat16_are_those_of_the_same_floats(name):
    """But for the rounding of the result; offsets and logits may lie in one tensor."""
    value, offsets, logits, reference, shapes = kernel_case(name)
    sizes = [like[0, 0].numel() for like in (offsets, logits)]
    both = torch.cat((offsets.flatten(2), logits.flatten(2)), -1).bfloat16()
    half = [part.unflatten(-1, like.shape[2:]) for part, like in zip(both.split(sizes, -1), (offsets, logits),
                                                                     strict=True)]
    whole = [part.float().contiguous() for part in half]
    exact = kernels.sample_deformable(value.bfloat16().float(), *whole, reference, shapes)
    assert torch.equal(kernels.sample_deformable(value.bfloat16(), *half, reference, shapes), exact.bfloat16())


@needs_kernels
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_other_kernels_round_bfloat16_once(dtype):
    generator = torch.Generator().manual_seed(0)
    x, added = (torch.randn(shape, generator=generator) for shape in ((2, 70, 48), (70, 48)))
    x, weight, bias = x.to(dtype), *torch.randn(2, 48, generator=generator)
    x[1, 3, 5] = float('nan')       # of its row alone
    exact = torch.nn.functional.layer_norm(x.double(), (48,), weight.double(), bias.double(), 1e-5)
    limit = dict(atol=1e-5, rtol=2 ** -8 if dtype == torch.bfloat16 else 1e-5, equal_nan=True)
    for found, expected in zip(kernels.layer_norm(x, weight, bias, 1e-5, added), (exact, exact + added), strict=True):
        assert found.dtype == dtype and found.isnan().sum() == 48
        torch.testing.assert_close(found.double(), expected, **limit)
    assert kernels.layer_norm(x, weight, bias, 1e-5)[1] is None
    with pytest.raises(ValueError, match='shapes do not fit'):
        kernels.layer_norm(x, weight, bias, 1e-5, added[1:])
    x = torch.randn(1, 24, 9, 7, generator=generator).to(dtype)
    whole = kernels.group_norm(x.float(), 6, weight[:24], bias[:24], 1e-5)
    assert torch.equal(kernels.group_norm(x, 6, weight[:24], bias[:24], 1e-5), whole.to(dtype))
    query, key, value = torch.randn(3, 1, 40, 64, generator=generator).to(dtype)
    keep = runs_of_keys(1, 40, 40, 0.3)
    whole = kernels.attention(query.float(), key.float(), value.float(), 2, keep)
    assert torch.equal(kernels.attention(query, key, value, 2, keep), whole.to(dtype))


def runs_of_keys(frames, queries, keys, share):
    """A mask whose queries keep a run of keys or two, at least one key each."""
    generator = torch.Generator().manual_seed(keys)
    keep = torch.zeros(frames, queries, keys, dtype=torch.bool)
    for row in keep.view(-1, keys):
        for start in torch.randint(0, keys, (2,), generator=generator).tolist():
            row[start:start + max(1, int(share * keys / 2))] = True
    return keep


@needs_kernels
@pytest.mark.parametrize('share', [None, 0.0, 0.2, 1.0])
@pytest.mark.parametrize('frames, queries, keys, heads, width', [
    (1, 50, 1408, 8, 16), (2, 33, 7, 3, 32), (1, 1, 513, 2, 64), (3, 70, 530, 1, 32)])
def test_attention_equals_pytorchs(frames, queries, keys, heads, width, share):
    torch.manual_seed(0)
    query, key, value = (torch.randn(frames, n, heads * width) * 2 for n in (queries, keys, keys))
    keep = None if share is None else runs_of_keys(frames, queries, keys, share)
    attention = Attention(heads * width, heads).double()
    exact = attention.attend(query.double(), key.double(), value.double(), keep)
    assert kernels.attends(width)
    found = kernels.attention(query, key, value, heads, keep)
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=0)
    # large logits must not overflow
    found = kernels.attention(100 * query, key, value, heads, keep)
    exact = attention.attend(100 * query.double(), key.double(), value.double(), keep)
    torch.testing.assert_close(found.double(), exact, atol=1e-2, rtol=0)


@needs_kernels
def test_a_query_without_a_key_harms_no_other():
    query = torch.randn(1, 3, 32)
    keep = torch.tensor([[[True, False], [False, False], [True, True]]])
    found = kernels.attention(query, torch.randn(1, 2, 32), torch.ones(1, 2, 32), 1, keep)
    assert found[0, 1].isnan().all()
    torch.testing.assert_close(found[0, [0, 2]], torch.ones(2, 32))
    with pytest.raises(ValueError, match='shapes do not fit'):
        kernels.attention(query, torch.randn(1, 2, 32), torch.ones(1, 3, 32), 1, None)
    assert not kernels.attends(24)


@pytest.mark.parametrize('size', [(1, 1), (7, 5), (40, 33)])
def test_group_norm_keeps_its_digits(size):
    """Also where a group varies little around a mean that is large, which PyTorch's own does not with channels last."""
    torch.manual_seed(0)
    x = torch.randn(2, 24, *size) * 0.01 + 10 * torch.randn(1, 24, 1, 1)
    weight, bias = torch.randn(24), torch.randn(24)
    found = kernels.group_norm(x.contiguous(memory_format=torch.channels_last), 24, weight, bias, 1e-5)
    grouped = kernels.group_norm(x, 6, weight, bias, 1e-5)
    for ours, groups in ((found, 24), (grouped, 6)):
        exact = torch.nn.functional.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
        torch.testing.assert_close(ours.double(), exact, atol=2e-3, rtol=0)


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
