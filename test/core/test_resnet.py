import copy

import pytest
import torch
import torch.nn.functional as F
from parity_data import expected, formula, largest_gap, needs_parity_data, official_state

from tar_vis_core.models.backbones.resnet import FrozenBatchNorm, ResNet50


@pytest.fixture(scope='module')
def network():
    """A ResNet-50 whose norms are anything but the identity."""
    generator = torch.Generator().manual_seed(0)
    network = ResNet50().eval()
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm):
            module.weight.uniform_(0.5, 1.0, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return network


@torch.no_grad()
def test_gives_four_strides(network):
    maps = network(torch.randn(1, 3, 96, 64))
    assert tuple(tuple(x.shape) for x in maps) == tuple(
        (1, channels, 96 // stride, 64 // stride) for channels, stride in zip((256, 512, 1024, 2048), (4, 8, 16, 32)))


@torch.no_grad()
def test_equals_a_plain_restatement(network):
    """The same network as a list of F.conv2d and F.batch_norm calls on the state dict."""
    state = network.state_dict()
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(4))

    def conv_norm(x, name, stride=1):
        kernel = state[f'{name}.weight']
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        norm = (state[f'{name}.norm.{part}'] for part in ('running_mean', 'running_var', 'weight', 'bias'))
        return F.batch_norm(x, *norm, training=False, eps=1e-5)

    x = F.max_pool2d(F.relu(conv_norm(image, 'stem.conv1', 2)), 3, 2, 1)
    maps = []
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in range(blocks):
            name, stride = f'res{stage}.{block}', 2 if block == 0 and stage > 2 else 1
            y = F.relu(conv_norm(x, f'{name}.conv1'))
            y = conv_norm(F.relu(conv_norm(y, f'{name}.conv2', stride)), f'{name}.conv3')
            x = F.relu(y + (conv_norm(x, f'{name}.shortcut', stride) if block == 0 else x))
        maps.append(x)
    for ours, plain in zip(network(image), maps, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_folding_changes_no_output(network):
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    folded = copy.deepcopy(network).fold().fold().to(memory_format=torch.channels_last)
    assert not any(isinstance(module, FrozenBatchNorm) for module in folded.modules())
    for plain, once in zip(network(image), folded(image.contiguous(memory_format=torch.channels_last)), strict=True):
        torch.testing.assert_close(plain, once, atol=1e-4, rtol=1e-4)


def test_norms_do_not_train():
    network = ResNet50().train()
    assert not any('norm' in name for name, _ in network.named_parameters())
    assert sum('norm' in name for name, _ in network.named_buffers()) == 4 * 53


@needs_parity_data
@pytest.mark.parametrize('folded', [False, True])
@torch.no_grad()
def test_equals_the_reference(folded):
    reference = expected('minvis_r50')
    network = ResNet50().eval()
    network.load_state_dict({name.removeprefix('backbone.'): value
                             for name, value in official_state('minvis_r50').items() if name.startswith('backbone.')})
    if folded:
        network.fold().to(memory_format=torch.channels_last)
    mean, std = torch.tensor([123.675, 116.280, 103.530]), torch.tensor([58.395, 57.120, 57.375])
    frames = (torch.from_numpy(formula().frames(3, 180, 310)) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    maps = network(F.pad(frames, (0, 10, 0, 12)))
    for index, (x, step) in enumerate(zip(maps, (8, 4, 2, 1), strict=True)):
        recorded = reference[f'backbone_res{index + 2}_sub']
        assert largest_gap(x[:, ::16, ::step, ::step], recorded) < 1e-4 * max(1, abs(recorded).max())
        assert largest_gap([x.mean(), x.std()], reference[f'backbone_res{index + 2}_meanstd']) < 1e-3
