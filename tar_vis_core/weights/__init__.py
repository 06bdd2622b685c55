"""Which weights come with the package: ``manifest.json`` names each file, its sha256, licence and source."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tar_vis_core.errors import WeightsError
from tar_vis_core.models.presets import find_preset

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class PackagedWeights:
    """One entry of the manifest."""

    name: str
    preset: str
    file: str      # relative to this package's folder
    sha256: str
    licence: str   # of the weights; SPDX identifier where there is one
    source: str    # how they came about: the data and the command

    @property
    def path(self) -> Path:
        return FOLDER / self.file


def manifest() -> list[PackagedWeights]:
    """All packaged weights; the first entry of a preset is its default."""
    return [PackagedWeights(**entry) for entry in json.loads((FOLDER / 'manifest.json').read_text())['weights']]


def packaged_weights(preset: str) -> Path:
    """The packaged default weights of a preset.

    Raises :class:`WeightsError` with what to do where there are none, ValueError for an unknown preset.
    """
    find_preset(preset)
    for entry in manifest():
        if entry.preset == preset:
            if not entry.path.is_file():
                raise WeightsError(f'the packaged weights of preset {preset!r} are missing: expected {entry.path}; '
                                   'install the package again')
            return entry.path
    if preset == 'minvis_r50':
        raise WeightsError(
            "preset 'minvis_r50' has no packaged weights, for the official ones are not ours to pass on: fetch a file "
            "of the MinVIS model zoo, convert it with 'tar-vis weights convert FILE -o OUT', and give OUT as weights")
    raise WeightsError(f'preset {preset!r} has no packaged weights; give a weights file')


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def add_to_manifest(path: Path, preset: str, licence: str, source: str) -> PackagedWeights:
    """Enters a file below this package's folder into the manifest, in place of an entry of the same name."""
    find_preset(preset)
    file = path.resolve().relative_to(FOLDER.resolve()).as_posix()
    entry = PackagedWeights(path.stem, preset, file, sha256_of(path), licence, source)
    entries = [known for known in manifest() if known.name != entry.name] + [entry]
    (FOLDER / 'manifest.json').write_text(json.dumps({'weights': [asdict(e) for e in entries]}, indent=2) + '\n')
    return entry
