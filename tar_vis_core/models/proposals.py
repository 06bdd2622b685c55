"""From a detector's predictions to the queries that a decoder starts with: one for each likely object.

A query so knows where its object is and what it may be before the first decoder layer: its content comes from the
detector's cell, its position from the cell's box, and its first attention mask is the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.backbones.nanodet import BINS, STRIDES, DetectorMaps
from tar_vis_core.models.layers import MLP
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.kernels.maps import likeliest_cells

CANDIDATES = 512        # best cells of a frame among which repeated ones are dropped: 256 leave 39 of 64 queries in use
# A box that overlaps a surer one by more than this is the same object: of one class, of whatever class.
SAME_CLASS_IOU, ANY_CLASS_IOU = 0.65, 0.85
# An IoU above t is a shared area above t / (1 + t) of the two areas' sum: no division for each pair.
SHARES = tuple(t / (1 + t) for t in (SAME_CLASS_IOU, ANY_CLASS_IOU))
MARGIN = 0.15           # of a box's sides, by which masks may exceed it on each side
FREQUENCIES = 8         # of the sine encoding of a box's sides
LEAST_SIDE = 1e-3       # of a box that is encoded
LEAST = -30.0           # logit of what was dropped
# The detector's logit to the chance that a mask is right (its class, and an IoU above 0.5): logistic regression on 547
# pictures, of which the detector's training had not seen 446. Neither the size of a box nor its class adds to it.
SLOPE, OFFSET = 3.0, 1.0


@dataclass
class Proposals:
    """The likeliest objects of N frames, Q each, by falling score; if there are fewer, the rest has no class."""

    boxes: Tensor       # (N, Q, 4) left, top, right, bottom as shares of the padded input's width and height
    logits: Tensor      # (N, Q, classes) of the detector
    content: Tensor     # (N, Q, C) the detector's features of the cell
    fine: Tensor        # (N, F, 2 h, 2 w) features of the detector's stem, from which masks are drawn

    def ordered(self, order: Tensor) -> Proposals:
        """Return them in another order, ``(N, Q)`` indices."""
        parts = self.boxes, self.logits, self.content
        return Proposals(*(part.take_along_dim(order[..., None], 1) for part in parts), self.fine)

    def frame(self, n: int) -> Proposals:
        """Return those of one frame, as a batch of one."""
        return Proposals(*(part[n:n + 1] for part in (self.boxes, self.logits, self.content, self.fine)))

    def class_logits(self) -> Tensor:
        """Return logits whose softmax is the chance of each class and, in the last column, of none of them.

        Their shape is ``(N, Q, classes + 1)``. The chances of a query that may be two things are scaled to a sum of 1.
        """
        chances = F.logsigmoid(SLOPE * self.logits.float() + OFFSET)
        nothing = (1 - chances.exp().sum(-1, keepdim=True)).clamp(min=1e-6).log()
        return torch.cat((chances, nothing), -1)

    def inside(self, size: tuple[int, int]) -> Tensor:
        """Return which cells of a map of ``size`` (h, w) touch the boxes with their margin, ``(N, Q, h * w)``."""
        return touched_cells(self.boxes, size).flatten(2)


def wider(boxes: Tensor) -> Tensor:
    """Return boxes ``(..., 4)`` with their margin, cut at the picture's edge but never empty."""
    low, high = boxes[..., :2], boxes[..., 2:]
    margin = MARGIN * (high - low) + 0.002
    return torch.cat(((low - margin).clamp(0, 0.998), (high + margin).clamp(0.002, 1)), -1)


