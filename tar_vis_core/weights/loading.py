"""Weights at run time: safetensors only, and all checks before the first number is copied."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tar_vis_core.errors import WeightsError, one_line
from tar_vis_core.io.input_files import is_text, problem_of, what_it_is
from tar_vis_core.io.terminal import out_of_memory
from tar_vis_core.io.whole_files import WriteError, replacing
from tar_vis_core.models.class_sets import CLASS_SETS
from tar_vis_core.models.presets import ModelConfig, find_preset
from tar_vis_core.models.video_model import VideoInstanceModel

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightsHeader:
    """The header of a weights file: what is known before its numbers are read."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @property
    def kind(self) -> str:
        """Return 'model', 'adapter' (Synchronizer and Routers alone) or 'backbone'."""
        return self.metadata.get('kind', 'model')

    @property
    def has_routing(self) -> bool:
        """Return whether the file holds a Synchronizer and Routers; official files do not."""
        return any(is_routing(name) for name in self.shapes)

    @property
    def routers(self) -> str:
        """Return the form of the Routers that the file holds, one of ``ROUTERS``."""
        return 'seeing' if 'decoder.routers.price' in self.shapes else 'separate'

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the class names that the file carries, one per line of its metadata; empty if it carries none."""
        return tuple(filter(None, self.metadata.get('class_names', '').split('\n')))


def is_routing(name: str) -> bool:
    """Return whether a model's tensor belongs to the Synchronizer or the Routers: the content of an adapter."""
    return name.startswith(('decoder.synchronizer.', 'decoder.routers.'))


def load_model(preset: str, path: str | Path, adapter: str | Path | None = None) -> VideoInstanceModel:
    """Return the preset's model with the weights of ``path``, in evaluation mode on the CPU.

    The model has routing if the file has it or an ``adapter`` brings it. Class names are the file's if it carries any.
    Raise :class:`WeightsError` as :func:`load_weights` does, and if the adapter was made for other weights. Raise
    ValueError for an unknown preset.
    """
    header = read_header(path)
    config = replace(config_of(header, preset, path), routing=header.has_routing or adapter is not None)
    if adapter is not None:
        _check_adapter(adapter, preset, path, header)
    model = VideoInstanceModel(config)
    load_weights(model, path, adapter)
    return model.eval()


def config_of(header: WeightsHeader, preset: str, path: str | Path) -> ModelConfig:
    """Return the preset's configuration with the routing and the classes of a model's file."""
    config = find_preset(preset)
    if header.kind != 'model':
        raise WeightsError(f'{path} is of kind {header.kind!r}, expected the weights of a whole model')
    made_for = header.metadata.get('preset', preset)
    if made_for != preset:
        raise WeightsError(f'{path}: made for preset {made_for!r}, not for {preset!r}')
    routers = header.routers if header.has_routing else config.routers
    config = replace(config, routing=header.has_routing, routers=routers)
    names = header.class_names
    if len(set(names)) < len(names) or not all(map(str.isprintable, names)):
        raise WeightsError(f'{path}: its class names are damaged: one comes twice, or cannot be printed')
    if names:
        class_set = header.metadata.get('class_set')
        if CLASS_SETS.get(class_set) != names:
            class_set = 'custom'
        config = replace(config, class_set=class_set, class_names=names, classes=len(names))
    return config


def _check_adapter(adapter: str | Path, preset: str, path: str | Path, header: WeightsHeader) -> None:
    """Raise :class:`WeightsError` if ``adapter`` is none, or was not made for the weights at ``path``."""
    of_adapter = read_header(adapter)
    made_for = of_adapter.metadata.get('preset')
    if of_adapter.kind != 'adapter' or not all(is_routing(name) for name in of_adapter.shapes):
        raise WeightsError(f'{adapter} is no adapter but of kind {of_adapter.kind!r}; give it as weights')
    if made_for != preset:
        raise WeightsError(f'{adapter}: an adapter for preset {made_for!r}, not for {preset!r}')
    if header.has_routing:
        raise WeightsError(f'{path} has a Synchronizer and Routers of its own; load it without the adapter {adapter}')
    if of_adapter.metadata.get('base') != content_hash(path):
        raise WeightsError(f'{adapter}: made for other weights than {path} (their contents differ)')


def content_hash(path: str | Path) -> str:
    """Return hexadecimal SHA-256 over name, type, shape and bytes of a safetensors file's tensors, in the names' order.

    Unlike a hash of the file it does not change with metadata or layout.
    """
    digest = hashlib.sha256()
    with reading_weights(path), safe_open(path, framework='pt') as file:
        for name in sorted(file.keys()):
            value = file.get_tensor(name).contiguous()
            digest.update(f'{name} {value.dtype} {tuple(value.shape)}\n'.encode())
            digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_header(path: str | Path) -> WeightsHeader:
    """Return names, shapes and metadata of a safetensors file. Raise :class:`WeightsError` if it cannot be read."""
    with reading_weights(path), open(path, 'rb') as file:
        head = file.read(9)  # safetensors: 8 bytes of length, then JSON
        if head.startswith((b'PK', b'\x80')) and not head.endswith(b'{'):
            raise WeightsError(f'{path} is a pickled checkpoint, expected safetensors; convert it with '
                               "'tar-vis weights convert FILE -o OUT'")
    with reading_weights(path), safe_open(path, framework='pt') as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return WeightsHeader(shapes, file.metadata() or {})


