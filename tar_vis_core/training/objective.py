"""The loss of a batch of clips: the decoder's losses frame by frame, routed from frame to frame, and the tracker's."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.data.transforms import Sample
from tar_vis_core.models.masked_decoder import SupervisedOutput
from tar_vis_core.models.seeing_routers import SeeingRouters
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.training.losses import LossWeights, Target, make_target, set_losses, total_loss
from tar_vis_core.training.proposal_losses import proposal_losses
from tar_vis_core.training.recipe import Recipe
from tar_vis_core.training.tracker_losses import TrackedFrame, tracker_losses


def stack_images(model: VideoInstanceModel, samples: list[Sample]) -> Tensor:
    """Return the samples' pictures, normalised and padded to one size on the model's device, ``(B, 3, H, W)``."""
    images = [model.normalize(sample.image.to(model.pixel_mean.device)) for sample in samples]
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    return torch.stack([F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images])


def person_class(model: VideoInstanceModel) -> int | None:
    """Return the decoder's class of persons, or None if it has none."""
    names = model.config.class_names
    return names.index('person') if 'person' in names else None


def sees(model: VideoInstanceModel) -> bool:
    """Return whether the model's Routers look at the picture."""
    return isinstance(model.decoder.routers, SeeingRouters)


@torch.no_grad()
def frame_losses(model: VideoInstanceModel, output: SupervisedOutput, depth: int, features: Features,
                 samples: list[Sample], targets: list[Target], weights: LossWeights, person: int | None) -> Tensor:
    """Return the loss of each frame after ``depth`` layers, ``(B,)``."""
    size = tuple(4 * side for side in features.mask_features.shape[-2:])

    def of(b: int) -> Tensor:
        one = slice(b, b + 1)
        logits, embeddings = [output.logits[depth][one]], [output.mask_embeddings[depth][one]]
        if output.proposals is None:
            terms = set_losses(logits, embeddings, features.mask_features[one], targets[one], weights, person=person)
        else:
            alone = replace(output, logits=logits, mask_embeddings=embeddings, proposals=output.proposals.frame(b))
            terms = proposal_losses(model, alone, features.frame(b), samples[one], size)
        return total_loss(terms, weights)

    return torch.stack([of(b) for b in range(len(samples))])


def worth_loss(worth: Tensor, before: Tensor, behind: Tensor) -> Tensor:
    """Return how far the Routers' ``worth (B,)`` is from what the layers take away, with rare extremes cut.

    ``before`` and ``behind (B,)`` are the losses before these layers and behind them.
    """
    return F.smooth_l1_loss(worth, (before - behind).clamp(-1, 2))


def batch_losses(model: VideoInstanceModel, clips: list[list[Sample]], recipe: Recipe, done: float,
                 phase: tuple[int, int]) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch of clips (of one frame for stills) and its terms; ``done`` is the finished part, 0..1.

    A clip's first frame is decoded plainly and stays in the loss, so that the plain decoder (first frames, routing
    'full') does not drift away. Every later frame is synchronised with the queries of the frame before, and routed by
    them.
    ``reroute_first`` decodes the first frame once more, routed by its own plain queries: the paper's t = 0. Parts that
    do not train need no loss: if only the tracker trains, there are only its losses.
    """
    decoder_trains = any(p.requires_grad for p in model.decoder.parameters())
    encoder_trains = any(p.requires_grad for part in (model.backbone, model.pixel_decoder) for p in part.parameters())
    only_routers = not any(p.requires_grad for name, p in model.decoder.named_parameters()
                           if not name.startswith('routers.'))
    # Routers that look at the picture learn from what exits cost, and not from the losses of what they route
    segments = encoder_trains or (decoder_trains and not (only_routers and sees(model)))
    tracker_trains = model.tracker is not None and any(p.requires_grad for p in model.tracker.parameters())
    routed = model.decoder.routers is not None
    person, passes, total, log = person_class(model), 0, torch.zeros((), device=model.pixel_mean.device), {}
    previous, tracked = None, []
    for samples in zip(*clips, strict=True):
        images = stack_images(model, samples)
        with torch.set_grad_enabled(encoder_trains):
            features = model.encode(images)
        targets = [make_target(s, images.shape[-2:], recipe.loss.points, images.device) for s in samples]
        for again in range(2 if recipe.reroute_first and routed and previous is None else 1):
            with torch.set_grad_enabled(decoder_trains or encoder_trains):
                output = model.supervised(features, previous)
            if not again:
                tracked.append(TrackedFrame(output, features.mask_features, targets))
            if output.worth is not None:
                with torch.no_grad():
                    half = model.supervised(features, previous, model.decoder.routers.half)
                before, behind = (frame_losses(model, half, depth, features, samples, targets, recipe.loss, person)
                                  for depth in (model.config.warmup_layers, -1))
                term = worth_loss(output.worth, before + recipe.rest_cost, behind)
                total, passes = total + term, passes + 1
                log['worth'] = float(term.detach())
            if segments:
                if output.proposals is not None:
                    terms = proposal_losses(model, output, features, samples, images.shape[-2:])
                else:
                    terms = set_losses(output.logits, output.mask_embeddings, features.mask_features, targets,
                                       recipe.loss, phase, person)
                total, passes = total + total_loss(terms, recipe.loss), passes + 1
                log.update({k: float(v.detach()) for k, v in terms.items()})
            if output.execute is not None:
                probability = output.execute.mean()
                log.update(execute_probability=float(probability.detach()), executed=float(output.executed.mean()))
            past = output.past if routed else None
            if past is not None:        # no gradient through frames: it costs memory, and found nothing better
                past = past._replace(queries=past.queries.detach())
            if output.worth is not None:        # by chance none of the layers ran, or half of them
                past = half.past.unless(torch.rand(len(samples)).to(images.device) < 0.5, previous)
            previous = past
    total = total / max(passes, 1)
    if tracker_trains:
        terms = tracker_losses(model, tracked, recipe, done, phase, person)
        total = total + total_loss(terms, recipe.loss)
        log.update({f'tracker_{k}': float(v.detach()) for k, v in terms.items()})
    return total, log
