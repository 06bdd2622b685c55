"""The Hungarian assignment of scipy without scipy's other modules, which take 37 MB of a node and a third of a second.

``linear_sum_assignment`` is scipy's own function.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType


def _solver() -> ModuleType:
    """Return scipy's solver, from its own extension module if that lies where it used to."""
    package = importlib.util.find_spec('scipy')
    try:
        spec = PathFinder.find_spec('_lsap', [str(Path(package.origin).parent / 'optimize')])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.linear_sum_assignment        # noqa: B018
        return module
    except (AttributeError, ImportError, TypeError):
        import scipy.optimize
        return scipy.optimize


linear_sum_assignment = _solver().linear_sum_assignment
