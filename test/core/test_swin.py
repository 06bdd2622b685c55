import json

import numpy as np
import pytest
import torch
from parity_data import FOLDER
from scipy.special import erf
from torch import nn

from tar_vis_core.models.backbones.swin import SwinBlock, SwinL, relative_position_index

TINY = dict(embed_dim=8, depths=(2, 3, 2, 2), heads=(1, 2, 4, 4), mlp_ratio=2)


def tiny(seed: int = 0, **changes) -> SwinL:
    """A small Swin in evaluation whose biases, norms and position tables are all of the size of its signals."""
    generator = torch.Generator().manual_seed(seed)
    network = SwinL(**{**TINY, 'window': 4, **changes}).eval()
    for name, parameter in network.named_parameters():
        offset = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
        scale = 1.0 if name.endswith('table') else 0.3
        nn.init.normal_(parameter, offset, scale, generator=generator)
    return network


def image(height: int, width: int, number: int = 1) -> torch.Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(7))


class Restated:
    """Swin of one image in float64 numpy, pixel by pixel: no roll, no index table, no batched windows."""

    def __init__(self, network: SwinL, window: int):
        self.state = {name: value.numpy().astype(np.float64) for name, value in network.state_dict().items()}
        self.window = window

    def linear(self, x, name):
        return x @ self.state[f'{name}.weight'].T + self.state.get(f'{name}.bias', 0.0)

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-5)
        return normal * self.state[f'{name}.weight'] + self.state[f'{name}.bias']

    def patches(self, picture):
        rows, columns = -(-picture.shape[1] // 4), -(-picture.shape[2] // 4)
        padded = np.zeros((3, rows * 4, columns * 4))
        padded[:, :picture.shape[1], :picture.shape[2]] = picture
        kernel, bias = self.state['patch_embed.proj.weight'], self.state['patch_embed.proj.bias']
        x = np.array([[(kernel * padded[:, 4 * r:4 * r + 4, 4 * c:4 * c + 4]).sum((1, 2, 3)) + bias
                       for c in range(columns)] for r in range(rows)])
        return self.norm(x, 'patch_embed.norm')

    def attention(self, x, name, shift):
        """``x (H, W, C)`` after its norm."""
        heads, side = self.state[f'{name}.relative_position_bias_table'].shape[1], self.window
        table = self.state[f'{name}.relative_position_bias_table'].reshape(2 * side - 1, 2 * side - 1, heads)
        height, width = (-(-size // side) * side for size in x.shape[:2])
        out = np.full(x.shape, np.nan)
        for top in range(0, height, side):
            for left in range(0, width, side):
                cells = [(i, j) for i in range(side) for j in range(side)]
                places = [((top + i + shift) % height, (left + j + shift) % width) for i, j in cells]
                inside = [r < x.shape[0] and c < x.shape[1] for r, c in places]
                tokens = np.array([x[r, c] if there else np.zeros(x.shape[2])
                                   for (r, c), there in zip(places, inside, strict=True)])
                wrapped = [(r < shift, c < shift) for r, c in places]
                q, k, v = np.split(self.linear(tokens, f'{name}.qkv'), 3, -1)
                results = []
                for head in range(heads):
                    part = slice(head * x.shape[2] // heads, (head + 1) * x.shape[2] // heads)
                    logits = q[:, part] @ k[:, part].T / np.sqrt(x.shape[2] / heads)
                    for a, (ai, aj) in enumerate(cells):
                        for b, (bi, bj) in enumerate(cells):
                            logits[a, b] += table[ai - bi + side - 1, aj - bj + side - 1, head]
                            logits[a, b] -= 100 * (wrapped[a] != wrapped[b])
                    weights = np.exp(logits - logits.max(1, keepdims=True))
                    results.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
                projected = self.linear(np.concatenate(results, -1), f'{name}.proj')
                for (r, c), there, value in zip(places, inside, projected, strict=True):
                    if there:
                        out[r, c] = value
        return out

    def merged(self, x, name):
        zero, rows, columns = np.zeros(x.shape[2]), *x.shape[:2]

        def cell(r, c):
            return x[r, c] if r < rows and c < columns else zero

        x = np.array([[np.concatenate([cell(2 * r, 2 * c), cell(2 * r + 1, 2 * c), cell(2 * r, 2 * c + 1),
                                       cell(2 * r + 1, 2 * c + 1)])
                       for c in range((columns + 1) // 2)] for r in range((rows + 1) // 2)])
        return self.linear(self.norm(x, f'{name}.norm'), f'{name}.reduction')

    def __call__(self, picture):
        x, maps = self.patches(picture), []
        for stage, depth in enumerate(TINY['depths']):
            for block in range(depth):
                name = f'layers.{stage}.blocks.{block}'
                shift = self.window // 2 if block % 2 else 0
                x = x + self.attention(self.norm(x, f'{name}.norm1'), f'{name}.attn', shift)
                hidden = self.linear(self.norm(x, f'{name}.norm2'), f'{name}.mlp.fc1')
                x = x + self.linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, f'{name}.mlp.fc2')
            maps.append(self.norm(x, f'norm{stage}').transpose(2, 0, 1))
            if stage < 3:
                x = self.merged(x, f'layers.{stage}.downsample')
        return maps


@pytest.mark.parametrize(('height', 'width', 'window'), [
    (64, 32, 4),     # the first map fits; the deeper ones are smaller than a window
    (42, 51, 4),     # pixels, maps and mergings all need padding; the two directions differ
    (9, 70, 4),      # lower than a window from the start
    (36, 60, 5),     # an odd window, shifted by its half rounded down
    (4, 4, 4),       # one cell
])
@torch.no_grad()
def test_equals_a_pixel_by_pixel_restatement(height, width, window):
    network, picture = tiny(window=window), image(height, width)
    naive = Restated(network, window)(picture[0].double().numpy())
    for exact, plain, single in zip(network.double()(picture.double()), naive, network.float()(picture), strict=True):
        np.testing.assert_allclose(exact[0], plain, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(single[0], plain, rtol=1e-3, atol=1e-3)


def test_position_index_is_of_query_minus_key_row_by_row():
    index = relative_position_index(12)
    assert index.shape == (144, 144) and index.dtype == torch.int64
    assert torch.equal(index.unique(), torch.arange(23 * 23))
    assert (index.diagonal() == 11 * 23 + 11).all()
    assert index[0, 143] == 0 and index[143, 0] == 23 * 23 - 1
    assert index[0, 1] == 11 * 23 + 10 and index[0, 12] == 10 * 23 + 11


@torch.no_grad()
def test_strides_and_channels():
    network = tiny()
    maps = network(image(96, 64))
    assert network.channels == (8, 16, 32, 64)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (c, 96 // stride, 64 // stride) for c, stride in zip(network.channels, network.strides, strict=True)]


@torch.no_grad()
def test_a_batch_of_two_equals_two_singles():
    network, pictures = tiny(), image(44, 60, number=2)
    first, second = network(pictures[:1]), network(pictures[1:])
    for both, one, other in zip(network(pictures), first, second, strict=True):
        torch.testing.assert_close(both, torch.cat((one, other)), atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter():
    network = tiny(drop_path=0.0).train()
    sum(x.square().sum() for x in network(image(44, 60, number=2))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_stochastic_depth_drops_whole_branches_in_training_only():
    torch.manual_seed(0)
    block = SwinBlock(8, 2, 4, shift=2, mlp_ratio=2, drop_path=0.5)
    x = torch.randn(1, 5, 6, 8)

    def outcome(attention: float, mlp: float) -> torch.Tensor:
        y = x + attention * block._attend(block.norm1(x))
        return y + mlp * block.mlp(block.norm2(y))

    possible = [outcome(attention, mlp) for attention in (0, 2) for mlp in (0, 2)]
    seen = [[torch.allclose(y, p[0], atol=1e-5) for p in possible] for y in block.train()(x.expand(64, -1, -1, -1))]
    assert all(sum(row) == 1 for row in seen) and np.any(seen, axis=0).all()
    torch.testing.assert_close(block.eval()(x), outcome(1, 1))


def test_swin_l_has_the_official_names_and_shapes():
    path = FOLDER / 'keys_minvis_swinl.json'
    if not path.is_file():
        pytest.skip(f'no key list {path}')
    official = {name.removeprefix('backbone.'): tuple(shape) for name, shape, _ in json.loads(path.read_text())
                if name.startswith('backbone.')}
    with torch.device('meta'):
        network = SwinL()
    ours = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    computed = {name: tuple(value.shape) for name, value in network.named_buffers()}
    assert len(computed) == 24 and all(name.endswith('.relative_position_index') for name in computed)
    assert {**ours, **computed} == official
    rates = [block.drop_path for stage in network.layers for block in stage.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.3, 24))
