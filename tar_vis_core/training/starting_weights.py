"""The model that a run starts with: fresh, on a trained backbone, or from whole weights with other classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tar_vis_core.models.backbones import MobileNetV2, NanoDet
from tar_vis_core.models.class_sets import CLASS_SETS
from tar_vis_core.models.presets import ModelConfig, find_preset
from tar_vis_core.models.seeing_routers import SeeingRouters
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.training.recipe import PARTS, Recipe, RecipeError
from tar_vis_core.weights.backbone import load_backbone
from tar_vis_core.weights.loading import (
    WeightsHeader,
    check_fit,
    in_expected_types,
    read_header,
    read_tensors,
    shapes_of,
)
from tar_vis_core.weights.official import read_class_names

HEADS = 'decoder.class_embed.', 'tracker.class_embed.'
# Parts that a file may lack as a whole, for earlier weights do not have them.
OPTIONAL = 'synchronizer', 'routers', 'tracker', 'box_masks'


def start_model(recipe: Recipe, init: Path | None = None, backbone: Path | None = None,
                ) -> tuple[VideoInstanceModel, list[str]]:
    """Return the model, and lines that say which parts start fresh although there is an ``init`` file.

    ``init`` is a safetensors file of a whole model or of a backbone; ``backbone`` a DeepLabV3 file for a MobileNetV2.
    The model has routing if that trains, or if ``init`` has it. Raise WeightsError if a file does not fit.
    """
    header = read_header(init) if init else None
    routing = (recipe.clip > 1 and any(recipe.trains(PARTS[part]) for part in ('synchronizer', 'routers'))) or (
        header is not None and header.has_routing)
    torch.manual_seed(recipe.seed)
    model = VideoInstanceModel(replace(with_classes(find_preset(recipe.preset), recipe.classes), routing=routing))
    if backbone:
        if isinstance(model.backbone, NanoDet):
            model.backbone.load_published(backbone)
        elif isinstance(model.backbone, MobileNetV2):
            model.backbone.load_deeplab(backbone)
        else:
            raise RecipeError(f'--backbone is for MobileNetV2 and NanoDet; give {recipe.preset} a converted backbone '
                              'with --init')
    notes = []
    if header is not None and header.kind == 'backbone':
        load_backbone(model, init)
        notes = [f'{init}: a backbone; the rest of the model starts afresh']
    elif header is not None:
        notes = load_what_fits(model, init, header)
    if isinstance(model.decoder.routers, SeeingRouters):
        model.decoder.routers.price.fill_(recipe.price)
    return model, notes


def with_classes(config: ModelConfig, classes: str) -> ModelConfig:
    """Return the configuration with the classes of a set or of a text file; '' keeps its own."""
    if not classes:
        return config
    names = CLASS_SETS.get(classes) or read_class_names(classes)
    name = next((name for name, known in CLASS_SETS.items() if known == names), 'custom')
    return replace(config, class_set=name, class_names=names, classes=len(names))


def load_what_fits(model: VideoInstanceModel, path: Path, header: WeightsHeader) -> list[str]:
    """Copy weights of a whole model; class heads of other classes and optional parts that the file lacks stay fresh.

    Return a line for each of these. Raises WeightsError for any other difference; the model is unchanged then.
    """
    state, notes, fresh, other = model.state_dict(), [], set(), set()
    for part in OPTIONAL:
        own = {name for name in state if name.startswith(PARTS[part])}
        if own and not own & header.shapes.keys():
            fresh |= own
            other |= {name for name in header.shapes if name.startswith(PARTS[part])}
            notes.append(f'{path}: without {part}; starts afresh')
    names, known = model.config.class_names, header.class_names
    heads = [name for name in state if name.startswith(HEADS) and name in header.shapes]
    differ = known != names if known else any(header.shapes[name] != tuple(state[name].shape) for name in heads)
    if differ:
        fresh |= set(heads)
        before = f'{len(known)}' if known else f'{header.shapes[heads[0]][0] - 1}'
        notes.append(f'{path}: made for {header.metadata.get("class_set", "other")} ({before} classes), not for '
                     f'{model.config.class_set} ({len(names)}); the class heads start afresh')
    expected = {name: value for name, value in state.items() if name not in fresh}
    dropped = set(heads) & fresh | other
    check_fit({k: v for k, v in header.shapes.items() if k not in dropped}, shapes_of(expected), path)
    loaded = in_expected_types({k: v for k, v in read_tensors(path).items() if k not in dropped}, expected, path)
    model.load_state_dict(loaded, strict=False)
    return notes
