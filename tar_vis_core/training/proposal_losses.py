"""Losses of a decoder whose queries start from a detector's boxes.

A query keeps its box and its class, so which instance it stands for is settled once a frame by these, not at every
depth by masks. The decoder only learns masks. They are compared on a grid inside the query's box, so that a small
object counts as much as a large one. If only the box of an instance is known, the mask's projections on the box's sides
are compared (BoxInst; Tian et al. 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.data.transforms import Sample
from tar_vis_core.models.box_masks import grid_in, sampled
from tar_vis_core.models.masked_decoder import SupervisedOutput
from tar_vis_core.models.proposals import box_ious, wider
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.runtime.assignment import linear_sum_assignment
from tar_vis_core.training.distributed import mean_over_processes

LEAST_IOU = 0.5         # of boxes, for a query to stand for an instance


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the tight boxes of boolean masks ``(n, H, W)`` as shares of the sides, ``(n, 4)``; none is empty."""
    sides = []
    for axis, size in ((1, masks.shape[2]), (2, masks.shape[1])):
        line = masks.any(axis).float()                                   # columns, then rows
        first, last = line.argmax(1), size - line.flip(1).argmax(1)
        sides.append((first / size, last / size))
    (left, right), (top, bottom) = sides
    return torch.stack((left, top, right, bottom), 1)


def assign(logits: Tensor, boxes: Tensor, labels: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and instances that belong together, by the detector's ``logits (Q, C)`` and ``boxes (Q, 4)``."""
    iou = box_ious(boxes, truth)
    cost = 2 * (1 - logits.sigmoid()[:, labels]) + 5 * (1 - iou) + 100 * (iou < LEAST_IOU)
    q, t = (torch.as_tensor(i) for i in linear_sum_assignment(cost.numpy(force=True)))
    good = iou[q, t] >= LEAST_IOU
    return q[good], t[good]


def mask_costs(predicted: Tensor, truth: Tensor, boxed: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and dice of mask logits ``(M, K, g, g)`` against ``truth (K, g, g)``, each ``(M, K)``.

    Of ``boxed (K,)`` masks only the projections count, with their dice.
    """
    p = predicted.sigmoid()

    def dice(a: Tensor, b: Tensor) -> Tensor:
        return 1 - (2 * (a * b).flatten(2).sum(2) + 1) / (a.flatten(2).sum(2) + b.flatten(2).sum(2) + 1)

    bce = F.binary_cross_entropy_with_logits(predicted, truth.expand_as(predicted), reduction='none').mean((2, 3))
    truth = truth[None]
    projected = (dice(p.amax(2), truth.amax(2)) + dice(p.amax(3), truth.amax(3))) / 2
    return torch.where(boxed, 0.0, bce), torch.where(boxed, projected, dice(p, truth))


def proposal_losses(model: VideoInstanceModel, output: SupervisedOutput, features: Features, samples: list[Sample],
                    size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the losses of B frames summed over depths, averaged as Mask2Former does; a dict of the unweighted terms.

    ``size`` is the padded input's (height, width), to which masks of the samples are padded.
    """
    proposals, device = output.proposals, features.mask_features.device
    embeddings, count = torch.stack(output.mask_embeddings, 1).float(), 0
    inside, fine, truth, asked, projected = [], [], [], [], []
    for b, (sample, mask_features) in enumerate(zip(samples, features.mask_features.float().unbind(), strict=True)):
        pad = 0, size[1] - sample.masks.shape[2], 0, size[0] - sample.masks.shape[1]
        seen = sample.masks.flatten(1).any(1)
        masks, labels = F.pad(sample.masks[seen], pad).to(device), sample.labels[seen].to(device)
        boxed = sample.boxed[seen].to(device)
        boxes = proposals.boxes[b]
        q, t = assign(proposals.logits[b], boxes, labels, mask_boxes(masks)) if len(labels) else (labels, labels)
        if len(q):
            inside.append(sampled(mask_features, boxes[q]))
            fine.append(sampled(proposals.fine[b].float(), boxes[q]))
            truth.append(F.grid_sample(masks[t][:, None].float(), grid_in(wider(boxes[q])), align_corners=False)[:, 0])
            asked.append(embeddings[b][:, q])
            projected.append(boxed[t])
            count += len(q)
    mean_count = mean_over_processes(embeddings.new_tensor(float(count))).clamp(min=1e-3)   # over processes below one
    if not count:
        nothing = embeddings.sum() * 0
        return {'mask': nothing, 'dice': nothing}
    truth, projected, asked = torch.cat(truth), torch.cat(projected), torch.cat(asked, 1)
    inside, fine = torch.cat(inside), torch.cat(fine)
    # the decoder may stop at any depth: half of the masks are drawn from the last one's embeddings
    last, rows = len(asked) - 1, torch.arange(asked.shape[1], device=device)
    earlier = torch.randint(max(last, 1), rows.shape, device=device)
    depth = torch.where(torch.rand(rows.shape, device=device) < 0.5, last, earlier)
    products = torch.einsum('mkd,kdyx->mkyx', asked, inside)
    drawn = products[depth, rows] + model.decoder.box_masks(asked[depth, rows], inside, fine)
    mask, dice = mask_costs(torch.cat((products, drawn[None])), truth, projected)
    return {'mask': mask.sum() / mean_count, 'dice': dice.sum() / mean_count}
