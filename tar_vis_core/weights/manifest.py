"""The list of known weights: ``manifest.json`` names each file, its licence, its source and its content.

Some come with the package. The others are official files that the user fetches from their publishers.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from tar_vis_core.errors import WeightsError, near
from tar_vis_core.io.paths import user_path
from tar_vis_core.models.presets import find_preset

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class KnownWeights:
    """One entry of the manifest. It is packaged if it has a ``file``, fetched if it has a ``url``, else got by hand."""

    name: str
    preset: str                 # '' for a backbone alone, which training starts from
    class_set: str
    licence: str                # of the weights; SPDX identifier if there is one
    source: str                 # how they came about, or where they are published
    file: str = ''              # relative to this package's folder
    url: str = ''
    sha256: str | None = None   # None: nobody told us yet
    size: int | None = None     # bytes

    @property
    def path(self) -> Path | None:
        """Return where the file lies or would lie, None if only its publisher's folder is known."""
        if self.file:
            return FOLDER / self.file
        return cache_folder() / self.url.rpartition('/')[2] if self.url else None

    @property
    def state(self) -> str:
        """Return 'packaged', 'fetched' or 'absent'."""
        if self.path is None or not self.path.is_file():
            return 'absent'
        return 'packaged' if self.file else 'fetched'

    @property
    def non_commercial(self) -> bool:
        """Return whether the licence allows no commercial use."""
        return '-NC' in self.licence


def manifest() -> list[KnownWeights]:
    """Return all known weights; the first packaged entry of a preset is its default."""
    return [KnownWeights(**entry) for entry in json.loads((FOLDER / 'manifest.json').read_text())['weights']]


def find_weights(name: str) -> KnownWeights:
    """Return the manifest's entry of that name. Raise :class:`WeightsError` with the nearest name if there is none."""
    known = {entry.name: entry for entry in manifest()}
    if name not in known:
        raise WeightsError(f"no weights are known as {name!r}{near(name, known)}; 'tar-vis weights list' names all")
    return known[name]


def cache_folder() -> Path:
    """Return the folder of fetched files: ``$TAR_VIS_WEIGHTS``, or ``~/.cache/tar_vis/weights``."""
    return user_path(os.environ.get('TAR_VIS_WEIGHTS') or '~/.cache/tar_vis/weights')


def packaged_weights(preset: str) -> Path:
    """Return the path of a preset's packaged weights.

    Raise :class:`WeightsError` that says what to do if there are none, ValueError for an unknown preset.
    """
    find_preset(preset)
    entries = [entry for entry in manifest() if entry.preset == preset]
    for entry in entries:
        if entry.file:
            if not entry.path.is_file():
                raise WeightsError(f'the packaged weights of preset {preset!r} are missing: expected {entry.path}; '
                                   'install the package again')
            return entry.path
    if not entries:
        raise WeightsError(f'preset {preset!r} has no packaged weights; give a weights file')
    raise WeightsError(
        f"preset {preset!r} has no packaged weights, for the official ones are not ours to pass on: "
        f"'tar-vis weights list' names them (such as {entries[0].name}), 'tar-vis weights get NAME' fetches one, "
        "'tar-vis weights convert FILE -o OUT' writes OUT, and OUT is what to give as weights")


def sha256_of(path: Path) -> str:
    """Return hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
