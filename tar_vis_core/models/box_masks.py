"""Masks inside boxes: where queries start from a detector's boxes, each mask is made on a grid in its own box.

A product of a query's mask embedding with the mask features has to tell an object from all others in the picture. In
its box an object is most of what there is, and a small convolutional network that sees the product channel by channel
draws the outline. Grids are as fine for a small object as for a large one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.layers import Conv, bilinear
from tar_vis_core.models.mask_branch import Pointwise, Refine
from tar_vis_core.models.proposals import cropped, wider

GRID = 28               # points of a side
AT_ONCE = 8             # masks drawn at a time
PLACES = 7              # of a side, at which the network learns what a place in the box means


def grid_in(boxes: Tensor) -> Tensor:
    """Return the places of a grid inside boxes ``(K, 4)`` as ``grid_sample`` takes them, ``(K, GRID, GRID, 2)``."""
    steps = (torch.arange(GRID, device=boxes.device) + 0.5) / GRID
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    x, y = (low + steps[:, None] * (high - low)).unbind(-1)              # (K, GRID) each
    return 2 * torch.stack((x[:, None].expand(-1, GRID, -1), y[..., None].expand(-1, -1, GRID)), -1) - 1


def sampled(features: Tensor, boxes: Tensor) -> Tensor:
    """Return features ``(C, h, w)`` on the grids of boxes ``(K, 4)`` with their margin, ``(K, C, GRID, GRID)``."""
    places = grid_in(wider(boxes)).flatten(0, 1)[None]                   # one picture as high as all grids
    found = F.grid_sample(features[None], places.to(features.dtype), align_corners=False, padding_mode='border')
    return found[0].unflatten(1, (-1, GRID)).transpose(0, 1)


class BoxMasks(nn.Module):
    """Mask embeddings and what is in their boxes to mask logits on the boxes' grids."""

    def __init__(self, mask_dim: int, fine: int, dim: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.agreement = Pointwise(mask_dim, dim)
        self.mask = Pointwise(mask_dim, dim)
        self.fine = Pointwise(fine, dim)
        self.place = nn.Parameter(torch.zeros(dim, PLACES, PLACES))
        self.down = nn.Sequential(Conv(dim, dim, 5, 2, groups=dim), Pointwise(dim, 2 * dim, activation='relu'))
        self.blocks = nn.Sequential(*(Refine(2 * dim, 2 * dim) for _ in range(blocks)))
        self.up = Pointwise(2 * dim, dim)
        self.sharpen = Refine(dim, dim)
        self.logit = Pointwise(dim, 1)
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)

    def forward(self, embeddings: Tensor, mask: Tensor, fine: Tensor) -> Tensor:
        """Return what is added to the mask logits of the product, ``(K, GRID, GRID)``.

        ``embeddings (K, D)``; on the boxes' grids ``mask (K, D, GRID, GRID)`` features and ``fine`` ones of the stem.
        """
        agreement = mask * embeddings[..., None, None]
        place = bilinear(self.place[None], (GRID, GRID))
        x = F.relu(self.agreement(agreement) + self.mask(mask) + self.fine(fine) + place)
        x = x + bilinear(self.up(self.blocks(self.down(x))), (GRID, GRID))
        return self.logit(self.sharpen(x))[:, 0]

    def drawn(self, products: Tensor, boxes: Tensor, embeddings: Tensor, features: Tensor, fine: Tensor) -> Tensor:
        """Return mask logits, ``products (K, h, w)`` and what the network adds to them in ``boxes (K, 4)``.

        ``embeddings (K, D)``, ``features (D, h, w)`` and ``fine (F, 2 h, 2 w)`` are those of a frame.
        """
        added = self(embeddings, sampled(features, boxes), sampled(fine, boxes))
        return cropped(products + on_cells(added, boxes, products.shape[-2:]), boxes)


@dataclass
class BoxShapes:
    """What draws the masks of T frames with R rows in their boxes."""

    boxes: Tensor       # (T, R, 4) that masks do not leave, as shares of the padded input's sides
    fine: Tensor        # (T, F, 2 h, 2 w) features of the stem
    network: BoxMasks

    def drawn(self, products: Tensor, frame: int, rows: Tensor, embeddings: Tensor, mask_features: Tensor) -> Tensor:
        """Return the mask logits ``(K, h, w)`` at stride 4 of some rows of a frame.

        ``products (K, h, w)`` are those of ``embeddings (K, D)`` and ``mask_features (D, h, w)``.
        """
        boxes = self.boxes[frame, rows]
        if not len(boxes):
            return products
        # in the precision of the network's weights, whatever that of the features is
        dtype = self.network.place.dtype
        with torch.autocast(products.device.type, enabled=False):
            features, fine = mask_features.to(dtype), self.fine[frame].to(dtype)
            # a few at a time: the memory that is needed does not follow the number of objects
            parts = zip(*(part.split(AT_ONCE) for part in (products, boxes, embeddings.to(dtype))), strict=True)
            return torch.cat([self.network.drawn(*some, features, fine) for some in parts])


def on_cells(grids: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return values on the grids of boxes ``(K, 4)``, interpolated in the cells of a map of ``size`` (h, w)."""
    points = torch.arange(GRID, device=grids.device, dtype=grids.dtype)

    def weights(low: Tensor, high: Tensor, cells: int) -> Tensor:
        centres = (torch.arange(cells, device=grids.device, dtype=grids.dtype) + 0.5) / cells
        place = (centres - low[:, None]) / (high - low)[:, None] * GRID - 0.5
        return (1 - (place.clamp(0, GRID - 1)[..., None] - points).abs()).clamp(min=0)       # (K, cells, GRID)

    left, top, right, bottom = wider(boxes).to(grids.dtype).unbind(-1)
    return weights(top, bottom, size[0]) @ grids @ weights(left, right, size[1]).mT
