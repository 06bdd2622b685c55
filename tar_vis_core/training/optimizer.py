"""The parameters that train, their learning rates, and the average that is kept."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from tar_vis_core.models.backbones.mobilenet import MobileNetV2
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.training.recipe import PARTS, Recipe

# Biases, embeddings and tokens, by the end of their names; norms are vectors.
UNDECAYED = re.compile(r'(.*bias\d?|relative_position_bias_table|.*embed|.*_token|query_feat)')


def parameter_groups(model: VideoInstanceModel, recipe: Recipe) -> list[dict]:
    """Return AdamW's groups: the backbone has its own rate and decay; vectors and embeddings do not decay."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if recipe.trains(name):
            decays = parameter.ndim > 1 and not UNDECAYED.fullmatch(name.rpartition('.')[2])
            groups.setdefault((name.startswith(PARTS['backbone']), decays), []).append(parameter)
    return [{'params': parameters, 'factor': recipe.backbone_lr if in_backbone else 1.0,
             'weight_decay': (recipe.backbone_decay if in_backbone else recipe.weight_decay) if decays else 0.0}
            for (in_backbone, decays), parameters in groups.items()]


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Return the factor of the rate: linear warm-up, then a tenth from each of ``steps`` on, else a cosine to 0."""
    rate = recipe.lr * min(1.0, (iteration + 1) / max(1, recipe.warmup))
    if recipe.steps:
        return rate * 0.1 ** sum(iteration >= step for step in recipe.steps)
    return rate * 0.5 * (1 + math.cos(math.pi * iteration / recipe.iterations))


def set_trainable(model: VideoInstanceModel, recipe: Recipe, done: float) -> None:
    """Give gradients to the parts that train at this fraction of the run; the other parts are in evaluation mode."""
    for name, parameter in model.named_parameters():
        waits = name.startswith(PARTS['backbone']) and done < recipe.backbone_from
        parameter.requires_grad_(recipe.trains(name) and not waits)
    if isinstance(model.backbone, MobileNetV2) and recipe.backbone_frozen_blocks:
        for module in (model.backbone.stem, *model.backbone.blocks[:recipe.backbone_frozen_blocks]):
            module.requires_grad_(False)
    for part in model.children():
        part.train(any(parameter.requires_grad for parameter in part.parameters()))


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: VideoInstanceModel, decay: float, iteration: int) -> None:
    """Move ``average``, a copy of the model's state, towards it; young averages move faster."""
    decay = min(decay, (iteration + 1) / (iteration + 10))
    state = model.state_dict()
    floats = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in floats], [state[name] for name in floats], 1 - decay)
    for name in state.keys() - set(floats):      # counters
        average[name].copy_(state[name])
