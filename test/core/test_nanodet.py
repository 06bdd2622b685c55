"""The detector gives the published network's outputs, and its proposals are the likeliest objects, each once."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tar_vis_core.models.backbones.nanodet import BINS, STRIDES, DetectorMaps, NanoDet
from tar_vis_core.models.proposals import (
    ANY_CLASS_IOU,
    LEAST,
    SAME_CLASS_IOU,
    Proposals,
    box_ious,
    cropped,
    decoded_boxes,
    propose,
    touched_cells,
)
from tar_vis_core.runtime import kernels

PUBLISHED = Path(os.environ.get('TAR_VIS_SHARED') or Path(__file__).parents[3] / 'shared') / 'data' / 'weights'
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))


def made_maps(boxes: list, classes: int = 4, size: tuple[int, int] = (64, 96)) -> DetectorMaps:
    """Predictions that say exactly these objects: (level, row, column, class, logit, distances in strides 0..7)."""
    predictions = [torch.full((1, classes + 4 * BINS, size[0] // s, size[1] // s), -12.0) for s in STRIDES]
    cells = [torch.randn(1, 96, *p.shape[2:]) for p in predictions]
    for level, row, column, label, logit, distances in boxes:
        cell = predictions[level][0, :, row, column]
        cell[label] = logit
        for side, distance in enumerate(distances):
            cell[classes + side * BINS + distance] = 30.0
    return DetectorMaps(torch.zeros(1, 24, 32, 48), torch.zeros(1, 24, 16, 24), cells[:4], cells, predictions)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason='the published weights are not here')
def test_outputs_are_those_of_the_published_network():
    model = NanoDet().eval()
    model.load_published(PUBLISHED / 'nanodet_plus_m_coco_fp16.safetensors')
    reference = load_file(PUBLISHED / 'nanodet_plus_m_reference.safetensors')
    image = reference['image_bgr_uint8'].flip(-1).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        outputs = model((image - MEAN) / STD).predictions
    for stride, output in zip(STRIDES, outputs, strict=True):
        expected = reference[f'stride{stride}'].float()
        assert output.shape == expected.shape
        # the reference is stored in half precision: half a unit in its last place, and 1e-3 for the arithmetic
        assert ((output - expected).abs() <= 1e-3 + expected.abs() * 2 ** -11).all()


def test_a_file_of_another_network_is_refused(tmp_path):
    from safetensors.torch import save_file
    save_file({'conv000.weight': torch.zeros(1)}, tmp_path / 'other.safetensors')
    with pytest.raises(ValueError, match='expected 220'):
        NanoDet().load_published(tmp_path / 'other.safetensors')


def test_a_cell_says_where_the_sides_of_its_box_are():
    maps = made_maps([(1, 2, 3, 0, 4.0, (1, 1, 2, 1))])      # stride 16, centre at x 48, y 32
    boxes = decoded_boxes(maps.predictions, 4)
    found = propose(maps, 4, 8)
    expected = torch.tensor([32 / 96, 16 / 64, 80 / 96, 48 / 64])
    assert torch.allclose(found.boxes[0, 0], expected, atol=1e-4)
    assert boxes.shape[1] == sum(p[0, 0].numel() for p in maps.predictions)
    assert found.logits[0, 0].argmax() == 0 and found.logits[0, 0, 0] == 4.0
    assert torch.equal(found.content[0, 0], maps.cells[1][0, :, 2, 3])


def test_an_object_seen_by_two_cells_is_proposed_once_and_by_the_surer_one():
    twice = [(1, 2, 3, 0, 3.0, (2, 1, 2, 1)), (1, 2, 2, 0, 4.0, (1, 1, 3, 1))]      # the same box from two cells
    found = propose(made_maps(twice), 4, 8)
    sure = found.logits[0].amax(-1) > 0
    assert sure.sum() == 1 and found.logits[0, 0, 0] == 4.0
    # of another class it is another object, unless it is nearly the same box
    other = [(1, 2, 3, 0, 3.0, (1, 1, 2, 1)), (1, 2, 3 - 1, 1, 4.0, (0, 1, 2, 1))]
    assert (propose(made_maps(other), 4, 8).logits[0].amax(-1) > 0).sum() == 2


def test_proposals_never_repeat_each_other():
    torch.manual_seed(0)
    maps = made_maps([])
    for p in maps.predictions:
        p.normal_(0, 2)
    found = propose(maps, 4, 24)
    alive = found.logits[0].amax(-1) > LEAST
    boxes, labels = found.boxes[0, alive], found.logits[0, alive].argmax(-1)
    iou = box_ious(boxes, boxes).fill_diagonal_(0)
    assert (iou <= ANY_CLASS_IOU).all()
    assert (iou[labels[:, None] == labels[None]] <= SAME_CLASS_IOU).all()
    scores = found.logits[0, alive].amax(-1)
    assert (scores[:-1] >= scores[1:]).all() and len(scores) > 4


def test_a_picture_of_a_few_cells_fills_up_with_proposals_of_nothing():
    found = propose(made_maps([(0, 0, 0, 2, 5.0, (0, 0, 1, 1))], size=(32, 32)), 4, 64)
    assert found.boxes.shape == (1, 64, 4) and (found.logits[0].amax(-1) > 0).sum() == 1


def test_a_batch_gives_what_its_pictures_give():
    torch.manual_seed(1)
    one, two = made_maps([(0, 1, 1, 2, 5.0, (1, 1, 1, 1))]), made_maps([(1, 2, 3, 0, 4.0, (1, 1, 2, 1))])
    both = DetectorMaps(torch.cat((one.stem, two.stem)), *(
        [torch.cat(pair) for pair in zip(a, b, strict=True)] for a, b in zip(one[1:], two[1:], strict=True)))
    together, alone = propose(both, 4, 8), [propose(one, 4, 8), propose(two, 4, 8)]
    for name in ('boxes', 'logits', 'content'):
        assert torch.equal(getattr(together, name), torch.cat([getattr(p, name) for p in alone])), name


@pytest.mark.skipif(kernels.compiled() is None, reason='the kernels are not built')
@pytest.mark.parametrize(('frames', 'size', 'classes', 'queries'), [
    (1, (32, 32), 4, 64), (2, (32, 96), 17, 8), (1, (320, 448), 80, 64), (3, (64, 96), 80, 64), (1, (224, 480), 1, 64),
    (1, (64, 96), 4, 128)])
@pytest.mark.parametrize('spread', [0.3, 1.0, 4.0])     # of distances: small boxes or some that hide most others
def test_the_kernel_chooses_what_the_plain_form_chooses(frames, size, classes, queries, spread):
    torch.manual_seed(0)
    maps = made_maps([], classes, size)
    predictions = [torch.randn(frames, *p.shape[1:]) for p in maps.predictions]
    for p in predictions:
        p[:, classes:] *= spread
    cells = [torch.randn(frames, *c.shape[1:]).contiguous(memory_format=torch.channels_last) for c in maps.cells]
    maps = maps._replace(predictions=predictions, cells=cells)
    plain = propose(maps, classes, queries)
    with torch.inference_mode():
        found = propose(maps, classes, queries)
    assert torch.equal(found.logits, plain.logits) and torch.equal(found.content, plain.content)
    torch.testing.assert_close(found.boxes, plain.boxes, atol=1e-5, rtol=0)


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (40, 56)])
def test_every_box_touches_a_cell_and_no_mask_leaves_it(size):
    rng = np.random.default_rng(0)
    low = rng.uniform(-0.05, 1, (200, 2))
    boxes = torch.tensor(np.concatenate((low, low + rng.exponential(0.05, (200, 2))), 1), dtype=torch.float32)
    boxes[:3] = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]])
    touched = touched_cells(boxes.clamp(0, 1), size)
    assert touched.flatten(1).any(1).all() and touched[2].all()
    masks = cropped(torch.randn(200, *size), boxes.clamp(0, 1))
    assert not (masks > 0)[~touched].any()
    plain = Proposals(boxes[None].clamp(0, 1), torch.zeros(1, 200, 4), torch.zeros(1, 200, 8), torch.zeros(1, 24, 8, 8))
    assert torch.equal(plain.inside(size)[0], touched.flatten(1))
