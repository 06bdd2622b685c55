"""The ViT adapter equals a plain float64 restatement, bears the official names, and keeps its transformer frozen."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from parity_data import FOLDER, needs_parity_data
from plain_deformable import centres, plain_deformable_attention

from tar_vis_core.models.backbones.dinov2 import DinoV2
from tar_vis_core.models.backbones.vit_adapter import ViTAdapterL

DIM, HEADS, GRID = 24, 3, 5


@pytest.fixture(scope='module')
def network():
    """A tiny adapter, every number of it away from its initial value, so that each one shows in the output."""
    generator = torch.Generator().manual_seed(5)
    network = ViTAdapterL(DIM, depth=8, heads=HEADS, grid=GRID, inner=6, deform_heads=2).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point():
                spread = 1.5 if name.endswith('sampling_offsets.bias') else 0.5 if tensor.ndim < 3 else 1
                fan = tensor[0].numel() if tensor.ndim > 1 and not name.endswith(('pos_embed', 'cls_token')) else 1
                tensor.copy_(spread * torch.randn(tensor.shape, generator=generator) / math.sqrt(fan))
                if 'norm' in name and name.endswith('weight'):
                    tensor.add_(1)
    return network


def image_of(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


def cubic_matrix(source, target):
    """Bicubic resize of a line by the factor ``(target + 0.1) / source``, ``(target, source)``, edges repeated."""
    def kernel(d):
        a, d = -0.75, abs(d)
        if d <= 1:
            return (a + 2) * d ** 3 - (a + 3) * d ** 2 + 1
        return a * d ** 3 - 5 * a * d ** 2 + 8 * a * d - 4 * a

    matrix = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        position = (i + 0.5) * source / (target + 0.1) - 0.5
        for j in range(math.floor(position) - 1, math.floor(position) + 3):
            matrix[i, min(max(j, 0), source - 1)] += kernel(position - j)
    return matrix


def plain_position(embedding, grid, height, width):
    patches = torch.einsum('yi,xj,ijd->yxd', cubic_matrix(grid, height), cubic_matrix(grid, width),
                           embedding[0, 1:].double().view(grid, grid, -1))
    return torch.cat((embedding[0, :1].double(), patches.flatten(0, 1)))


def layer_norm(x, state, name):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * state[f'{name}.weight'] + state[f'{name}.bias']


def linear(x, state, name):
    return x @ state[f'{name}.weight'].T + state[f'{name}.bias']


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def batch_norm(x, state, name):
    part = {key: state[f'{name}.{key}'].view(-1, 1, 1) for key in ('weight', 'bias', 'running_mean', 'running_var')}
    return (x - part['running_mean']) / (part['running_var'] + 1e-5).sqrt() * part['weight'] + part['bias']


def plain_transformer(image, state):
    """``(3, H, W)`` -> the patch tokens after blocks 2, 4, 6 and 8."""
    _, height, width = image.shape
    x = [state['vit_module.cls_token'][0, 0]]
    for top in range(0, height, 16):
        for left in range(0, width, 16):
            patch = image[:, top:top + 16, left:left + 16]
            x.append((state['vit_module.patch_embed.proj.weight'] * patch).sum((1, 2, 3))
                     + state['vit_module.patch_embed.proj.bias'])
    x = torch.stack(x) + plain_position(state['vit_module.pos_embed'], GRID, height // 16, width // 16)
    features = []
    for index in range(8):
        name = f'vit_module.blocks.{index}'
        packed = linear(layer_norm(x, state, f'{name}.norm1'), state, f'{name}.attn.qkv')
        heads = []
        for head in range(HEADS):
            size = DIM // HEADS
            q, k, v = (packed[:, part * DIM + head * size:part * DIM + (head + 1) * size] for part in range(3))
            heads.append((q @ k.T / math.sqrt(size)).softmax(-1) @ v)
        x = x + linear(torch.cat(heads, -1), state, f'{name}.attn.proj') * state[f'{name}.ls1.gamma']
        hidden = gelu(linear(layer_norm(x, state, f'{name}.norm2'), state, f'{name}.mlp.fc1'))
        x = x + linear(hidden, state, f'{name}.mlp.fc2') * state[f'{name}.ls2.gamma']
        if index % 2:
            features.append(x[1:])
    return features


def plain_prior(image, state):
    """``(3, H, W)`` -> c1..c4, ``(D, h, w)`` each."""
    def block(x, name, index, stride):
        x = F.conv2d(x[None], state[f'spm.{name}.{index}.weight'], stride=stride, padding=1)[0]
        return batch_norm(x, state, f'spm.{name}.{index + 1}').clamp(min=0)

    x = block(block(block(image, 'stem', 0, 2), 'stem', 3, 1), 'stem', 6, 1)
    maps = [F.max_pool2d(x[None], 3, 2, 1)[0]]
    for name in ('conv2', 'conv3', 'conv4'):
        maps.append(block(maps[-1], name, 0, 2))
    return [torch.einsum('oc,chw->ohw', state[f'spm.fc{index}.weight'][:, :, 0, 0], x)
            + state[f'spm.fc{index}.bias'].view(-1, 1, 1) for index, x in enumerate(maps, 1)]


def plain_extractor(c, x, module, state, name, height, width):
    """``c`` of 21 n tokens, ``x`` the 4 n of the transformer's ``height x width`` map."""
    reference = centres([(2 * height, 2 * width), (height, width), (height // 2, width // 2)])
    query, value = layer_norm(c, state, f'{name}.query_norm'), layer_norm(x, state, f'{name}.feat_norm')
    c = c + plain_deformable_attention(module.attn, query, value, reference, [(height, width)])
    hidden = linear(layer_norm(c, state, f'{name}.ffn_norm'), state, f'{name}.ffn.fc1')
    kernel, bias = state[f'{name}.ffn.dwconv.dwconv.weight'], state[f'{name}.ffn.dwconv.dwconv.bias']
    n, mixed = len(c) // 21, []
    for start, end, h, w in ((0, 16 * n, 2 * height, 2 * width), (16 * n, 20 * n, height, width),
                             (20 * n, 21 * n, height // 2, width // 2)):
        padded = F.pad(hidden[start:end].T.reshape(-1, h, w), (1, 1, 1, 1))
        for row in range(h):
            for column in range(w):
                mixed.append((padded[:, row:row + 3, column:column + 3] * kernel[:, 0]).sum((1, 2)) + bias)
    return c + linear(gelu(torch.stack(mixed)), state, f'{name}.ffn.fc2')


def plain_adapter(network, image):
    """``(3, H, W)`` -> res2..res5, ``(D, h, w)`` each."""
    state = network.state_dict()
    height, width = image.shape[1] // 16, image.shape[2] // 16
    features = plain_transformer(image, state)
    c1, *rest = plain_prior(image, state)
    c = torch.cat([level.flatten(1).T + embed for level, embed in zip(rest, state['level_embed'], strict=True)])
    for index, x in enumerate(features):
        name, module = f'interactions.{index}', network.interactions[index]
        c = plain_extractor(c, x, module.extractor, state, f'{name}.extractor', height, width)
    for index in (0, 1):
        name, module = f'interactions.3.extra_extractors.{index}', network.interactions[3].extra_extractors[index]
        c = plain_extractor(c, features[3], module, state, name, height, width)
    n = len(c) // 21
    c2 = c[:16 * n].T.reshape(DIM, 2 * height, 2 * width)
    c3 = c[16 * n:20 * n].T.reshape(DIM, height, width)
    c4 = c[20 * n:].T.reshape(DIM, height // 2, width // 2)
    up = torch.einsum('iyx,iocd->oycxd', c2, state['up.weight']).reshape(DIM, 4 * height, 4 * width)
    maps = [c1 + up + state['up.bias'].view(-1, 1, 1), c2, c3, c4]
    outputs = []
    for index, (x, c, factor) in enumerate(zip(features, maps, (4, 2, 1, 0.5), strict=True), 1):
        x = x.T.reshape(1, DIM, height, width)
        x = F.interpolate(x, scale_factor=factor, mode='bilinear', align_corners=False)[0]
        outputs.append(batch_norm(c + x, state, f'norm{index}'))
    return outputs


@pytest.mark.parametrize(('height', 'width'), [(64, 96), (96, 32)])
def test_equals_a_plain_restatement(network, height, width):
    # in float64, so that even the epsilons of the norms show
    network, image = copy.deepcopy(network).double(), image_of(height, width).double()
    with torch.no_grad():
        expected = plain_adapter(network, image[0])
        gathered = network(image)
    for ours, trained, plain in zip(gathered, network(image), expected, strict=True):
        torch.testing.assert_close(ours[0], plain, atol=1e-6, rtol=0)
        torch.testing.assert_close(trained[0], plain, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_batch_equals_its_images(network):
    images = image_of(64, 32, batch=2)
    for both, *single in zip(network(images), network(images[:1]), network(images[1:]), strict=True):
        torch.testing.assert_close(both, torch.cat(single), atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_gives_four_strides_and_refuses_unpadded_images(network):
    assert network.channels == (DIM,) * 4
    shapes = [tuple(x.shape) for x in network(image_of(32, 96))]
    assert shapes == [(1, DIM, 32 // stride, 96 // stride) for stride in network.strides]
    with pytest.raises(ValueError, match='multiples of 32'):
        network(image_of(48, 64))


@pytest.mark.parametrize(('height', 'width'), [(30, 54), (24, 40), (42, 74)])
@torch.no_grad()
def test_position_embedding_is_bicubic_with_the_extra_tenth(height, width):
    transformer = DinoV2(dim=4, depth=4, heads=1)
    transformer.pos_embed.normal_(generator=torch.Generator().manual_seed(height))
    expected = plain_position(transformer.pos_embed, 37, height, width)
    torch.testing.assert_close(transformer.position(height, width)[0].double(), expected, atol=1e-4, rtol=0)
    assert transformer.position(37, 37) is transformer.pos_embed


@pytest.mark.parametrize('frozen', [True, False])
def test_gradients_reach_the_transformer_only_where_it_is_not_frozen(network, frozen):
    network = copy.deepcopy(network)
    network.freeze_vit = frozen
    sum(x.square().mean() for x in network(image_of(32, 64))).backward()
    unused = {'vit_module.mask_token', 'vit_module.norm.weight', 'vit_module.norm.bias'}
    expected = {name for name, _ in network.named_parameters() if not (frozen and name.startswith('vit_module.'))}
    assert {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()} == expected - unused


@torch.no_grad()
def test_bfloat16_stays_close(network):
    image = image_of(64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = network(image)
    for ours, exact in zip(rounded, network(image), strict=True):
        assert (ours - exact).abs().mean() < 0.03 * exact.abs().mean()


@needs_parity_data
def test_names_and_shapes_are_the_official_ones():
    with torch.device('meta'):
        state = ViTAdapterL().state_dict()
    rows = json.loads((FOLDER / 'keys_dvispp_vitl.json').read_text())
    official = {name: (shape, dtype) for name, shape, dtype in rows if name.startswith('backbone.')}
    assert {f'backbone.{name}': (list(x.shape), str(x.dtype).removeprefix('torch.')) for name, x in state.items()} \
        == official
