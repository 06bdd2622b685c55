"""Check that a weights file is whole and fits its own header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tar_vis_core.errors import WeightsError
from tar_vis_core.io.paths import user_path
from tar_vis_core.models.backbones import BACKBONES
from tar_vis_core.models.presets import find_preset
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.weights.backbone import KINDS, expected_backbone
from tar_vis_core.weights.loading import config_of, is_routing, load_tensors, read_header
from tar_vis_core.weights.manifest import KnownWeights, manifest, sha256_of


def verify_entry(entry: KnownWeights, path: Path) -> str:
    """Compare a file with its manifest entry. Return a line about it; raise :class:`WeightsError` if it differs."""
    digest, size = sha256_of(path), path.stat().st_size
    if entry.sha256 is not None and digest != entry.sha256:
        raise WeightsError(f'{path} has sha256 {digest}, expected {entry.sha256}; '
                           + ('install the package' if entry.file else 'delete it and get it') + ' again')
    known = 'as in the manifest' if entry.sha256 else 'the manifest knows none to compare with'
    return f'{entry.name}: {size} bytes, sha256 {digest}, {known}'


def verify_file(path: Path) -> str:
    """Check header, preset, names, shapes and numbers of a safetensors file. Return a line that says what it is."""
    header = read_header(path)
    preset = header.metadata.get('preset', '')
    with torch.device('meta'):
        if header.kind == 'backbone':
            kind = header.metadata.get('backbone', '')
            if kind not in KINDS:
                raise WeightsError(f'{path}: a backbone {kind!r}, expected one of {", ".join(KINDS)}')
            state = {f'backbone.{name}': value for name, value in BACKBONES[kind]().state_dict().items()}
            expected, what = expected_backbone(kind, state, header.shapes), f'backbone {kind}'
        elif not preset:
            raise WeightsError(f'{path} does not say for which preset it is')
        elif header.kind == 'adapter':
            state = VideoInstanceModel(replace(find_preset(preset), routing=True)).state_dict()
            expected = {name: value for name, value in state.items() if is_routing(name)}
            what = f'adapter for {preset} on weights with content {header.metadata.get("base")}'
        else:
            config = config_of(header, preset, path)
            expected = VideoInstanceModel(config).state_dict()
            what = f'{preset}, {config.class_set}, {"with" if config.routing else "without"} Synchronizer and Routers'
    tensors = load_tensors(path, expected)
    return f'{path}: {what}; {len(tensors)} tensors, as expected; sha256 {sha256_of(path)}'


def verify(target: str | None = None) -> list[str]:
    """Verify a file, a name of the manifest, or all its files that are here. Return lines for a terminal."""
    target = target and str(user_path(target))
    if target is None:
        files = [(entry, entry.path) for entry in manifest() if entry.state != 'absent']
    else:
        files = [(entry, entry.path) for entry in manifest() if entry.name == target]
        if not files and Path(target).is_file():   # a known file in any folder
            path = Path(target)
            files = [(entry, path) for entry in manifest() if entry.path and entry.path.name == path.name]
        if not files:
            return [verify_file(Path(target))]
        if files[0][1] is None or not files[0][1].is_file():
            raise WeightsError(f"{target} is not here; 'tar-vis weights get {target}' fetches it")
    lines = []
    for entry, path in files:
        lines.append(verify_entry(entry, path))
        if path.suffix == '.safetensors':
            lines.append(verify_file(path))
    return lines
