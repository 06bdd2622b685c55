"""Backbones trained on images alone: ImageNet ResNet-50 and Swin, DINOv2. Training starts from them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.errors import WeightsError
from tar_vis_core.models.backbones import BACKBONES
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.weights.loading import first_names, load_tensors, read_header

# Backbone: a name that tells it, what of its file is no part of ours, what of ours no such file holds.
KINDS = {
    'r50': ('res2.0.conv1.weight', r'(?:stem\.)?(?:fc|linear)\..+', None),
    'swin_l': ('layers.0.blocks.0.attn.qkv.weight', r'(?:norm|head)\..+|.+\.attn_mask', r'norm[0-3]\..+'),
    'vit_adapter_l': ('vit_module.blocks.0.attn.qkv.weight', None, r'(?!vit_module\.).+')}


def backbone_tensors(state: Mapping[str, Tensor], source: Path,
                     ) -> tuple[str, dict[str, Tensor], dict[str, Tensor], list[str], list[tuple[str, str]]]:
    """Read a file without a segmentation head: backbone, tensors, expected names, notes, (name, reason) of the rest.

    Names may lack the prefix ``backbone.``, as files with 'matching_heuristics' do. Tensors get it.
    Raise :class:`WeightsError` if it is no known backbone.
    """
    state = {name.removeprefix('backbone.'): value for name, value in state.items()}
    if 'cls_token' in state:   # DINOv2 by itself
        state = {f'vit_module.{name}': value for name, value in state.items()}
    kind = next((kind for kind, (mark, _, _) in KINDS.items() if mark in state), None)
    if kind is None:
        raise WeightsError(f'{source}: neither a known model nor a backbone {", ".join(KINDS)}; its first names are '
                           f'{first_names(state)}')
    _, extra, _ = KINDS[kind]
    dropped = [(name, 'part of a classifier') for name in state if extra and re.fullmatch(extra, name)]
    state = {f'backbone.{name}': value for name, value in state.items() if not (extra and re.fullmatch(extra, name))}
    with torch.device('meta'):
        expected = {f'backbone.{name}': value for name, value in BACKBONES[kind]().state_dict().items()}
    notes = []
    patches = 'backbone.vit_module.patch_embed.proj.weight'
    if kind == 'vit_adapter_l' and patches in state and state[patches].shape[-2:] != expected[patches].shape[-2:]:
        before, after = state[patches].shape[-1], tuple(expected[patches].shape[-2:])
        state[patches] = F.interpolate(state[patches].float(), after, mode='bilinear', align_corners=True)
        notes.append(f'patches of {before} pixels resized to {after[0]}')
    needed = expected_backbone(kind, expected, state)
    if len(needed) < len(expected):
        fresh = expected.keys() - needed.keys()
        notes.append(f'{len(fresh)} tensors start untrained: {first_names(fresh)}')
    return kind, state, needed, notes, dropped


def is_fresh(kind: str, name: str) -> bool:
    """Return whether files of this backbone alone lack the tensor, because it comes with the segmentation model."""
    fresh = KINDS[kind][2]
    return fresh is not None and re.fullmatch(fresh, name.removeprefix('backbone.')) is not None


def expected_backbone(kind: str, state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the part of a model's ``state`` that a converted backbone with these names must hold."""
    return {name: value for name, value in state.items()
            if name.startswith('backbone.') and (name in names or not is_fresh(kind, name))}


def load_backbone(model: VideoInstanceModel, path: str | Path) -> None:
    """Copy a converted backbone into ``model``; the rest of the model stays as it is.

    Raise :class:`WeightsError` if the file is no backbone, or another one.
    """
    header = read_header(path)
    found, wanted = header.metadata.get('backbone'), model.config.backbone
    if header.kind != 'backbone' or found != wanted:
        what = f'backbone {found}' if header.kind == 'backbone' else header.kind
        raise WeightsError(f'{path} holds a {what}, expected backbone {wanted}')
    expected = expected_backbone(wanted, model.state_dict(), header.shapes)
    model.load_state_dict(load_tensors(path, expected), strict=False)
