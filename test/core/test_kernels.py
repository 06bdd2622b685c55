"""The compiled kernels give what PyTorch gives, in float32 and in bfloat16; Triton's as well."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tar_vis_core.models import deformable
from tar_vis_core.models.layers import Attention
from tar_vis_core.runtime import kernels

needs_kernels = pytest.mark.skipif(kernels.compiled() is None, reason='the kernels are not built')

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
from test_kernels import KERNEL_CASES, kernel_case
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
