"""Set prediction losses: Hungarian matching of queries to instances, then class, mask and dice terms at every depth.

Source: Mask2Former (matching, 2 CE + 5 BCE + 5 dice, no-object weight 0.1, deep supervision with a matching per
depth). Two departures suit partly labelled data: where an image labels persons only, an unmatched query is charged
for saying person and for nothing else; and an unmatched query that lies in an unlabelled crowd is not charged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tar_vis_core.data.transforms import PERSON, Sample
from tar_vis_core.models.layers import bilinear

UNKNOWN = 255


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; the first four are Mask2Former's."""

    classification: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1
    semantic: float = 0.5


@dataclass
class Target:
    """Ground truth of one frame at the mask features' stride."""

    masks: Tensor      # (n, h, w) in 0..1: area averages
    labels: Tensor     # (n,)
    ignore: Tensor     # (h, w) in 0..1
    exhaustive: bool
    semantic: Tensor   # (H, W) Pascal VOC index, 255 unknown


def make_target(sample: Sample, stride: int = 4) -> Target:
    """Average the masks of a sample over ``stride x stride`` cells; instances that vanish there are dropped."""
    masks = F.avg_pool2d(sample.masks[:, None].float(), stride)[:, 0] if len(sample.masks) else \
        sample.masks.new_zeros((0, sample.masks.shape[1] // stride, sample.masks.shape[2] // stride),
                               dtype=torch.float32)
    seen = masks.flatten(1).sum(1) > 0 if len(masks) else torch.zeros(0, dtype=torch.bool)
    ignore = F.avg_pool2d(sample.ignore[None, None].float(), stride)[0, 0]
    return Target(masks[seen], sample.labels[seen], ignore, sample.exhaustive, sample.semantic)


def match(class_cost: Tensor, masks: Tensor, truth: Tensor, weights: LossWeights) -> list[tuple[Tensor, Tensor]]:
    """Hungarian assignment per depth: ``class_cost (M, Q, n)``, mask logits ``(M, Q, K)``, truth ``(n, K)``.

    Gives, per depth, indices of queries and of instances.
    """
    points = truth.shape[1]
    positive, negative = F.softplus(-masks), F.softplus(masks)
    bce = (positive @ truth.t() + negative @ (1 - truth).t()) / points
    p = masks.sigmoid()
    dice = 1 - (2 * (p @ truth.t()) + 1) / (p.sum(-1, keepdim=True) + truth.sum(-1) + 1)
    cost = weights.classification * class_cost + weights.mask * bce + weights.dice * dice
    cost = torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6).numpy(force=True)
    return [tuple(torch.as_tensor(i) for i in linear_sum_assignment(c)) for c in cost]


def class_loss(logits: Tensor, labels: Tensor, matched: Tensor, ignored: Tensor, exhaustive: bool,
               no_object: float) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy sum and weight sum over ``logits (..., C + 1)``.

    ``labels`` hold the class of matched queries; ``ignored`` queries weigh nothing.
    """
    log_p = logits.log_softmax(-1)
    hit = -log_p.gather(-1, labels[..., None])[..., 0]
    # persons only: anything but a person is right, so charge -log(1 - p_person)
    others = [c for c in range(logits.shape[-1]) if c != PERSON]
    miss = -log_p[..., -1] if exhaustive else -log_p[..., others].logsumexp(-1)
    weight = torch.where(matched, 1.0, torch.where(ignored, 0.0, no_object))
    return (weight * torch.where(matched, hit, miss)).sum(), weight.sum()


def set_losses(logits: list[Tensor], mask_embeddings: list[Tensor], mask_features: Tensor, targets: list[Target],
               weights: LossWeights, phase: tuple[int, int] = (0, 0)) -> dict[str, Tensor]:
    """Losses summed over depths, averaged as Mask2Former does; a dict of the unweighted terms, scalars.

    ``logits, mask_embeddings``: one ``(B, Q, .)`` per depth; ``mask_features (B, D, h, w)``. Matching looks at every
    second cell of the stride-4 grid, from ``phase``; the losses at all of them.
    """
    depth_logits = torch.stack(logits, 1).float()            # (B, M, Q, C + 1)
    embeddings = torch.stack(mask_embeddings, 1).float()     # (B, M, Q, D)
    depths, count = depth_logits.shape[1], max(1, sum(len(t.labels) for t in targets))
    terms = {name: mask_features.new_zeros((), dtype=torch.float32) for name in ('class', 'mask', 'dice')}
    class_sum, class_weight = 0.0, 0.0
    for features, target, z, e in zip(mask_features.float().unbind(), targets, depth_logits.unbind(),
                                      embeddings.unbind(), strict=True):
        sparse = slice(phase[0], None, 2), slice(phase[1], None, 2)
        with torch.no_grad():
            small = features[:, sparse[0], sparse[1]].flatten(1)
            coarse = e @ small                                              # (M, Q, K)
            inside = coarse.sigmoid()
            ignore = target.ignore[sparse].flatten()
            ignored = (inside @ ignore) > 0.5 * inside.sum(-1)
            matched = torch.zeros(z.shape[:2], dtype=torch.bool)
            labels = torch.zeros(z.shape[:2], dtype=torch.long)
            rows: list[tuple[Tensor, Tensor, Tensor]] = []
            if len(target.labels):
                truth = target.masks[:, sparse[0], sparse[1]].flatten(1)
                pairs = match(-z.softmax(-1)[..., target.labels], coarse, truth, weights)
                for d, (q, t) in enumerate(pairs):
                    matched[d, q] = True
                    labels[d, q] = target.labels[t]
                    rows.append((torch.full_like(q, d), q, t))
        loss, weight = class_loss(z, labels, matched, ignored, target.exhaustive, weights.no_object)
        class_sum, class_weight = class_sum + loss, class_weight + weight
        if rows:
            d, q, t = (torch.cat(column) for column in zip(*rows, strict=True))
            predicted = e[d, q] @ features.flatten(1)                       # (M * n, h * w)
            truth = target.masks.flatten(1)[t]
            terms['mask'] = terms['mask'] + F.binary_cross_entropy_with_logits(
                predicted, truth, reduction='none').mean(1).sum() / count
            p = predicted.sigmoid()
            dice = 1 - (2 * (p * truth).sum(1) + 1) / (p.sum(1) + truth.sum(1) + 1)
            terms['dice'] = terms['dice'] + dice.sum() / count
    # the mean is over all depths at once, times their number: each depth weighs as it does alone
    terms['class'] = class_sum / class_weight * depths
    return terms


def semantic_loss(semantic: Tensor, targets: list[Target]) -> Tensor:
    """Cross-entropy of the semantic head ``(B, 21, h, w)`` at four times its resolution; unknown pixels left out."""
    truth = torch.stack([t.semantic for t in targets])
    size = semantic.shape[-2] * 4, semantic.shape[-1] * 4
    truth = F.interpolate(truth[:, None].float(), size, mode='nearest')[:, 0].long()
    loss = F.cross_entropy(bilinear(semantic.float(), size), truth, ignore_index=UNKNOWN, reduction='sum')
    return loss / (truth != UNKNOWN).sum().clamp(min=1)


def total_loss(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The weighted sum that is minimised."""
    total = weights.classification * terms['class'] + weights.mask * terms['mask'] + weights.dice * terms['dice']
    return total + weights.semantic * terms['semantic'] if 'semantic' in terms else total
