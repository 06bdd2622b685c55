"""Set prediction losses: Hungarian matching of queries to instances; class, mask and dice terms at every depth.

Source: Mask2Former (matching, 2 CE + 5 BCE + 5 dice, no-object weight 0.1, deep supervision with a matching per
depth). Masks are compared at random points of the full resolution as published, or (``points: 0``) in every cell of
the stride-4 grid, which is quicker for small pictures. Two departures suit partly labelled data. If an image labels
persons only, an unmatched query is charged for predicting a person and for nothing else. An unmatched query that lies
in an unlabelled region is not charged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.data.transforms import Sample
from tar_vis_core.runtime.assignment import linear_sum_assignment
from tar_vis_core.training.distributed import mean_over_processes
from tar_vis_core.training.points import sample_at, uncertain_points

STRIDE = 4
Pairs = list[tuple[Tensor, Tensor]]     # matched queries and instances, at each depth


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; the first four are Mask2Former's."""

    classification: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1
    reid: float = 2.0        # contrast of the referring tracker's references
    points: int = 0          # where masks are compared: so many points (12544 as published), or 0: the stride-4 grid


@dataclass
class Target:
    """Ground truth of one frame: at stride 4 as area averages, or at the full resolution for losses at points."""

    masks: Tensor      # (n, h, w) in 0..1
    labels: Tensor     # (n,)
    ignore: Tensor     # (h, w) in 0..1
    exhaustive: bool
    instances: Tensor  # (n,) which of the sample's instances these are


def make_target(sample: Sample, size: tuple[int, int], points: int = 0, device: torch.device | None = None) -> Target:
    """Return the truth of a sample on a canvas of ``size`` (H, W); instances that are not visible are dropped."""
    height, width = sample.masks.shape[-2:]
    pad = 0, size[1] - width, 0, size[0] - height
    masks, ignore = (F.pad(x.to(device), pad).float() for x in (sample.masks, sample.ignore[None]))
    if not points:
        # one channel each, for of no instances at all it pools a batch, but no channels
        masks, ignore = (F.avg_pool2d(x[:, None], STRIDE)[:, 0] for x in (masks, ignore))
    seen = masks.flatten(1).any(1)
    return Target(masks[seen], sample.labels.to(device)[seen], ignore[0], sample.exhaustive,
                  seen.nonzero()[:, 0])


def matching_cost(class_cost: Tensor, masks: Tensor, truth: Tensor, weights: LossWeights) -> Tensor:
    """Return the cost of each pair of query and instance, ``(M, Q, n)`` for M depths.

    ``class_cost (M, Q, n)``; mask logits ``(M, Q, K)`` and truth ``(n, K)`` in the same K places.
    """
    positive, negative = F.softplus(-masks), F.softplus(masks)
    bce = (positive @ truth.t() + negative @ (1 - truth).t()) / truth.shape[1]
    p = masks.sigmoid()
    dice = 1 - (2 * (p @ truth.t()) + 1) / (p.sum(-1, keepdim=True) + truth.sum(-1) + 1)
    cost = weights.classification * class_cost + weights.mask * bce + weights.dice * dice
    return torch.nan_to_num(cost.float(), nan=1e6, posinf=1e6, neginf=-1e6)


def match(cost: Tensor) -> Pairs:
    """Return the Hungarian assignment of each depth of ``cost (M, Q, n)``."""
    return [tuple(torch.as_tensor(i, device=cost.device) for i in linear_sum_assignment(c))
            for c in cost.numpy(force=True)]


def matching_places(features: Tensor, target: Target, points: int, phase: tuple[int, int]
                    ) -> tuple[Tensor, Tensor, Tensor]:
    """Return mask features ``(D, K)``, truth ``(n, K)`` and ignored region ``(K,)`` at the places of the matching.

    These are ``points`` random ones, or every second cell of the grid from ``phase``.
    """
    maps = features, target.masks, target.ignore[None]
    if points:
        where = torch.rand(1, points, 2, device=features.device)
        places = [sample_at(x[None], where)[0] for x in maps]
    else:
        places = [x[:, phase[0]::2, phase[1]::2].flatten(1) for x in maps]
    return places[0], places[1], places[2][0]


def class_loss(logits: Tensor, labels: Tensor, matched: Tensor, ignored: Tensor, exhaustive: bool,
               no_object: float, person: int | None = 0) -> tuple[Tensor, Tensor]:
    """Return weighted cross-entropy sum and weight sum over the queries of ``logits (..., Q, C + 1)``, each ``(...)``.

    ``labels`` hold the class of matched queries; ``ignored`` queries weigh nothing. ``person`` is that class.
    """
    log_p = logits.log_softmax(-1)
    hit = -log_p.gather(-1, labels[..., None])[..., 0]
    # persons only: anything but a person is right, so charge -log(1 - p_person)
    others = [c for c in range(logits.shape[-1]) if c != person]
    miss = -log_p[..., -1] if exhaustive else -log_p[..., others].logsumexp(-1)
    weight = torch.where(matched, 1.0, torch.where(ignored, 0.0, no_object))
    return (weight * torch.where(matched, hit, miss)).sum(-1), weight.sum(-1)


