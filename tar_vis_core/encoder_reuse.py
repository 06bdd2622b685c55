"""Reuse of the image encoder's features while the picture stands still; not part of the paper.

The drift of a frame is the greatest change of a cell. The picture is averaged over cells, 64 across. Each cell is
compared with the same cell of the frame that was encoded, not of the previous frame, so that small changes add up.
Local motion shows in the greatest value, while it would vanish in a mean. Noise is averaged away within the cells.

Limits: a vertical or horizontal edge of contrast c grey levels that moves by d pixels changes a cell of w pixels by at
least ``c d / (2 w)``. So masks lag behind it by less than ``2 w bound / c`` pixels. An object that differs from its
background by less than the bound may move unnoticed for ``MAX_REUSED`` frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tar_vis_core.masks import MaskGeometry
from tar_vis_core.models.video_model import Features

MAX_REUSED = 4      # frames in a row; then the encoder runs whatever the drift


@dataclass
class EncodedFrame:
    """The last frame that the image encoder has seen, of constant size."""

    features: Features
    geometry: MaskGeometry
    small: np.ndarray       # its grey picture (``preprocess.small_grey``)
    short_side: int         # pixels of the network input's shorter edge
    reused: int = 0         # frames since that took its features over

    def stands_for(self, small: np.ndarray, short_side: int, bound: float) -> bool:
        """Return whether a frame of the same stream and size may reuse these features: its drift is below ``bound``."""
        return self.short_side == short_side and self.reused < MAX_REUSED and drift(self.small, small) < bound


def drift(before: np.ndarray, after: np.ndarray) -> float:
    """Return the greatest change of a cell between two small grey pictures ``(h, w)``, grey levels 0..255."""
    return float(np.abs(after - before).max())
