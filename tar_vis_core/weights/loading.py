"""Weights at run time: safetensors only, and all checks before the first number is copied."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tar_vis_core.errors import WeightsError
from tar_vis_core.models.presets import find_preset
from tar_vis_core.models.video_model import VideoInstanceModel

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightsHeader:
    """What a weights file says of itself before its numbers are read."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @property
    def has_routing(self) -> bool:
        """Whether the file holds a Synchronizer and Routers; official files do not."""
        return any(name.startswith('decoder.routers.') for name in self.shapes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names that the file carries, one a line of its metadata; empty where it carries none."""
        return tuple(filter(None, self.metadata.get('class_names', '').split('\n')))


def load_model(preset: str, path: str | Path) -> VideoInstanceModel:
    """The preset's model with the weights of ``path``, in evaluation mode on the CPU.

    Routing is there where the file has it, and class names are the file's where it carries some.
    Raises :class:`WeightsError` as :func:`load_weights` does, ValueError for an unknown preset.
    """
    config = find_preset(preset)
    header = read_header(path)
    made_for = header.metadata.get('preset', preset)
    if made_for != preset:
        raise WeightsError(f'{path}: made for preset {made_for!r}, not for {preset!r}')
    config = replace(config, routing=header.has_routing)
    if header.class_names and not config.semantic_classes:
        config = replace(config, class_names=header.class_names, classes=len(header.class_names))
    model = VideoInstanceModel(config)
    load_weights(model, path)
    return model.eval()


def read_header(path: str | Path) -> WeightsHeader:
    """Names, shapes and metadata of a safetensors file; :class:`WeightsError` where it cannot be read."""
    with reading(path), open(path, 'rb') as file:
        head = file.read(9)  # safetensors: 8 bytes of length, then JSON
        if head.startswith((b'PK', b'\x80')) and not head.endswith(b'{'):
            raise WeightsError(f'{path} is a pickled checkpoint, expected safetensors; convert it with '
                               "'tar-vis weights convert SRC DST'")
    with reading(path), safe_open(path, framework='pt') as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return WeightsHeader(shapes, file.metadata() or {})


def load_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Copies the safetensors file at ``path`` into ``model`` and gives the file's metadata.

    Names and shapes must be exactly the model's; stored half precision is widened. Raises :class:`WeightsError`, one
    line, where the file is missing, unreadable, truncated, does not fit, or holds numbers that are not finite; the
    model is unchanged then.
    """
    state = model.state_dict()
    header = read_header(path)
    check_fit(header.shapes, {name: tuple(value.shape) for name, value in state.items()}, path)
    with reading(path), safe_open(path, framework='pt') as file:
        loaded = {name: file.get_tensor(name) for name in state}
    for name, value in loaded.items():
        if value.is_floating_point() != state[name].is_floating_point():
            raise WeightsError(f'{path}: {name} is stored as {value.dtype}, expected {state[name].dtype}')
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f'{path}: {name} holds numbers that are not finite; the file is damaged')
    model.load_state_dict(loaded)
    return header.metadata


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
    """Writes a model's state as safetensors, floating point as ``dtype``; an interrupted write leaves no file."""
    state = {name: value.to(dtype) if value.is_floating_point() else value
             for name, value in model.state_dict().items()}
    save_tensors(state, path, metadata)


def save_tensors(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes named tensors as safetensors, beside the goal first and then in one move."""
    path = Path(path)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    except OSError as error:
        raise WeightsError(f'cannot write {path}: {error.strerror or error}') from error
    os.close(handle)
    try:
        save_file(tensors, temporary, dict(metadata or {}))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f'cannot write {path}: {_one_line(error)}') from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def check_fit(found: Shapes, expected: Shapes, path: str | Path) -> None:
    """Raises :class:`WeightsError` where the key sets or any shape differ."""
    problems = []
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing:
        problems.append(f'{len(missing)} missing ({_some(missing)})')
    if unexpected:
        problems.append(f'{len(unexpected)} unexpected ({_some(unexpected)})')
    different = [f'{name} is {tuple(found[name])}, expected {tuple(expected[name])}'
                 for name in expected.keys() & found.keys() if tuple(found[name]) != tuple(expected[name])]
    if different:
        problems.append(f'{len(different)} of another shape ({_some(different)})')
    if problems:
        raise WeightsError(f'{path}: the tensors do not fit the model: {"; ".join(problems)}')


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turns whatever goes wrong while a weights file is read into one clear line."""
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f'{path} is a folder, expected a weights file')
    if not path.exists():
        raise WeightsError(f'weights file not found: {path}')
    try:
        yield
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f'cannot read {path}: {error.strerror or error}') from error
    except Exception as error:  # a damaged or hostile file can raise anything inside a parser
        raise WeightsError(f'{path} is damaged, truncated, or no weights file: {_one_line(error)}') from error


def _one_line(error: Exception) -> str:
    return (' '.join(str(error).split()) or type(error).__name__)[:200]


def _some(names: set[str] | list[str]) -> str:
    shown = sorted(names)
    return ', '.join(shown[:3]) + (', ..' if len(shown) > 3 else '')
