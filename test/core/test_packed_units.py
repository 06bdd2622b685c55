"""Units of convolutions by the compiled kernel give what their layers give one by one."""

import copy

import pytest
import torch

from tar_vis_core.models.backbones.nanodet import GhostBlock, NanoDet, Separable, ShuffleUnit
from tar_vis_core.models.box_masks import BoxMasks, BoxShapes
from tar_vis_core.models.layers import Conv, bilinear
from tar_vis_core.models.mask_branch import MaskBranch, Refine
from tar_vis_core.models.packed import inference_form, packed
from tar_vis_core.models.packed_layers import PackedConv
from tar_vis_core.models.packed_units import PackedBoxMasks, PackedChain, PackedMaskBranch, PackedNanoDet
from tar_vis_core.models.video_model import build_model
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.kernels import maps
from tar_vis_core.runtime.kernels.tapes import Tapes

pytestmark = pytest.mark.skipif(kernels.compiled() is None, reason='the kernels are not built')

# odd numbers of channels that no register divides, fewer pixels than a block has, and one pixel alone
UNITS = {
    'unit': (lambda: ShuffleUnit(58, 58, 1), 58), 'unit of a stage that begins': (lambda: ShuffleUnit(24, 116, 2), 24),
    'ghost block': (lambda: GhostBlock(192, 96), 192), 'pair': (lambda: Separable(96, 40, 5), 96),
    'strided pair': (lambda: Separable(17, 23, 5, 2), 17), 'strided pair of 3': (lambda: Separable(16, 130, 3, 2), 16),
    'refine': (lambda: Refine(33, 70), 33)}


@torch.inference_mode()
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 1), (5, 6), (19, 26), (40, 56)])
@pytest.mark.parametrize('name', UNITS)
def test_a_unit_equals_its_layers(name, size):
    torch.manual_seed(0)
    make, channels = UNITS[name]
    plain = make()
    fast = packed(copy.deepcopy(plain), torch.float32)
    assert type(fast) is not type(plain)
    for frames in (1, 3):
        x = 2 * torch.randn(frames, channels, *size)
        for laid in (x, x.contiguous(memory_format=torch.channels_last)):
            before = laid.clone()
            torch.testing.assert_close(fast(laid), plain(laid), atol=1e-5, rtol=1e-5)
            assert torch.equal(laid, before)


def rounded(x):
    return x.bfloat16().float()


@torch.inference_mode()
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (5, 6), (19, 26)])
@pytest.mark.parametrize(('inputs', 'outputs'), [(16, 16), (17, 23), (24, 116), (58, 58), (96, 112), (33, 70)])
def test_products_in_bfloat16_round_what_is_multiplied_and_nothing_else(inputs, outputs, size):
    torch.manual_seed(0)
    plain = Conv(inputs, outputs, 1, activation='leaky_relu')
    chain, x = PackedChain(plain, dtype=torch.bfloat16), 100 * torch.randn(2, inputs + 5, *size)
    exact, x = copy.deepcopy(plain).double(), x.contiguous(memory_format=torch.channels_last)[:, 3:3 + inputs]
    exact.weight.data = rounded(plain.weight).double()
    torch.testing.assert_close(chain(x), exact(rounded(x).double()).float(), atol=2e-4, rtol=1e-5)
    x[0, inputs - 1, 0, 0] = torch.inf
    found = chain(x)
    assert not found[0, :, 0, 0].isfinite().any() and found.isfinite().sum() == found.numel() - outputs


@torch.inference_mode()
@pytest.mark.parametrize('name', UNITS)
def test_a_unit_in_bfloat16_is_its_layers_with_what_is_multiplied_rounded(name):
    torch.manual_seed(0)
    make, channels = UNITS[name]
    plain = make()
    fast, exact = packed(copy.deepcopy(plain), torch.float32, torch.bfloat16), copy.deepcopy(plain)
    for conv in exact.modules():
        if isinstance(conv, torch.nn.Conv2d) and conv.groups == 1:
            conv.weight.data = rounded(conv.weight)
            conv.register_forward_pre_hook(lambda _, given: (rounded(given[0]), *given[1:]))
    x = 2 * torch.randn(2, channels, 19, 26)
    found, expected = fast(x), exact(x)
    # a rounding of what lies between may go the other way
    gap = (found - expected).abs() / expected.abs().max()
    assert gap.max() < 4e-3 and gap.mean() < 1e-4 < (plain(x) - expected).abs().max() / expected.abs().max()


