"""Official MinVIS checkpoints into this project's safetensors.

A checkpoint is a pickle, and a pickle is a program. Nothing of it runs here: tensors, arrays and plain containers
are rebuilt, every other object that a file names is replaced by an inert stand-in or refused.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tar_vis_core.errors import WeightsError
from tar_vis_core.models.presets import find_preset
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.weights.loading import check_fit, reading, save_tensors

# Official name -> ours; the first pattern that matches a whole name says what it becomes.
NAMES = tuple((re.compile(pattern), ours) for pattern, ours in (
    (r'backbone\.(.+)', r'backbone.\1'),
    (r'sem_seg_head\.pixel_decoder\.transformer\.level_embed', r'pixel_decoder.level_embed'),
    (r'sem_seg_head\.pixel_decoder\.transformer\.encoder\.(layers\..+)', r'pixel_decoder.\1'),
    (r'sem_seg_head\.pixel_decoder\.adapter_1\.norm\.(.+)', r'pixel_decoder.lateral.1.\1'),
    (r'sem_seg_head\.pixel_decoder\.adapter_1\.(.+)', r'pixel_decoder.lateral.0.\1'),
    (r'sem_seg_head\.pixel_decoder\.layer_1\.norm\.(.+)', r'pixel_decoder.output.1.\1'),
    (r'sem_seg_head\.pixel_decoder\.layer_1\.(.+)', r'pixel_decoder.output.0.\1'),
    (r'sem_seg_head\.pixel_decoder\.((?:input_proj|mask_features)\..+)', r'pixel_decoder.\1'),
    (r'sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.(.+)',
     r'decoder.layers.\1.cross_attn.\2'),
    (r'sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.norm\.(.+)',
     r'decoder.layers.\1.cross_norm.\2'),
    (r'sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.(.+)',
     r'decoder.layers.\1.self_attn.\2'),
    (r'sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.norm\.(.+)',
     r'decoder.layers.\1.self_norm.\2'),
    (r'sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.norm\.(.+)', r'decoder.layers.\1.ffn_norm.\2'),
    (r'sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.(linear[12]\..+)', r'decoder.layers.\1.\2'),
    (r'sem_seg_head\.predictor\.(query_feat|query_embed|level_embed)\.weight', r'decoder.\1'),
    (r'sem_seg_head\.predictor\.((?:decoder_norm|class_embed|mask_embed)\..+)', r'decoder.\1'),
))

# Part of official files, not of a network: loss weights and constants of the input side.
NOT_WEIGHTS = re.compile(r'criterion\..+|pixel_mean|pixel_std')


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote."""

    path: Path
    tensors: int
    parameters: int
    classes: int


def convert_official(source: str | Path, destination: str | Path, preset: str = 'minvis_r50',
                     class_names: tuple[str, ...] = ()) -> Conversion:
    """Writes an official ``.pth`` or ``.pkl`` checkpoint as safetensors that fit ``preset`` without routing.

    ``class_names`` replace the preset's in the written file; they are needed where the checkpoint has another number
    of classes than the preset (25 for OVIS). Raises :class:`WeightsError` with one line where the file cannot be
    read or does not fit, and leaves an existing ``destination`` alone then.
    """
    config = find_preset(preset)
    state = rename(modernize(read_checkpoint(source)), source)
    rows = state['decoder.class_embed.bias'].shape[0] if 'decoder.class_embed.bias' in state else config.classes + 1
    names = class_names or config.class_names
    if rows - 1 != len(names):
        raise WeightsError(f'{source}: the checkpoint has {rows - 1} classes, but {len(names)} class names are known; '
                           f'give the {rows - 1} names of its data set')
    config = replace(config, routing=False, classes=rows - 1, class_names=names)
    with torch.device('meta'):
        model = VideoInstanceModel(config)
    check_fit({name: tuple(value.shape) for name, value in state.items()},
              {name: tuple(value.shape) for name, value in model.state_dict().items()}, source)
    metadata = {'preset': preset, 'class_names': '\n'.join(names), 'converted_from': Path(source).name}
    save_tensors({name: value.float() for name, value in state.items()}, destination, metadata)
    return Conversion(Path(destination), len(state), sum(value.numel() for value in state.values()), rows - 1)


