"""Where the reference's recorded outputs lie, and their formula-made weights; tests skip where they are absent."""

import importlib.util
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(os.environ.get('TAR_VIS_SHARED') or Path(__file__).parents[2] / 'shared') / 'reference' / 'parity'

needs_parity_data = pytest.mark.skipif(
    not (FOLDER / 'minvis_r50.npz').is_file(), reason=f'no parity data in {FOLDER}; TAR_VIS_SHARED names another place')


@cache
def formula():
    """The module that makes weights and frames from names."""
    spec = importlib.util.spec_from_file_location('weights_formula', FOLDER / 'weights_formula.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected(family: str) -> dict[str, np.ndarray]:
    """The reference's recorded arrays of a family."""
    with np.load(FOLDER / f'{family}.npz') as archive:
        return {name: archive[name] for name in archive.files}


def official_state(family: str) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the official names, valued by the formula."""
    rows = json.loads((FOLDER / f'keys_{family}.json').read_text())
    return {name: torch.from_numpy(value) for name, value in formula().state_dict_from_keys(rows).items()}


def largest_gap(ours, reference) -> float:
    """The largest absolute difference of two arrays of equal shape."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return float(np.abs(ours - reference).max())
