import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tar_vis_core import masks
from tar_vis_core.masks import MaskGeometry, full_size_mask, intersections, mask_ious
from tar_vis_core.models.video_model import input_size
from tar_vis_core.runtime import kernels


def geometry(height, width, short_side=256):
    h, w = input_size(height, width, short_side)
    padded = h + -h % 32, w + -w % 32
    return MaskGeometry((padded[0] // 4, padded[1] // 4), padded, (h, w), (height, width))


def blobs(shape, seed):
    """Smooth random logits: a few islands, some across the border."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 1, 6, 6, generator=generator)
    fine = torch.randn(shape, generator=generator)
    return F.interpolate(x, shape, mode='bicubic', align_corners=False)[0, 0] * 4 - 2 + 0.3 * fine


@pytest.mark.parametrize('compiled', [True, False])
@pytest.mark.parametrize('size', [(480, 640), (360, 640), (720, 1280), (37, 53), (640, 361), (256, 341), (20, 3000)])
def test_equals_two_bilinear_resizes_of_the_whole_plane(size, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(kernels, 'compiled', lambda: None)
    g = geometry(*size)
    for seed in range(4):
        logits = blobs(g.logits, seed)
        x = F.interpolate(logits[None, None], g.padded, mode='bilinear', align_corners=False)
        x = F.interpolate(x[..., :g.content[0], :g.content[1]], g.source, mode='bilinear', align_corners=False)[0, 0]
        ours = np.zeros(size, bool)
        found = full_size_mask(logits, g)
        if found is None:
            assert not (x > 0).any()
            continue
        (left, top, width, height), crop = found
        ours[top:top + height, left:left + width] = crop
        # only where the logit is zero but for rounding may the two differ
        assert (x[torch.from_numpy(ours) != (x > 0)].abs() < 1e-5).all()
        assert crop[[0, -1]].any(1).all() and crop[:, [0, -1]].any(0).all(), 'the box is not tight'


@pytest.mark.parametrize('size', [(480, 640), (37, 53), (640, 361), (20, 3000)])
@pytest.mark.parametrize('at_once', [1, 1 << 26])
def test_many_masks_in_bits_equal_one_after_the_other(size, at_once, monkeypatch):
    """What is done with masks on a GPU, on a CPU."""
    monkeypatch.setattr(masks, 'MOST_PIXELS', at_once)
    g = geometry(*size)
    corner = torch.full(g.logits, -1.0)
    corner[-1, -1] = 9.0        # outside the picture, or in its last pixels
    logits = torch.stack([blobs(g.logits, seed) for seed in range(4)] + [corner, -torch.ones(g.logits)])
    found = masks.full_size_masks(logits, (logits > 0).numpy(), g)
    differ = 0
    for own, one in zip(found, [full_size_mask(x, g) for x in logits], strict=True):
        assert (own is None) == (one is None)
        if own is not None:
            whole = np.zeros((2, *size), bool)
            for plane, ((x, y, w, h), crop) in zip(whole, (own, one), strict=True):
                plane[y:y + h, x:x + w] = crop
                assert crop[[0, -1]].any(1).all() and crop[:, [0, -1]].any(0).all(), 'the box is not tight'
            differ += np.count_nonzero(whole[0] != whole[1])
    assert differ <= 1e-5 * logits.shape[0] * size[0] * size[1], 'but for rounding around zero'
    assert found[-1] is None and any(found)


def test_masks_of_large_images_are_made_a_few_at_a_time(monkeypatch):
    """All at once a GPU with little memory has none left for the model."""
    g, made, packed_bits = geometry(480, 640), [], masks.packed_bits
    monkeypatch.setattr(masks, 'packed_bits', lambda some: made.append(len(some)) or packed_bits(some))
    monkeypatch.setattr(masks, 'MOST_PIXELS', 3 * 480 * 640 - 1)
    logits = torch.stack([blobs(g.logits, seed) for seed in range(5)])
    assert all(masks.full_size_masks(logits, (logits > 0).numpy(), g)) and made == [2, 2, 1]


def test_a_logit_that_half_precision_could_not_hold_empties_no_row():
    g, logits = geometry(480, 640), torch.full((1, 64, 88), -1.0)
    logits[0, 20:40, 30:50] = 5.0
    expected = masks.full_size_masks(logits, (logits > 0).numpy(), g)[0]
    logits[0, 30, 40] = float('inf')
    box, crop = masks.full_size_masks(logits, (logits > 0).numpy(), g)[0]
    assert box == expected[0] and np.array_equal(crop, expected[1])


@pytest.mark.parametrize('width', [1, 8, 13])
def test_bits_are_as_numpy_unpacks_them(width):
    pixels = torch.rand(2, 3, width, generator=torch.Generator().manual_seed(width)) > 0.5
    bits = masks.packed_bits(pixels).numpy()
    assert bits.shape == (2, 3, -(-width // 8))
    assert np.array_equal(np.unpackbits(bits, axis=-1, count=width).view(bool), pixels.numpy())


@pytest.mark.parametrize('place', [(0, 0), (30, 40), (63, 0), (63, 85)])
def test_a_single_cell_is_found_where_it_is(place):
    g = geometry(480, 640)
    logits = torch.full(g.logits, -1.0)
    logits[place] = 8.0
    (x, y, w, h), crop = full_size_mask(logits, g)
    scale = 480 / 256 * 4
    assert abs(x + w / 2 - (place[1] + 0.5) * scale) < scale
    assert abs(y + h / 2 - (place[0] + 0.5) * scale) < scale
    assert crop.any()


def test_nothing_positive_gives_nothing():
    g = geometry(480, 640)
    assert full_size_mask(torch.full(g.logits, -1.0), g) is None


def test_a_mask_in_the_padding_gives_nothing():
    g = geometry(480, 640)                     # 341 columns of image in 352 of input
    logits = torch.full(g.logits, -1.0)
    logits[:, 87] = 1.0
    assert full_size_mask(logits, g) is None
    assert g.content_cells == (64, 86)


def test_overlaps_are_counted_per_pair():
    a = np.zeros((2, 4, 4), bool)
    a[0, :2], a[1, :, :1] = True, True
    b = np.zeros((3, 4, 4), bool)
    b[0, :2], b[1, 2:] = True, True
    assert mask_ious(a, b) == pytest.approx(np.array([[1, 0, 0], [2 / 10, 2 / 10, 0]]))


def test_overlaps_do_not_depend_on_how_bits_are_counted(monkeypatch):
    masks = np.random.default_rng(0).random((5, 13, 17)) < 0.4
    expected = (masks[:, None] & masks[None]).sum((2, 3))
    assert np.array_equal(intersections(masks, masks), expected)
    monkeypatch.delattr(np, 'bitwise_count', raising=False)
    assert np.array_equal(intersections(masks, masks), expected)