def touched_cells(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which cells of a map of ``size`` (h, w) boxes ``(..., 4)`` touch with their margin, ``(..., h, w)``."""
    left, top, right, bottom = wider(boxes).unbind(-1)

    def touched(low: Tensor, high: Tensor, cells: int) -> Tensor:
        edge = torch.arange(cells + 1, device=low.device, dtype=low.dtype) / cells
        return (edge[1:] > low[..., None]) & (edge[:-1] < high[..., None])

    return touched(top, bottom, size[0])[..., :, None] & touched(left, right, size[1])[..., None, :]


def cropped(masks: Tensor, boxes: Tensor) -> Tensor:
    """Return mask logits ``(..., h, w)`` that are negative outside their boxes ``(..., 4)``."""
    return torch.where(touched_cells(boxes.to(masks.device), masks.shape[-2:]), masks, masks.clamp(max=-1))


def box_ious(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union of boxes ``(..., n, 4)`` and ``(..., m, 4)``, ``(..., n, m)``."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    width, height = ((torch.minimum(a[..., k + 2], b[..., k + 2]) - torch.maximum(a[..., k], b[..., k])).clamp(min=0)
                     for k in range(2))
    common = width * height
    return common / ((a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common).clamp(min=1e-9)


def repeated(boxes: Tensor, label: Tensor) -> Tensor:
    """Return which boxes ``(N, K, 4)`` of classes ``(N, K)`` show the same object, ``(N, K, K)``."""
    left, top, right, bottom = boxes.unbind(-1)

    def common(low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(high[:, :, None], high[:, None]).sub_(
            torch.maximum(low[:, :, None], low[:, None])).clamp_(min=0)

    shared = common(left, right).mul_(common(top, bottom))
    area = (right - left) * (bottom - top)
    share = torch.where(label[:, :, None] == label[:, None], *SHARES)
    return shared > share.mul_(area[:, :, None] + area[:, None])


def by_cell(maps: list[Tensor]) -> Tensor:
    """Return maps ``(N, C, h, w)`` as rows of their cells ``(N, cells, C)``, levels one after the other."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)


def decoded_boxes(predictions: list[Tensor], classes: int) -> Tensor:
    """Return the boxes of all cells ``(N, cells, 4)`` as shares of the input's sides, levels one after the other."""
    device, sizes = predictions[0].device, [p.shape[-2:] for p in predictions]
    height, width = (n * STRIDES[0] for n in sizes[0])
    grids = [torch.cartesian_prod(*(stride * torch.arange(n, device=device, dtype=torch.float32) for n in size))
             for size, stride in zip(sizes, STRIDES, strict=True)]
    # y, x and stride of each cell
    cells = torch.cat([torch.nn.functional.pad(grid, (0, 1), value=stride)
                       for grid, stride in zip(grids, STRIDES, strict=True)])
    rows = by_cell([p[:, classes:] for p in predictions])
    y, x, stride = cells.unbind(-1)
    bins = torch.arange(BINS, device=device, dtype=torch.float32)
    sides = rows.float().unflatten(-1, (4, BINS)).softmax(-1) @ bins
    left, top, right, bottom = (stride[..., None] * sides).unbind(-1)
    return torch.stack(((x - left) / width, (y - top) / height, (x + right) / width, (y + bottom) / height),
                       -1).clamp(0, 1)


def propose(maps: DetectorMaps, classes: int, queries: int) -> Proposals:
    """Choose the likeliest objects: the best cells, without those that overlap a surer one.

    All pairs are compared at once (Fast NMS; Bolya et al. 2019), so that the work is the same for every picture. The
    compiled kernel of a CPU goes on from the surest one until there are enough, with the same result.
    """
    if maps.fine.device.type == 'cpu' and not torch.is_grad_enabled() and kernels.compiled() is not None:
        return Proposals(*likeliest_cells(maps.predictions, maps.cells, STRIDES, classes, CANDIDATES, queries, SHARES,
                                          LEAST), maps.fine)
    logits, content = by_cell([p[:, :classes] for p in maps.predictions]).float(), by_cell(maps.cells)
    order = logits.amax(-1).topk(min(CANDIDATES, logits.shape[1]), 1).indices
    boxes = decoded_boxes(maps.predictions, classes).take_along_dim(order[..., None], 1)
    label = logits.take_along_dim(order[..., None], 1).argmax(-1)
    dropped = repeated(boxes, label).triu(1).any(1)     # row i is surer than column j > i
    chosen = dropped.int().argsort(dim=1, stable=True)[:, :queries]     # the others first, each by falling score
    order, gone = order.take_along_dim(chosen, 1), dropped.take_along_dim(chosen, 1)
    logits = logits.take_along_dim(order[..., None], 1)
    found = Proposals(boxes.take_along_dim(chosen[..., None], 1), torch.where(gone[..., None], LEAST, logits),
                      content.take_along_dim(order[..., None], 1), maps.fine)
    short = queries - found.boxes.shape[1]      # of a picture with fewer cells than queries
    if short > 0:
        pad = (0, 0, 0, short)
        found = Proposals(F.pad(found.boxes, pad), F.pad(found.logits, pad, value=LEAST),
                          F.pad(found.content, pad), maps.fine)
    return found


class QuerySeeds(nn.Module):
    """Proposals to a decoder's first queries and their positions."""

    def __init__(self, dim: int, classes: int, content: int) -> None:
        super().__init__()
        self.content = nn.Linear(content, dim)
        self.names = nn.Linear(classes, dim, bias=False)
        self.place = MLP(8 * FREQUENCIES, dim, dim, 2)
        self.shape = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, proposals: Proposals) -> tuple[Tensor, Tensor]:
        """Return queries and positions, each ``(N, Q, D)``."""
        position = self.place(box_encoding(proposals.boxes))
        x = self.content(proposals.content) + self.names(proposals.logits.sigmoid()) + self.shape(position)
        return self.norm(x), position


def box_encoding(boxes: Tensor) -> Tensor:
    """Return sines and cosines of the centre and the logarithmic size of boxes ``(..., 4)``, ``(..., 64)``."""
    low, high = boxes[..., :2], boxes[..., 2:]
    size = (high - low).clamp(min=LEAST_SIDE)
    values = torch.cat(((low + high) / 2, -size.log() / 7), -1)         # 0..1
    octaves = torch.pi * 2.0 ** torch.arange(FREQUENCIES, device=boxes.device, dtype=boxes.dtype)
    angles = (values[..., None] * octaves).flatten(-2)
    return torch.cat((angles.sin(), angles.cos()), -1)
