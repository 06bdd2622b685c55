"""Training of the referring trackers of DVIS and DVIS++ (Zhang et al. 2023): one query for an object through a clip.

Objects are matched once, in the frame that shows them first, and keep their slot. In the first half of the run the
segmenter's predictions decide the slot, for all layers of the tracker. Then the tracker's own predictions decide, layer
by layer. In DVIS a slot that has its object may get another one, and there is no contrast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.models.masked_decoder import SupervisedOutput
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.training.distributed import mean_over_processes
from tar_vis_core.training.losses import LossWeights, Pairs, Target, match, matching_cost, matching_places, set_losses
from tar_vis_core.training.recipe import Recipe

SEGMENTER_DECIDES_UNTIL = 0.5       # fraction of the run
TAKEN = 1e6                         # cost of a slot that has its object


@dataclass
class TrackedFrame:
    """One frame of a batch of clips: the decoder's output, the mask features, and the truth of each clip."""

    output: SupervisedOutput
    mask_features: Tensor       # (B, D, h, w)
    targets: list[Target]


def tracker_losses(model: VideoInstanceModel, frames: list[TrackedFrame], recipe: Recipe, done: float,
                   phase: tuple[int, int], person: int | None) -> dict[str, Tensor]:
    """Return class, mask and dice terms of all layers over all frames, and the contrast of DVIS++'s references."""
    tracker, decoder = model.tracker, model.decoder
    queries = torch.stack([frame.output.queries for frame in frames], 1)        # (B, T, Q, D)
    raw, embeddings = tracker.read(decoder.output(queries, None))
    logits, mask_embeddings, features, targets, pairs, contrasts = [], [], [], [], [], []
    for b in range(len(queries)):
        tracks = tracker.supervised(raw[b], embeddings[b], recipe.tracker_noise)
        mask_features = torch.stack([frame.mask_features[b] for frame in frames])
        projected = tracker.mask_feature_proj(mask_features)
        truth = [frame.targets[b] for frame in frames]
        if done < SEGMENTER_DECIDES_UNTIL:
            own = [torch.stack([getattr(frame.output, name)[-1][b][order]
                                for frame, order in zip(frames, tracks.orders, strict=True)])[None]
                   for name in ('logits', 'mask_embeddings')]
            slots = consistent_slots(*own, mask_features, truth, recipe.loss, phase, tracker.shares_slots)
            slots = slots.expand(len(tracks.logits), -1)
        else:
            slots = consistent_slots(torch.stack(tracks.logits), torch.stack(tracks.mask_embeddings), projected,
                                     truth, recipe.loss, phase, tracker.shares_slots)
        logits.append(torch.stack(tracks.logits))
        mask_embeddings.append(torch.stack(tracks.mask_embeddings))
        features.append(projected)
        targets += truth
        pairs += [pairs_of(slots, target) for target in truth]
        contrasts.append(contrast_loss(tracks.references, slots[-1], truth))
    terms = set_losses(list(torch.cat(logits, 1)), list(torch.cat(mask_embeddings, 1)), torch.cat(features), targets,
                       recipe.loss, phase, person, pairs)
    if not tracker.contrasts:
        return terms
    contrasts = torch.cat(contrasts)
    items = mean_over_processes(torch.tensor(float(len(contrasts)), device=contrasts.device))
    return {**terms, 'reid': contrasts.sum() / items.clamp(min=1)}


@torch.no_grad()
def consistent_slots(logits: Tensor, mask_embeddings: Tensor, mask_features: Tensor, targets: list[Target],
                     weights: LossWeights, phase: tuple[int, int], shared: bool = False) -> Tensor:
    """Return the slot of each instance of a clip at each of M depths, ``(M, instances)``; -1 if there was none left.

    ``logits`` and ``mask_embeddings (M, T, Q, .)``, ``mask_features (T, D, h, w)``. ``shared``: a slot that has its
    object from an earlier frame may get another one.
    """
    depths, _, queries, _ = logits.shape
    count = max((int(target.instances.max()) + 1 for target in targets if len(target.instances)), default=0)
    slots = torch.full((depths, count), -1, device=logits.device)
    taken = torch.zeros(depths, queries, dtype=torch.bool, device=logits.device)
    for t, target in enumerate(targets):
        new = (slots[0, target.instances] < 0).nonzero()[:, 0]
        if not len(new):
            continue
        places, truth, _ = matching_places(mask_features[t].float(), target, weights.points, phase)
        cost = matching_cost(-logits[:, t].float().softmax(-1)[..., target.labels[new]],
                             (mask_embeddings[:, t].float() @ places).float(), truth[new], weights)
        cost[taken] = TAKEN
        for depth, (q, i) in enumerate(match(cost)):
            free = ~taken[depth, q]
            slots[depth, target.instances[new[i[free]]]] = q[free]
            taken[depth, q] = not shared
    return slots


def pairs_of(slots: Tensor, target: Target) -> Pairs:
    """Return matched slots and the target's instances in one frame, at each depth."""
    pairs = []
    for row in slots:
        own = row[target.instances]
        held = (own >= 0).nonzero()[:, 0]
        pairs.append((own[held], held))
    return pairs


def contrast_loss(references: Tensor, slots: Tensor, targets: list[Target]) -> Tensor:
    """Return a loss for each object in each frame after the first: log(1 + sum over others of exp(other - own)).

    ``references (T, Q, E)``. An object's reference should agree with its own of the frame before, and with no other.
    """
    items = []
    for before, now, target in zip(references[:-1], references[1:], targets[1:], strict=True):
        own = slots[target.instances]
        own = own[own >= 0]
        items.append(F.cross_entropy((now[own] @ before.t()).float(), own, reduction='none'))
    return torch.cat(items) if items else references.new_zeros(0)
