"""The moments of a video that a clip shows, and the least size of its frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def check_gaps(gaps: Sequence[int]) -> tuple[int, ...]:
    """Return ``gaps`` for :func:`draw_times`. Raise ValueError if they are no whole numbers from 0, or all 0."""
    if not gaps or min(gaps) < 0 or not max(gaps):
        raise ValueError(f'gaps are {list(gaps)}, expected whole numbers from 0, not all 0')
    return tuple(gaps)


def check_canvas(size: tuple[int, int], frames: int = 1) -> None:
    """Raise ValueError for a canvas ``size`` (height, width) too small for a network, or a clip without frames."""
    if min(size) < 16:
        raise ValueError(f'a canvas of {size[0]}x{size[1]} is too small, expected at least 16x16')
    if frames < 1:
        raise ValueError(f'a clip of {frames} frames, expected at least 1')


def draw_times(rng: np.random.Generator, frames: int, gaps: Sequence[int]) -> list[int]:
    """Return the moments of a clip, from 0. Each comes one of ``gaps``, drawn evenly, after the one before.

    A gap of 0 shows the same moment again. Clips that rest and jump give a router something to decide by.
    """
    drawn = gaps if len(gaps) == 1 else rng.choice(gaps, frames - 1)
    return [0, *np.cumsum(np.broadcast_to(drawn, frames - 1)).tolist()]
