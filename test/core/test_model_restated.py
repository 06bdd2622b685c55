"""The fast modules equal a deliberately plain restatement of both decoders, on tiny random cases."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain_deformable import centres, plain_deformable_attention
from torch import nn

from tar_vis_core.models.layers import Attention, sine_encoding
from tar_vis_core.models.masked_decoder import MaskedDecoder
from tar_vis_core.models.pixel_decoder import PixelDecoder

DIM, HEADS = 32, 4


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def randomize(module, generator):
    """Every parameter away from its initial value, so that each one shows in the output."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            spread = 1.5 if name.endswith('sampling_offsets.bias') else 0.5 if parameter.ndim == 1 else \
                1 / math.sqrt(parameter[0].numel())
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
            if 'norm' in name and name.endswith('weight'):
                parameter.add_(1)
    return module.eval()


def plain_sine(height, width, dim):
    """Section 3.1, one number at a time."""
    half = dim // 2
    encoding = torch.zeros(dim, height, width)
    for row in range(height):
        for column in range(width):
            for k in range(half):
                period = 10000 ** (2 * (k // 2) / half)
                y = (row + 1) / (height + 1e-6) * 2 * math.pi / period
                x = (column + 1) / (width + 1e-6) * 2 * math.pi / period
                encoding[k, row, column] = math.sin(y) if k % 2 == 0 else math.cos(y)
                encoding[half + k, row, column] = math.sin(x) if k % 2 == 0 else math.cos(x)
    return encoding


def plain_pixel_decoder(module, maps):
    """One image: res2..res5, each ``(1, C, h, w)``."""
    res2, res3, res4, res5 = maps
    inputs = [project(x) for project, x in zip(module.input_proj, (res5, res4, res3), strict=True)]
    shapes = [tuple(x.shape[-2:]) for x in inputs]
    x = torch.cat([i[0].flatten(1).T for i in inputs])
    position = torch.cat([plain_sine(h, w, DIM).flatten(1).T + module.level_embed[level]
                          for level, (h, w) in enumerate(shapes)])
    for layer in module.layers:
        attended = plain_deformable_attention(layer.self_attn, x + position, x, centres(shapes), shapes)
        x = layer.norm1(x + attended)
        x = torch.nn.LayerNorm.forward(layer.norm2, x + layer.linear2(layer.linear1(x).relu()))
    levels = [part.T.reshape(1, DIM, h, w)
              for part, (h, w) in zip(x.split([h * w for h, w in shapes]), shapes, strict=True)]
    upper = F.interpolate(levels[2], res2.shape[-2:], mode='bilinear', align_corners=False)
    return module.mask_features(module.output(module.lateral(res2) + upper)), levels


def torch_attention(module):
    """PyTorch's own multi-head attention with the same numbers."""
    attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True).eval()
    attention.load_state_dict(module.state_dict())
    return attention


def plain_masked_decoder(module, mask_features, levels):
    """One frame. Full-size mask logits resized per layer. Gives all heads' outputs and the count of empty masks."""
    x, heads, empty = module.query_feat[None], [], 0
    position = module.query_embed[None]

    def predict(x):
        normed = module.decoder_norm(x)
        masks = torch.einsum('nqd,ndhw->nqhw', module.mask_embed(normed), mask_features)
        heads.append((module.class_embed(normed), masks))
        return masks

    masks = predict(x)
    for i, layer in enumerate(module.layers):
        level = levels[i % 3]
        h, w = level.shape[-2:]
        value = (level + module.level_embed[i % 3][:, None, None]).flatten(2).transpose(1, 2)
        key = value + plain_sine(h, w, DIM).flatten(1).T
        resized = F.interpolate(masks, (h, w), mode='bilinear', align_corners=False)
        blocked = resized.sigmoid().flatten(2)[0] < 0.5
        for row in blocked:
            if row.all():
                row[:] = False
                empty += 1
        x = layer.cross_norm(x + torch_attention(layer.cross_attn)(x + position, key, value, attn_mask=blocked)[0])
        q = x + position
        x = layer.self_norm(x + torch_attention(layer.self_attn)(q, q, x)[0])
        x = layer.ffn_norm(x + layer.linear2(layer.linear1(x).relu()))
        masks = predict(x)
    return x, heads, empty


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (8, 4)])
def test_sine_encoding(size):
    torch.testing.assert_close(sine_encoding(*size, 16, torch.device('cpu')), plain_sine(*size, 16),
                               atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_equals_pytorchs(generator):
    attention = randomize(Attention(DIM, HEADS), generator)
    query, memory = (torch.randn(2, n, DIM, generator=generator) for n in (5, 7))
    keep = torch.rand(2, 5, 7, generator=generator) > 0.4
    keep[:, :, 0] = True
    ours = attention(query, memory, 2 * memory, keep)
    plain = torch_attention(attention)(query, memory, 2 * memory, attn_mask=~keep.repeat_interleave(HEADS, 0))[0]
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('gradients', [False, True])  # the deformable attention has a form for each
def test_pixel_decoder_equals_loops(gradients, generator):
    module = randomize(PixelDecoder((6, 8, 10, 12), dim=DIM, layers=2, heads=HEADS, points=3, ffn=48), generator)
    sizes = ((16, 24), (8, 12), (4, 6), (2, 3))
    maps = [torch.randn(2, c, h, w, generator=generator) for c, (h, w) in zip((6, 8, 10, 12), sizes, strict=True)]
    with torch.set_grad_enabled(gradients):
        mask_features, levels = module(*maps)
    with torch.no_grad():
        for n in range(2):
            plain_features, plain_levels = plain_pixel_decoder(module, [x[n:n + 1] for x in maps])
            torch.testing.assert_close(mask_features[n:n + 1], plain_features, atol=1e-4, rtol=1e-4)
            for ours, plain in zip(levels, plain_levels, strict=True):
                torch.testing.assert_close(ours[n:n + 1], plain, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_masked_decoder_equals_a_plain_one(generator):
    module = MaskedDecoder(DIM, HEADS, ffn=48, queries=20, classes=3, layers=6, routing=False)
    module = randomize(module, generator)
    mask_features = torch.randn(2, DIM, 16, 24, generator=generator)
    mask_features[1] -= 2 * module.mask_embed(module.decoder_norm(module.query_feat[3]))[:, None, None]
    levels = [torch.randn(2, DIM, h, w, generator=generator) for h, w in ((2, 3), (4, 6), (8, 12))]
    output, deep = module(mask_features, levels), module.supervised(mask_features, levels)
    empty = 0
    for n in range(2):
        queries, heads, count = plain_masked_decoder(module, mask_features[n:n + 1], [x[n:n + 1] for x in levels])
        empty += count
        torch.testing.assert_close(output.queries[n:n + 1], queries, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.logits[n:n + 1], heads[-1][0], atol=1e-4, rtol=1e-4)
        for depth, (logits, masks) in enumerate(heads):
            torch.testing.assert_close(deep.logits[depth][n:n + 1], logits, atol=1e-4, rtol=1e-4)
            ours = torch.einsum('qd,dhw->qhw', deep.mask_embeddings[depth][n], mask_features[n])
            torch.testing.assert_close(ours, masks[0], atol=1e-3, rtol=1e-4)
    assert empty > 0  # the rule for queries that see nothing was exercised
