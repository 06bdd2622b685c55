"""The assignment is scipy's own, without the rest of scipy."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize

from tar_vis_core.runtime import assignment


@pytest.mark.parametrize('shape', [(0, 3), (1, 1), (5, 9), (40, 17), (64, 64)])
def test_equals_scipys(shape):
    costs = np.random.default_rng(0).integers(0, 9, shape).astype(float)     # with many ties
    for found, expected in zip(assignment.linear_sum_assignment(costs), scipy.optimize.linear_sum_assignment(costs),
                               strict=True):
        assert np.array_equal(found, expected)


def test_scipys_public_name_serves_if_its_module_has_moved(monkeypatch):
    monkeypatch.setattr(assignment.PathFinder, 'find_spec', lambda *_: None)
    assert assignment._solver() is scipy.optimize


def test_a_segmenter_does_not_load_the_rest_of_scipy():
    found = subprocess.run([sys.executable, '-c', 'import sys, tar_vis_core.segmenter; print("scipy.optimize" in '
                            'sys.modules)'], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == 'False'
