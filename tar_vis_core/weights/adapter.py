"""TAR adapters: Synchronizer and Routers by themselves, beside base weights that stay as they are."""

from __future__ import annotations

from pathlib import Path

import torch

from tar_vis_core.errors import WeightsError
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.weights.loading import (
    content_hash,
    is_routing,
    load_tensors,
    read_header,
    read_tensors,
    save_tensors,
    some,
)


def save_adapter(model: VideoInstanceModel, path: str | Path, base: str | Path) -> None:
    """Write the Synchronizer and Routers of a model that was trained on the frozen weights in the file ``base``.

    Raise :class:`WeightsError` if the rest of the model differs from ``base``, because an adapter would not fit then.
    """
    preset = read_header(base).metadata.get('preset')
    if preset is None:
        raise WeightsError(f'{base} does not say for which preset it is')
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    frozen = load_tensors(base, {name: value for name, value in state.items() if not is_routing(name)})
    changed = [name for name, value in frozen.items() if not torch.equal(value, state[name])]
    if changed:
        raise WeightsError(f'{len(changed)} tensors differ from {base} ({some(changed)}), so they were trained too; '
                           'save the whole model instead')
    _write({name: value for name, value in state.items() if is_routing(name)}, path, preset, base)


def split_adapter(full: str | Path, base: str | Path, adapter: str | Path) -> None:
    """Write the weights of the file ``full`` as two files: a model without routing, and the adapter with routing."""
    header = read_header(full)
    if header.kind != 'model' or not header.has_routing or 'preset' not in header.metadata:
        raise WeightsError(f'{full} holds no model with a Synchronizer and Routers, so there is nothing to split')
    if len({Path(path).resolve() for path in (full, base, adapter)}) < 3:
        raise WeightsError('the whole, the base and the adapter must be three files')
    state = read_tensors(full)
    save_tensors({name: value for name, value in state.items() if not is_routing(name)}, base, header.metadata)
    _write({name: value for name, value in state.items() if is_routing(name)}, adapter, header.metadata['preset'], base)


def _write(state: dict[str, torch.Tensor], path: str | Path, preset: str, base: str | Path) -> None:
    save_tensors(state, path, {'kind': 'adapter', 'preset': preset, 'base': content_hash(base)})
