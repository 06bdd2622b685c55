"""Features of the image encoder taken over from an earlier frame while the picture stands still; not of the paper.

The drift of a frame is the greatest change of a cell: the picture is averaged over cells, 64 across, and each is
compared with the same cell of the frame that was encoded, never of the frame before, so that small changes add up.
Local motion cannot hide in a greatest value as it does in a mean; noise, which a greatest value is open to, is averaged
away within the cells.

What stays unseen: an upright or level edge of contrast c grey levels that moves by d pixels changes a cell of w pixels
by at least ``c d / (2 w)``, so masks lag behind it by less than ``2 w bound / c`` pixels. What differs from its ground
by less than the bound may move as it likes, for ``MAX_REUSED`` frames.
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
        """Whether a frame of the same stream and size may take over these features: its drift is below ``bound``."""
        return self.short_side == short_side and self.reused < MAX_REUSED and drift(self.small, small) < bound


def drift(before: np.ndarray, after: np.ndarray) -> float:
    """The greatest change of a cell between two small grey pictures ``(h, w)``, grey levels 0..255."""
    return float(np.abs(after - before).max())