def rename(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Official names to ours; what is no weight is left out, an unknown name is a :class:`WeightsError`."""
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        if NOT_WEIGHTS.fullmatch(name):
            continue
        for pattern, ours in NAMES:
            if pattern.fullmatch(name):
                renamed[pattern.sub(ours, name)] = value
                break
        else:
            unknown.append(name)
    if unknown:
        shown = ', '.join(unknown[:3]) + (', ..' if len(unknown) > 3 else '')
        raise WeightsError(f'{source}: not a MinVIS checkpoint: {len(unknown)} of {len(state)} tensors have unknown '
                           f'names ({shown})')
    return renamed


def modernize(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of old files in their later form; names that are in it already stay (module version 2 of Mask2Former)."""
    wrapped = bool(state) and all(name.startswith('module.') for name in state)
    modern = {}
    for name, value in state.items():
        name = name.removeprefix('module.') if wrapped else name
        name = re.sub(r'^sem_seg_head\.(?!pixel_decoder\.|predictor\.)', 'sem_seg_head.pixel_decoder.', name)
        name = re.sub(r'^(sem_seg_head\.predictor\.)static_query\.', r'\1query_feat.', name)
        modern[name] = value
    return modern


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` (torch) or ``.pkl`` (numpy) checkpoint under the names that the file gives them.

    Raises :class:`WeightsError`; no code of the file runs.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        raise WeightsError(f'{path} is safetensors already; expected an official .pth or .pkl checkpoint')
    with reading(path):
        content = _read_torch(path) if _is_torch(path) else _read_pickle(path)
    if isinstance(content, Mapping) and isinstance(content.get('model'), Mapping):
        content = content['model']
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f'{path}: expected a mapping of names to tensors, found {type(content).__name__}')
    if 'blobs' in content:
        raise WeightsError(f'{path}: Caffe2 files are not supported; use a checkpoint of the MinVIS model zoo')
    return {str(name): _as_tensor(value, name, path) for name, value in content.items()}


def _as_tensor(value: Any, name: object, path: Path) -> Tensor:
    if isinstance(value, Tensor) and not value.is_sparse and not value.is_quantized:
        return value.detach().contiguous()
    if isinstance(value, np.ndarray) and value.dtype.kind in 'fiu':
        return torch.from_numpy(np.ascontiguousarray(value))
    raise WeightsError(f'{path}: {name!s} is no tensor but {type(value).__name__}')


def _is_torch(path: Path) -> bool:
    return zipfile.is_zipfile(path) or path.suffix != '.pkl'


class _Inert:
    """Stands in for a class that a checkpoint names (schedulers, hooks); takes all arguments and keeps none."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _read_torch(path: Path) -> Any:
    stand_ins: list[Any] = []
    if zipfile.is_zipfile(path):  # torch's older format cannot be asked what it names
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(_Inert, name) for name in unknown]
    context = torch.serialization.safe_globals(stand_ins) if stand_ins else contextlib.nullcontext()
    with context:
        try:
            return torch.load(path, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError as error:  # torch's own text advises to run the file's code
            detail = re.search(r'unsupported (global: )?[^\n,]+', str(error), re.IGNORECASE)
            raise pickle.UnpicklingError(detail[0].rstrip('.') if detail else 'unreadable pickle') from error


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers; refuses every other name."""

    ALLOWED = frozenset((
        ('collections', 'OrderedDict'), ('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode'),
        ('numpy.core.multiarray', '_reconstruct'), ('numpy._core.multiarray', '_reconstruct'),
        ('numpy.core.multiarray', 'scalar'), ('numpy._core.multiarray', 'scalar')))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f'the file names {module}.{name}, which no weights file needs')
        if (module, name) == ('collections', 'OrderedDict'):
            return OrderedDict
        return super().find_class(module.replace('numpy.core', 'numpy._core'), name)


def _read_pickle(path: Path) -> Any:
    with path.open('rb') as file:
        return _ArrayUnpickler(file, encoding='latin1').load()
