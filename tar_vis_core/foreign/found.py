"""The protocol of a foreign model: a class that finds objects in one image. It is loaded by its name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from tar_vis_core.errors import WeightsError, first_line


@dataclass(frozen=True)
class Found:
    """One object in one image."""

    class_id: int                       # index into the detector's ``class_names``
    score: float                        # 0..1
    box: tuple[int, int, int, int]      # x, y, width, height of ``mask`` on the image, pixels; need not be tight
    mask: np.ndarray                    # boolean (height, width)


class Detector(Protocol):
    """A model that finds objects in single images. ``model: python`` takes any object with these two."""

    class_names: Sequence[str]

    def detect(self, image: np.ndarray, min_score: float) -> Sequence[Found]:
        """Return the objects in an image, uint8 RGB ``(H, W, 3)``; those below ``min_score`` are not used."""


def load_detector(entry: str) -> Detector:
    """Return what ``module:factory`` makes. Modules in the current folder are found too.

    Raise WeightsError if there is no such thing, if it fails, or if it makes no detector.
    """
    module, _, factory = entry.partition(':')
    if not (module and factory):
        raise WeightsError(f"weights is {entry!r}, expected module:factory, such as 'my_models.seg:make', for the "
                           'model python')
    sys.path.append(str(Path.cwd()))
    try:
        made = getattr(import_module(module), factory)()
    except Exception as error:      # whatever a user's code raises
        raise WeightsError(f'{entry}: {type(error).__name__}: {first_line(error)}') from error
    finally:
        sys.path.pop()
    names = getattr(made, 'class_names', None)
    if not callable(getattr(made, 'detect', None)) or isinstance(names, str) or not isinstance(names, Sequence) or (
            not names or not all(isinstance(name, str) for name in names)):
        raise WeightsError(f'{entry}: it made a {type(made).__name__}, expected an object with class_names, a list of '
                           'texts, and detect(image, min_score)')
    return made


def check_found(found: Found, classes: int, height: int, width: int) -> None:
    """Raise ValueError that says what is wrong with an object on an image of that size."""
    x, y, w, h = found.box
    mask = found.mask
    if not (isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (h, w)):
        raise ValueError(f'the model gave a mask {getattr(mask, "dtype", type(mask).__name__)} '
                         f'{getattr(mask, "shape", "")} for the box {found.box}, expected bool ({h}, {w})')
    if x < 0 or y < 0 or x + w > width or y + h > height:
        raise ValueError(f'the model gave the box {found.box} on an image of {width}x{height}')
    if not 0 <= found.class_id < classes:
        raise ValueError(f'the model gave class {found.class_id} and has {classes} names')
    if not 0 <= found.score <= 1:
        raise ValueError(f'the model gave the score {found.score}, expected 0..1')
