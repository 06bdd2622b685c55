"""Official checkpoints of MinVIS, CTVIS, DVIS, DVIS++, DVIS-DAQ and Mask2Former into this project's safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from tar_vis_core.errors import DataError, WeightsError
from tar_vis_core.io.json_files import read_text
from tar_vis_core.io.paths import user_path
from tar_vis_core.models.backbones.swin import relative_position_index
from tar_vis_core.models.class_sets import CLASS_SETS
from tar_vis_core.models.presets import find_preset, preset_of
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.weights.backbone import backbone_tensors
from tar_vis_core.weights.loading import check_fit, first_names, in_expected_types, save_tensors, shapes_of
from tar_vis_core.weights.unpickle import read_checkpoint

# Official name -> ours; the first pattern that matches a whole name says what it becomes.
NAMES = [(re.compile(pattern), ours) for pattern, ours in (
    (r'backbone\.(.+)', r'backbone.\1'),
    (r'sem_seg_head\.pixel_decoder\.transformer\.level_embed', r'pixel_decoder.level_embed'),
    (r'sem_seg_head\.pixel_decoder\.transformer\.encoder\.(layers\..+)', r'pixel_decoder.\1'),
    (r'sem_seg_head\.pixel_decoder\.adapter_1\.norm\.(.+)', r'pixel_decoder.lateral.1.\1'),
    (r'sem_seg_head\.pixel_decoder\.adapter_1\.(.+)', r'pixel_decoder.lateral.0.\1'),
    (r'sem_seg_head\.pixel_decoder\.layer_1\.norm\.(.+)', r'pixel_decoder.output.1.\1'),
    (r'sem_seg_head\.pixel_decoder\.layer_1\.(.+)', r'pixel_decoder.output.0.\1'),
    (r'sem_seg_head\.pixel_decoder\.((?:input_proj|mask_features)\..+)', r'pixel_decoder.\1'),
    (r'sem_seg_head\.predictor\.(query_feat|query_embed|level_embed)\.weight', r'decoder.\1'),
    (r'sem_seg_head\.predictor\.((?:decoder_norm|class_embed|mask_embed|reid_embed)\..+)', r'decoder.\1'),
    (r'tracker\.((?:decoder_norm|class_embed|mask_embed|ref_proj|mask_feature_proj|pos_embed)\..+)', r'tracker.\1'),
    (r'tracker\.(new_ins_embeds|bg_slots)\.weight', r'tracker.\1'),
    *((rf'tracker\.slot_{pattern}', rf'tracker.slot_layers.\1.{part}') for pattern, part in (
        (r'cross_attention_layers\.(\d+)\.multihead_attn\.(.+)', r'cross_attn.\2'),
        (r'cross_attention_layers\.(\d+)\.slot_attn\.norm_inputs\.(.+)', r'input_norm.\2'),
        (r'cross_attention_layers\.(\d+)\.slot_attn\.project_k\.(.+)', r'project_inputs.\2'),
        (r'cross_attention_layers\.(\d+)\.slot_attn\.project_q\.0\.(.+)', r'place_norm.\2'),
        (r'cross_attention_layers\.(\d+)\.slot_attn\.project_q\.1\.(.+)', r'project_places.\2'),
        (r'cross_attention_layers\.(\d+)\.norm\.(.+)', r'slot_norm.\2'),
        (r'ffn_layers\.(\d+)\.(linear[12]\..+)', r'\2'),
        (r'ffn_layers\.(\d+)\.norm\.(.+)', r'ffn_norm.\2'))),
    *((rf'{theirs}\.transformer_{pattern}', rf'{ours}.layers.\1.{part}')
      for theirs, ours in ((r'sem_seg_head\.predictor', 'decoder'), ('tracker', 'tracker'))
      for pattern, part in (
          (r'cross_attention_layers\.(\d+)\.multihead_attn\.(.+)', r'cross_attn.\2'),
          (r'cross_attention_layers\.(\d+)\.norm\.(.+)', r'cross_norm.\2'),
          (r'self_attention_layers\.(\d+)\.self_attn\.(.+)', r'self_attn.\2'),
          (r'self_attention_layers\.(\d+)\.norm\.(.+)', r'self_norm.\2'),
          (r'ffn_layers\.(\d+)\.(linear[12]\..+)', r'\2'),
          (r'ffn_layers\.(\d+)\.norm\.(.+)', r'ffn_norm.\2'))))]

# Part of official files, but no weight of a network.
NOT_WEIGHTS = [(re.compile(pattern), reason) for pattern, reason in (
    (r'(?:daq_)?criterion\..+', 'weights of the training loss'),
    (r'pixel_mean|pixel_std', "constants of the input, which are the preset's"),
    (r'.*\.relative_position_index', 'derived from the window size, and equal to what this model computes'))]


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion: what it found and wrote."""

    path: Path
    preset: str                             # '' for a backbone alone, which any preset on it may start from
    backbone: str
    class_set: str                          # '' for a backbone alone
    classes: int
    notes: tuple[str, ...]                  # what was decided, and why
    dropped: tuple[tuple[str, str], ...]    # name, reason
    tensors: int
    parameters: int


