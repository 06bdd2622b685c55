"""Deformable attention: any queries over any value levels equal a plain loop, on both paths and in half precision."""

import copy
import math

import pytest
import torch
from plain_deformable import centres, plain_deformable_attention

from tar_vis_core.models.deformable import DeformableAttention, reference_points

CASES = {'one level, more queries': (((4, 6),), ((8, 12), (4, 6), (2, 3))),
         'three levels, fewer queries': (((3, 4), (5, 8), (9, 16)), ((3, 5),))}


def random_case(values, queries, dim=24, heads=3):
    generator = torch.Generator().manual_seed(3)
    module = DeformableAttention(dim, heads, len(values), 4)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            spread = 1.5 if name == 'sampling_offsets.bias' else 1 / math.sqrt(dim)
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    reference = reference_points(queries, torch.device('cpu'))
    query = torch.randn(2, len(reference), dim, generator=generator)
    value = torch.randn(2, sum(h * w for h, w in values), dim, generator=generator)
    return module, query, value, reference


@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('case', CASES)
def test_equals_the_plain_loop(case, gradients):
    shapes, queries = CASES[case]
    module, query, value, reference = random_case(shapes, queries)
    exact = copy.deepcopy(module).double()
    expected = torch.stack([plain_deformable_attention(exact, q.double(), v.double(), centres(queries), shapes)
                            for q, v in zip(query, value, strict=True)])
    with torch.set_grad_enabled(gradients):
        result = module(query, value, reference, shapes)
    torch.testing.assert_close(result.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 0.05), (torch.float16, 0.005)])
def test_half_precision_samples_at_float32_positions(dtype, tolerance, gradients):
    # a position rounded to half precision is off by cells in so wide a map; the offsets are exact in both types
    shapes, queries = ((1, 2000),), ((1, 500),)
    module, query, value, reference = random_case(shapes, queries)
    with torch.no_grad():
        module.sampling_offsets.weight.zero_()
        module.sampling_offsets.bias.copy_(module.sampling_offsets.bias.to(dtype))
        expected = module(query, value, reference, shapes)
    with torch.set_grad_enabled(gradients), torch.autocast('cpu', dtype):
        result = module(query, value, reference, shapes)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=0)