def set_losses(logits: list[Tensor], mask_embeddings: list[Tensor], mask_features: Tensor, targets: list[Target],
               weights: LossWeights, phase: tuple[int, int] = (0, 0), person: int | None = 0,
               pairs: list[Pairs] | None = None) -> dict[str, Tensor]:
    """Return the losses of B frames at M depths, summed and averaged as Mask2Former does: unweighted terms, scalars.

    ``logits, mask_embeddings``: one ``(B, Q, .)`` per depth; ``mask_features (B, D, h, w)``. ``pairs``, one a frame,
    takes the place of the matching at all depths. With several processes the averages are those over all their frames.
    """
    depth_logits = torch.stack(logits, 1).float()            # (B, M, Q, C + 1)
    embeddings = torch.stack(mask_embeddings, 1).float()     # (B, M, Q, D)
    sums = {name: [] for name in ('class', 'mask', 'dice')}
    weight_sum = mask_features.new_zeros((), dtype=torch.float32)
    # unbind and not indices: the gradient of an index is a copy of the whole
    for i, (features, target, z, e) in enumerate(zip(
            mask_features.float().unbind(), targets, depth_logits.unbind(), embeddings.unbind(), strict=True)):
        with torch.no_grad():
            places, truth, ignore = matching_places(features, target, weights.points, phase)
            coarse = (e @ places).float()                                   # (M, Q, K)
            inside = coarse.sigmoid()
            ignored = (inside @ ignore) > 0.5 * inside.sum(-1)
            found = pairs[i] if pairs else match(
                matching_cost(-z.softmax(-1)[..., target.labels], coarse, truth, weights))
            d = torch.cat([torch.full_like(q, depth) for depth, (q, _) in enumerate(found)])
            q, t = (torch.cat(column) for column in zip(*found, strict=True))
            matched = torch.zeros(z.shape[:2], dtype=torch.bool, device=z.device)
            labels = torch.zeros(z.shape[:2], dtype=torch.long, device=z.device)
            matched[d, q] = True
            labels[d, q] = target.labels[t]
        loss, weight = class_loss(z, labels, matched, ignored, target.exhaustive, weights.no_object, person)
        sums['class'].append(loss)
        weight_sum = weight_sum + weight.sum()
        masks = torch.zeros_like(loss), torch.zeros_like(loss)
        if len(d):
            costs = mask_losses((e[d, q] @ features.flatten(1)).float(), target.masks, t, features.shape[-2:],
                                weights.points)
            masks = [depths.index_add(0, d, cost) for depths, cost in zip(masks, costs, strict=True)]
        sums['mask'].append(masks[0])
        sums['dice'].append(masks[1])
    count = weight_sum.new_tensor(float(sum(len(target.labels) for target in targets)))
    count, weight_sum = mean_over_processes(torch.stack((count, weight_sum))).unbind()
    # the mean is over all depths at once, times their number: each depth weighs as it does alone
    shares = {'class': weight_sum.clamp(min=1e-3) / len(logits), 'mask': count.clamp(min=1), 'dice': count.clamp(min=1)}
    return {name: (torch.stack(frames) / shares[name]).sum() for name, frames in sums.items()}


def mask_losses(predicted: Tensor, masks: Tensor, which: Tensor, size: tuple[int, int], points: int
                ) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and dice of P masks, ``(P,)``: ``(P, h * w)`` logits of ``size`` and ``masks[which]``."""
    if points:
        predicted = predicted.unflatten(1, size)
        where = uncertain_points(predicted.detach(), points)
        predicted = sample_at(predicted[:, None], where)[:, 0]
        truth = sample_at(masks[which][:, None], where)[:, 0]
    else:
        truth = masks.flatten(1)[which]
    bce = F.binary_cross_entropy_with_logits(predicted, truth, reduction='none').mean(1)
    p = predicted.sigmoid()
    return bce, 1 - (2 * (p * truth).sum(1) + 1) / (p.sum(1) + truth.sum(1) + 1)


def total_loss(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Return the weighted sum that is minimised."""
    factors = {'class': weights.classification, 'mask': weights.mask, 'dice': weights.dice,
               'reid': weights.reid}
    return sum(factors[name] * value for name, value in terms.items())