def load_weights(model: nn.Module, path: str | Path, adapter: str | Path | None = None) -> dict[str, str]:
    """Copy the safetensors file at ``path`` and that of its adapter into ``model``. Return the file's metadata.

    Names and shapes must be exactly the model's; stored half precision is widened. Raise :class:`WeightsError`, one
    line, if the file is missing, unreadable, truncated, does not fit, or holds numbers that are not finite. The model
    is unchanged then.
    """
    state = model.state_dict()
    added = {name: value for name, value in state.items() if adapter is not None and is_routing(name)}
    loaded = load_tensors(path, {name: value for name, value in state.items() if name not in added})
    if adapter is not None:
        loaded |= load_tensors(adapter, added)
    model.load_state_dict(loaded)
    return read_header(path).metadata


def save_tensors(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors: first beside the goal, then in one move."""
    path = Path(path)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    try:
        with replacing(path) as half:
            save_file(tensors, half, dict(metadata or {}))
    except (WriteError, SafetensorError) as error:
        raise WeightsError(str(error) if isinstance(error, WriteError)
                           else f'cannot write {path}: {one_line(error)[:200]}') from error


def split_adapter(full: str | Path, base: str | Path, adapter: str | Path) -> None:
    """Write the weights of the file ``full`` as two files: a model without routing, and the adapter with routing."""
    header = read_header(full)
    if header.kind != 'model' or not header.has_routing or 'preset' not in header.metadata:
        raise WeightsError(f'{full} holds no model with a Synchronizer and Routers, so there is nothing to split')
    if len({Path(path).resolve() for path in (full, base, adapter)}) < 3:
        raise WeightsError('the whole, the base and the adapter must be three files')
    state = read_tensors(full)
    save_tensors({name: value for name, value in state.items() if not is_routing(name)}, base, header.metadata)
    save_tensors({name: value for name, value in state.items() if is_routing(name)}, adapter,
                 {'kind': 'adapter', 'preset': header.metadata['preset'], 'base': content_hash(base)})


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, as they are stored."""
    with reading_weights(path), safe_open(path, framework='pt') as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def load_tensors(path: str | Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, which must have the names and shapes of ``expected``, in its types."""
    check_fit(read_header(path).shapes, shapes_of(expected), path)
    return in_expected_types(read_tensors(path), expected, path)


def in_expected_types(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | Path
                      ) -> dict[str, Tensor]:
    """Return ``state`` in the types of ``expected``. Raise :class:`WeightsError` for another kind or for NaN."""
    for name, value in state.items():
        if value.is_floating_point() != expected[name].is_floating_point():
            raise WeightsError(f'{path}: {name} is stored as {value.dtype}, expected {expected[name].dtype}')
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f'{path}: {name} holds numbers that are not finite; the file is damaged')
    return {name: value.to(expected[name].dtype) for name, value in state.items()}


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return shapes by name."""
    return {name: tuple(value.shape) for name, value in state.items()}


def check_fit(found: Shapes, expected: Shapes, path: str | Path) -> None:
    """Raise :class:`WeightsError` if the key sets or any shape differ."""
    problems = []
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing:
        problems.append(f'{len(missing)} missing ({first_names(missing)})')
    if unexpected:
        problems.append(f'{len(unexpected)} unexpected ({first_names(unexpected)})')
    different = [f'{name} is {tuple(found[name])}, expected {tuple(expected[name])}'
                 for name in expected.keys() & found.keys() if tuple(found[name]) != tuple(expected[name])]
    if different:
        problems.append(f'{len(different)} of another shape ({first_names(different)})')
    if problems:
        raise WeightsError(f'{path}: the tensors do not fit the model: {"; ".join(problems)}')


@contextlib.contextmanager
def reading_weights(path: str | Path) -> Iterator[None]:
    """Turn any error while a weights file is read into one clear line."""
    path = Path(path)
    if (problem := problem_of(path)) and 'no such file' in problem:
        raise WeightsError(f'weights file not found: {path}{problem.partition("no such file")[2]}')
    if problem:
        raise WeightsError(f'{path}: {problem}{" of weights" * problem.startswith("is ")}')
    try:
        if known := what_it_is(_head(path)):
            raise WeightsError(f'{path} is no weights file, but {known}')
        yield
    except WeightsError:
        raise
    except Exception as error:  # a damaged or hostile file can raise anything inside a parser
        if out_of_memory(error):
            raise WeightsError(f'memory ran out while {path} was read, which has {path.stat().st_size / 1e6:.0f} MB: '
                               'close other programs, or take a smaller model') from error
        if isinstance(error, OSError):
            raise WeightsError(f'cannot read {path}: {error.strerror or error}') from error
        text = f' but a text of {path.stat().st_size} bytes' if is_text(_head(path)) else ''
        raise WeightsError(f'{path} is damaged, truncated, or no weights file{text}: '
                           f'{one_line(error)[:200]}') from error


def _head(path: Path) -> bytes:
    with path.open('rb') as file:
        return file.read(512)


def first_names(names: Collection[str]) -> str:
    """Return the first three names as text."""
    shown = sorted(names)
    return ', '.join(shown[:3]) + (', ..' if len(shown) > 3 else '')
