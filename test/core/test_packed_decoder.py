"""A decoder in one call of the compiled kernels for each layer gives what the plain one gives on the same features."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_model import tiny_model

from tar_vis_core.models.packed import inference_form
from tar_vis_core.models.packed_decoder import PackedDecoder, PackedSeeds, encoded
from tar_vis_core.models.proposals import box_encoding, touched_cells
from tar_vis_core.models.video_model import build_model
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.kernels import rows
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

pytestmark = pytest.mark.skipif(kernels.compiled() is None, reason='the kernels are not built')

CPU = torch.device('cpu')
MODELS = {
    'boxes': lambda: load_model('nano', packaged_weights('nano')),
    'boxes, fresh routers': lambda: build_model('nano'),
    'learned queries': lambda: tiny_model(heads=2, decoder_layers=5),
    'learned queries in slots': lambda: tiny_model(heads=2, decoder_layers=5, synchronizer='bipartite', reid=True)}


def both(name):
    torch.manual_seed(3)
    plain = MODELS[name]().eval()
    fast = inference_form(copy.deepcopy(plain), CPU)
    assert type(fast.decoder) is PackedDecoder
    return plain, fast


def images(frames, height, width, seed=0):
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


def assert_equal(found, expected):
    assert found.trace.executed == expected.trace.executed
    for name in ('queries', 'normed', 'reid', 'logits', 'mask_embeddings', 'seen', 'objects'):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=name)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@torch.inference_mode()
@pytest.mark.parametrize('name', MODELS)
def test_equals_the_plain_decoder_at_every_size(name, threads):
    plain, fast = both(name)
    kept = []       # what a frame gave stays when others come
    for size in [(1, 96, 128), (2, 96, 128), (1, 64, 160), (1, 96, 128)]:
        features = plain.encode(plain.normalize(images(*size)))
        kept.append((fast.decode(features), plain.decode(features)))
    for found, expected in kept:
        assert_equal(found, expected)


@torch.inference_mode()
@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('skipped', [False, True])
def test_equals_the_plain_decoder_behind_routers(name, skipped):
    plain, fast = both(name)
    count, previous = plain.config.decoder_layers, None
    for frame in range(3):
        features = plain.encode(plain.normalize(images(1, 96, 128, frame)))
        gate = (lambda layer, frame=frame: [float((layer + k + frame) % 2) for k in range(count - layer)]
                ) if skipped else None
        found, expected = (m.decode(features, previous, 'adaptive', gate=gate) for m in (fast, plain))
        assert_equal(found, expected)
        previous = expected.past


@torch.inference_mode()
def test_other_precisions_and_heads_are_left_to_what_can_do_them():
    assert type(inference_form(tiny_model(heads=2), CPU, torch.bfloat16).decoder) is not PackedDecoder
    assert type(inference_form(tiny_model(heads=4), CPU).decoder) is not PackedDecoder      # of 8 channels
    assert type(inference_form(build_model('nano'), CPU).decoder.seeds) is PackedSeeds


@torch.inference_mode()
def test_without_kernels_the_decoder_is_the_plain_one(monkeypatch):
    monkeypatch.setattr(kernels, 'compiled', lambda: None)
    plain = MODELS['boxes']().eval()
    fast = inference_form(copy.deepcopy(plain), CPU)
    assert type(fast.decoder) is not PackedDecoder
    features = plain.encode(plain.normalize(images(1, 96, 128)))
    assert_equal(fast.decode(features), plain.decode(features))


def some_boxes(*shape):
    low = torch.rand(*shape, 2) * 1.1 - 0.1     # some begin outside, some are almost empty
    return torch.cat((low, low + torch.rand(*shape, 2) ** 3), -1).clamp(0, 1)


def test_encoded_boxes_are_pytorchs():
    torch.manual_seed(0)
    boxes = torch.cat((some_boxes(2, 40), torch.zeros(2, 1, 4)), 1)
    torch.testing.assert_close(encoded(boxes), box_encoding(boxes), atol=1e-4, rtol=0)


@pytest.mark.parametrize('shape', [(1, 16), (7, 128), (2, 5, 48)])
def test_layer_norm_is_pytorchs(shape):
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(shape[-1])
    for part in norm.parameters():
        torch.nn.init.normal_(part)
    x, added = 100 + 3 * torch.randn(shape), torch.randn(shape)
    found, total = rows.layer_norm(x, norm, added)
    torch.testing.assert_close(found, norm(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(total, norm(x) + added, atol=1e-4, rtol=1e-4)
    assert rows.layer_norm(x, norm)[1] is None


@pytest.mark.parametrize('boxed', [False, True])
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (12, 16)])
def test_a_query_attends_where_its_mask_is_positive_or_else_in_all_of_its_box(size, boxed):
    torch.manual_seed(0)
    embeddings, features = torch.randn(2, 9, 32), torch.randn(2, *size, 32)
    embeddings[:, 4] = -features.mean((1, 2)) * 100
    features[:, :, :, :16] += 1
    embeddings[:, 5] = -F.pad(torch.ones(16), (0, 16)) * 100      # negative nearly everywhere
    embeddings[0, 6] = torch.nan
    boxes = some_boxes(2, 9) if boxed else None
    keep = torch.einsum('nqc,nhwc->nqhw', embeddings, features) >= 0
    inside = touched_cells(boxes, size) if boxed else torch.ones_like(keep)
    keep &= inside
    keep |= inside & ~keep.flatten(2).any(-1)[..., None, None]
    found = rows.attended_cells(embeddings, features, boxes).view(torch.uint8)[:keep.numel()].view(keep.shape)
    assert torch.equal(found.bool(), keep)