@torch.inference_mode()
def test_a_mask_branch_equals_its_layers_at_every_size():
    torch.manual_seed(0)
    plain = MaskBranch((24, 96, 96, 96), 64, 32)
    fast = packed(copy.deepcopy(plain), torch.float32)
    assert type(fast) is PackedMaskBranch
    for frames, h, w in [(1, 8, 12), (2, 8, 12), (1, 12, 8), *((1, 8 * n, 8) for n in range(1, 12)), (1, 8, 12)]:
        maps = [torch.randn(frames, c, h * k // 8, w * k // 8) for c, k in ((24, 16), (96, 8), (96, 4), (96, 2))]
        (expected, levels), (found, others) = plain(*maps), fast(*maps)
        for a, b in zip([expected, *levels], [found, *others], strict=True):
            torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_detector_equals_its_layers_in_every_frame_and_size():
    torch.manual_seed(0)
    plain = NanoDet(80).eval()
    fast = packed(copy.deepcopy(plain), torch.float32)
    assert type(fast) is PackedNanoDet
    kept = []       # what a frame gave stays when others come
    for frames, h, w in [(1, 64, 96), (1, 64, 96), (2, 64, 96), (1, 96, 64), (1, 64, 96)]:
        x = torch.randn(frames, 3, h, w)
        kept.append((plain(x), fast(x)))
    for expected, found in kept:
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, atol=2e-5, rtol=1e-4)
    assert len(fast.tapes.kept) == 3


@torch.inference_mode()
def test_a_tape_refuses_what_it_would_not_repeat():
    chain, x = PackedChain(Conv(20, 40, 1)), torch.randn(1, 20, 6, 7)
    for other in (lambda y: (chain(y + 1),), lambda y: (chain(y).relu(),)):
        with pytest.raises(RuntimeError, match='a map that is'):
            Tapes()(other, x)
    found = Tapes()(lambda y: (chain(y),), x)[0]
    torch.testing.assert_close(found, chain(x))


@torch.inference_mode()
@pytest.mark.parametrize('rows', [0, 1, 8, 19])
def test_masks_in_boxes_are_those_of_the_layers(rows):
    torch.manual_seed(0)
    plain = BoxMasks(64, 24)
    for part in plain.parameters():
        torch.nn.init.normal_(part, std=0.2)
    fast = packed(copy.deepcopy(plain), torch.float32)
    assert type(fast) is PackedBoxMasks
    for h, w in ((18, 25), (18, 25), (20, 12), (18, 25)):
        low = torch.rand(1, rows, 2) * 1.1 - 0.1        # some boxes begin outside, some are almost empty
        boxes = torch.cat((low, low + torch.rand(1, rows, 2) ** 3), -1).clamp(0, 1)
        fine, features = torch.randn(1, 24, 2 * h, 2 * w), torch.randn(64, h, w)
        products, embeddings = torch.randn(rows, h, w), torch.randn(rows, 64)
        expected, found = (BoxShapes(boxes, fine, net).drawn(products, 0, torch.arange(rows), embeddings, features)
                           for net in (plain, fast))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_enlarged_maps_are_pytorchs():
    torch.manual_seed(0)
    for size, larger in (((1, 1), (2, 3)), ((5, 7), (10, 14)), ((4, 6), (4, 6)), ((3, 2), (7, 9))):
        x, added = torch.randn(2, 20, *size), torch.randn(2, 20, *larger)
        torch.testing.assert_close(maps.enlarge(x, larger), bilinear(x, larger), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(maps.enlarge(x, larger, added), bilinear(x, larger) + added, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match='cannot sample'):
        maps.enlarge(torch.randn(1, 20, 2, 2), (4, 4), torch.randn(1, 20, 3, 4))


@torch.inference_mode()
@pytest.mark.parametrize('size', [(1, 1), (2, 9), (7, 1), (5, 6), (19, 26)])
def test_a_pooling_is_pytorchs(size):
    torch.manual_seed(0)
    x = torch.randn(2, 24, *size)
    x[1, 3, -1] = torch.nan
    pooled = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    torch.testing.assert_close(PackedNanoDet.pool(x), pooled, atol=0, rtol=0, equal_nan=True)


@torch.inference_mode()
def test_parts_of_maps_are_read_and_written_and_nothing_beside_them():
    torch.manual_seed(0)
    x = torch.randn(2, 96, 9, 11).contiguous(memory_format=torch.channels_last)
    plain = Conv(40, 24, 1, activation='relu')
    room = torch.full((2, 9, 11, 80), 7.0).permute(0, 3, 1, 2)
    found = PackedChain(plain)(x[:, 30:70], out=room[:, 31:55])
    torch.testing.assert_close(found, plain(x[:, 30:70]), atol=1e-5, rtol=1e-5)
    assert found.data_ptr() == room[:, 31:55].data_ptr()
    assert (room[:, :31] == 7).all() and (room[:, 55:] == 7).all()


@torch.inference_mode()
def test_what_is_added_and_what_passes():
    torch.manual_seed(0)
    first, second = Conv(20, 40, 1, activation='leaky_relu'), Conv(40, 18, 1, activation='relu')
    x, a, b, passed = (torch.randn(1, c, 6, 7) for c in (20, 40, 18, 18))
    expected = second(first(x, a), b)
    chain = PackedChain(first, second)
    torch.testing.assert_close(chain(x, a, b), expected, atol=1e-5, rtol=1e-5)
    both = chain(x, a, b, passed=passed)
    torch.testing.assert_close(both[:, 1::2], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(both[:, ::2], passed)


@torch.inference_mode()
@pytest.mark.parametrize('size', [(1, 1), (33, 70), (64, 96)])
def test_an_input_of_bytes_is_that_of_other_numbers(size):
    model, x = inference_form(build_model('nano'), torch.device('cpu')), torch.randint(0, 256, (2, 3, *size))
    assert torch.equal(model.normalize(x.to(torch.uint8)), model.normalize(x.float()))


def test_wrong_shapes_are_refused_and_named():
    chain, x = PackedChain(Conv(20, 40, 1)), torch.randn(1, 20, 6, 7)
    for wrong in (lambda: chain(x[:, 1:]), lambda: chain(x, x), lambda: chain(x, None, x), lambda: chain(x, passed=x),
                  lambda: chain(x, out=x)):
        with pytest.raises(ValueError, match=r'shapes do not fit|more maps'):
            wrong()
    with pytest.raises(ValueError, match='side by side'):
        chain(x, out=torch.empty(1, 40, 6, 7))


@pytest.mark.parametrize('why', ['no kernels', 'few channels', 'another activation'])
def test_what_the_kernel_cannot_do_is_left_to_pytorch(why, monkeypatch):
    unit = {'no kernels': Separable(24, 24, 3), 'few channels': Separable(24, 8, 3),
            'another activation': Separable(24, 24, 3, outer='relu6')}[why]
    if why == 'no kernels':
        monkeypatch.setattr(kernels, 'compiled', lambda: None)
    x = torch.randn(1, 24, 9, 8)
    with torch.inference_mode():
        expected = unit(x)
        fast = packed(unit, torch.float32)
        assert type(fast) is Separable
        torch.testing.assert_close(fast(x), expected, atol=1e-5, rtol=1e-5)


def test_the_default_model_is_made_of_units():
    fast = inference_form(build_model('nano'), torch.device('cpu'))
    assert type(fast.backbone) is PackedNanoDet
    assert sum(isinstance(m, PackedChain) for m in fast.backbone.modules()) > 60
    assert [name for name, m in fast.backbone.named_modules() if isinstance(m, PackedConv)] == ['stem']