def convert_official(source: str | Path, destination: str | Path, preset: str | None = None,
                     classes: str | Path | None = None) -> Conversion:
    """Write an official ``.pth`` or ``.pkl`` checkpoint as safetensors for the preset that its tensors fit.

    ``preset`` insists on one. ``classes`` is a class set or a text file with one name a line; without it the number
    of classes decides, and between data sets of equal number the source's name. A file of a backbone alone becomes
    one of kind 'backbone'. Raise :class:`WeightsError` with one line if the file cannot be read, is of no known
    model or does not fit; an existing ``destination`` stays as it was. Raise ValueError for an unknown preset.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists() and source.exists() and destination.samefile(source):
        raise WeightsError(f'{destination} is the source itself; give another file to write')
    checkpoint = read_checkpoint(source)
    state, dropped = without_extras(with_later_names(checkpoint.tensors), source)
    dropped += [(name, 'beside the model: state of the training, notes') for name in checkpoint.beside]
    if any(name.startswith('sem_seg_head.') for name in state):
        found = recognise(state, source, preset)
        config = find_preset(found)
        backbone = config.backbone
        state = rename(state, source)
        class_set, names, note = choose_classes(state, config.class_names, classes, source)
        with torch.device('meta'):
            model = VideoInstanceModel(replace(config, routing=False, class_names=names, classes=len(names)))
        expected, notes = model.state_dict(), (note,)
        metadata = {'kind': 'model', 'preset': found, 'class_set': class_set, 'class_names': '\n'.join(names)}
    else:
        backbone, state, expected, notes, extras = backbone_tensors(state, source)
        if preset is not None and find_preset(preset).backbone != backbone:
            raise WeightsError(f'{source} is a backbone {backbone}, but preset {preset!r} is on '
                               f'{find_preset(preset).backbone}')
        dropped += extras
        found, class_set, names = '', '', ()
        metadata = {'kind': 'backbone', 'backbone': backbone}
    check_fit(shapes_of(state), shapes_of(expected), source)
    save_tensors(in_expected_types(state, expected, source), destination, {**metadata, 'converted_from': source.name})
    return Conversion(destination, found, backbone, class_set, len(names), tuple(notes), tuple(dropped), len(state),
                      sum(value.numel() for value in state.values()))


def with_later_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return names of old files in their later form (module version 2 of Mask2Former); later names stay."""
    wrapped = bool(state) and all(name.startswith('module.') for name in state)
    modern = {}
    for name, value in state.items():
        name = name.removeprefix('module.') if wrapped else name
        name = re.sub(r'^sem_seg_head\.(?!pixel_decoder\.|predictor\.)', 'sem_seg_head.pixel_decoder.', name)
        name = re.sub(r'^(sem_seg_head\.predictor\.)static_query\.', r'\1query_feat.', name)
        modern[name] = value
    return modern


