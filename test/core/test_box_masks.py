"""Masks drawn in boxes: grids lie where their boxes are, and what is drawn reaches the user."""

import numpy as np
import pytest
import torch

from tar_vis_core.models import box_masks
from tar_vis_core.models.box_masks import BoxMasks, BoxShapes, on_cells, sampled
from tar_vis_core.models.proposals import touched_cells
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

SIZE = 24, 40
BOXES = torch.tensor([[0.2, 0.3, 0.6, 0.8], [0.5, 0.1, 0.9, 0.4]])


def places() -> torch.Tensor:
    """The place of each cell's centre as shares of the sides, ``(2, h, w)``: x, y."""
    y, x = ((torch.arange(n) + 0.5) / n for n in SIZE)
    return torch.stack((x.expand(SIZE), y[:, None].expand(SIZE)))


def test_a_map_that_is_sampled_in_boxes_and_put_back_is_the_map():
    there = places()
    for axis in range(2):
        back = on_cells(sampled(there, BOXES)[:, axis], BOXES, SIZE)
        for own, (left, top, right, bottom) in zip(back, BOXES, strict=True):
            inside = (there[0] > left) & (there[0] < right) & (there[1] > top) & (there[1] < bottom)
            assert inside.any() and torch.allclose(own[inside], there[axis][inside], atol=2e-3)


class Adding(BoxMasks):
    """Adds to each mask the first number of its embedding."""

    def forward(self, embeddings, mask, fine):
        return embeddings[:, 0, None, None].expand(-1, box_masks.GRID, box_masks.GRID)


@pytest.mark.parametrize('count', [0, 1, 19])       # none, one, more than are drawn at a time
def test_each_mask_gets_what_is_drawn_for_it_and_nothing_outside_its_box(count):
    boxes = BOXES.repeat(10, 1)[:count]
    embeddings = torch.arange(count, dtype=torch.float32)[:, None].expand(-1, 8)
    shapes = BoxShapes(boxes[None], torch.zeros(1, 3, 48, 80), Adding(8, 3))
    masks = shapes.drawn(torch.full((count, *SIZE), 2.0), 0, torch.arange(count), embeddings, torch.zeros(8, *SIZE))
    inside = touched_cells(boxes, SIZE)
    for number, (mask, own) in enumerate(zip(masks, inside, strict=True)):
        assert torch.allclose(mask[own], torch.tensor(2.0 + number)) and (mask[~own] <= -1).all()


def test_a_fresh_network_corrects_nothing():
    torch.manual_seed(0)
    network = BoxMasks(8, 3)
    drawn = network(torch.randn(2, 8), torch.randn(2, 8, 28, 28), torch.randn(2, 3, 28, 28))
    assert drawn.shape == (2, 28, 28) and not drawn.any()


def test_users_get_the_masks_that_are_drawn():
    image = np.ascontiguousarray(pytest.importorskip('skimage.data').astronaut()[..., :3])
    model = load_model('nano', packaged_weights('nano'))
    segmenter = VideoSegmenter.from_model(model, 'cpu', options=SegmenterOptions(score_threshold=0.3))
    assert segmenter.step(image, segmenter.new_state()).instances
    with torch.no_grad():
        segmenter.model.decoder.box_masks.logit.bias.fill_(-1e4)       # draws nothing anywhere
    assert not segmenter.step(image, segmenter.new_state()).instances
