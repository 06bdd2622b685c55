"""Where the reference's recorded outputs lie, and their formula-made weights; tests skip where they are absent."""

import importlib.util
import json
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tar_vis_core.models.backbones.swin import relative_position_index

FOLDER = Path(os.environ.get('TAR_VIS_SHARED') or Path(__file__).parents[3] / 'shared') / 'reference' / 'parity'

needs_parity_data = pytest.mark.skipif(
    not (FOLDER / 'minvis_r50.npz').is_file(), reason=f'no parity data in {FOLDER}; TAR_VIS_SHARED names another place')


@cache
def formula(name: str = 'weights_formula'):
    """The module that makes weights and frames from names; ``formula_dvis_daq`` is built on it."""
    if name != 'weights_formula':
        sys.modules['weights_formula'] = formula()
    spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recording(family: str) -> Path | None:
    """The file of a family's recorded arrays, if there is one; TAR_VIS_PARITY names a folder that goes first."""
    places = [Path(place) / f'{family}.npz' for place in (os.environ.get('TAR_VIS_PARITY'), FOLDER) if place]
    return next(filter(Path.is_file, places), None)


def expected(family: str) -> dict[str, np.ndarray]:
    """The reference's recorded arrays of a family."""
    with np.load(recording(family)) as archive:
        return {name: archive[name] for name in archive.files}


def official_rows(family: str, part: str = '') -> list[tuple[str, list[int], str]]:
    """Name, shape and type of a checkpoint's tensors whose names begin with ``part``."""
    return [row for row in json.loads((FOLDER / f'keys_{family}.json').read_text()) if row[0].startswith(part)]


def official_state(family: str, salt: str | None = None, part: str = '', edits=()) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the official names, valued by the formula; only those that begin with ``part``."""
    rows = official_rows(family, part)
    state = {name: torch.from_numpy(value) for name, value in formula().state_dict_from_keys(rows, salt).items()}
    if edits:
        state |= {name: torch.from_numpy(formula('formula_dvis_daq').tensor(name, shape, salt, edits))
                  for name, shape, _ in rows if any(name.endswith(edit[0]) for edit in edits)}
    # what the formula leaves out
    state |= {name: relative_position_index(round(shape[0] ** 0.5)) for name, shape, _ in rows
              if name.endswith('relative_position_index')}
    assert state.keys() == {name for name, _, _ in rows}
    return state


def largest_gap(ours, reference) -> float:
    """The largest absolute difference of two arrays of equal shape."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return float(np.abs(ours - reference).max())