def without_extras(state: Mapping[str, Tensor], source: Path) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Return the tensors that are weights, and (name, reason) of the others."""
    kept, dropped = {}, []
    for name, value in state.items():
        reason = next((reason for pattern, reason in NOT_WEIGHTS if pattern.fullmatch(name)), None)
        if reason is None:
            kept[name] = value
            continue
        if name.endswith('relative_position_index'):
            square = value.dim() == 2 and value.shape[0] == value.shape[1]
            index = relative_position_index(isqrt(len(value)) if square else 0)
            if not torch.equal(value.long(), index):
                raise WeightsError(f'{source}: {name} is not the index of a square window, as this model computes it')
        dropped.append((name, reason))
    return kept, dropped


def recognise(state: Mapping[str, Tensor], source: Path, preset: str | None = None) -> str:
    """Return the preset that official names belong to. Raise WeightsError if that is not the given ``preset``."""
    family = 'minvis'
    if any(name.startswith('refiner.') for name in state):
        raise WeightsError(f'{source} is an offline checkpoint (it has a refiner, which reads a whole video at once); '
                           'expected an online one of the same family')
    if any(name.startswith('tracker.') for name in state):
        family = ('dvispp' if any(name.startswith('tracker.ref_proj.') for name in state) else
                  'dvis_daq' if 'tracker.bg_slots.weight' in state else 'dvis')
    elif any(name.startswith('sem_seg_head.predictor.reid_embed.') for name in state):
        family = 'ctvis'
    marks = {'r50': 'backbone.res2.', 'swin_l': 'backbone.layers.', 'vit_adapter_l': 'backbone.vit_module.'}
    backbone = next((backbone for backbone, mark in marks.items() if any(n.startswith(mark) for n in state)), None)
    if backbone is None:
        raise WeightsError(f'{source}: its backbone is none of {", ".join(marks)}')
    if preset is not None:
        config = find_preset(preset)
        if (config.family, config.backbone) != (family, backbone):
            raise WeightsError(f'{source} is a checkpoint of {family} on {backbone}, not of preset {preset!r}')
        return preset
    try:
        return preset_of(family, backbone)
    except ValueError as error:
        raise WeightsError(f'{source}: {error}') from error


def rename(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Rename official names to ours. Raise :class:`WeightsError` for an unknown name."""
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        pattern, ours = next(((p, ours) for p, ours in NAMES if p.fullmatch(name)), (None, ''))
        if pattern is None:
            unknown.append(name)
        else:
            renamed[pattern.sub(ours, name)] = value
    if unknown:
        raise WeightsError(f'{source}: {len(unknown)} of {len(state)} tensors have names that no known model has '
                           f'({first_names(unknown)})')
    return renamed


def choose_classes(state: Mapping[str, Tensor], default: tuple[str, ...], asked: str | Path | None, source: Path,
                   ) -> tuple[str, tuple[str, ...], str]:
    """Return the class set ('custom' for one without a name), its class names, and a line that says why these."""
    head = state.get('decoder.class_embed.bias')
    count = len(default) if head is None else len(head) - 1   # without no-object
    if asked is not None:
        names = CLASS_SETS.get(str(asked)) or read_class_names(asked)
        if len(names) != count:
            raise WeightsError(f'{source}: the checkpoint has {count} classes, but {asked} has {len(names)}')
        name = next((name for name, known in CLASS_SETS.items() if known == names), 'custom')
        return name, names, f'classes: {name}, as asked'
    fitting = [name for name, known in CLASS_SETS.items() if len(known) == count and name != 'crowd']
    if not fitting:
        known = ', '.join(f'{name} {len(names)}' for name, names in CLASS_SETS.items() if name != 'crowd')
        raise WeightsError(f'{source}: the checkpoint has {count} classes, which no known set has ({known}); name them '
                           'with --classes FILE, one a line')
    name, why = fitting[0], f'the checkpoint has {count}'
    if len(fitting) > 1:
        why = f'assumed, for {" and ".join(fitting)} have {count} classes each; --classes takes another'
        for candidate in fitting:   # by the year in the file's name
            if re.search(rf'(?:vis|yt)\D{{0,3}}(?:20)?{candidate[-2:]}', source.name.lower()):
                name, why = candidate, "the file's name says so"
    return name, CLASS_SETS[name], f'classes: {name}; {why}'


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Return class names of a text file, one a line."""
    try:
        names = tuple(filter(None, map(str.strip, read_text(user_path(path)).splitlines())))
    except (OSError, DataError) as error:
        raise WeightsError(f'classes: {path} is neither one of {", ".join(CLASS_SETS)} nor a readable text file '
                           f'({error})') from error
    if len(set(names)) != len(names):
        raise WeightsError(f'classes: {path} names a class twice')
    return names
