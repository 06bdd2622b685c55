"""The answer of an earlier frame while the picture stands still; not part of the paper.

The drift of a frame is the greatest change of a cell. The picture is averaged over cells, 64 across. Each cell is
compared with the same cell of the frame that the model saw last, not of the previous frame, so that small changes add
up. Local motion shows in the greatest value, while it would vanish in a mean. Noise is averaged away within the cells.

Below the bound nothing of the model runs, neither the image encoder nor the decoder: the objects are where they were.

Limits: a vertical or horizontal edge of contrast c grey levels that moves by d pixels changes a cell of w pixels by at
least ``c d / (2 w)``. So masks lag behind it by less than ``2 w bound / c`` pixels. An object that differs from its
background by less than the bound may move unnoticed for ``MAX_REUSED`` frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tar_vis_core.detection import Detection
from tar_vis_core.options import SegmenterOptions

MAX_REUSED = 4      # frames in a row; then the model runs whatever the drift


@dataclass
class SegmentedFrame:
    """The last frame that the model has seen, and what it found there."""

    small: np.ndarray               # its grey picture (``preprocess.small_grey``)
    options: SegmenterOptions       # of that step
    detections: list[Detection]
    slots: np.ndarray               # of the tracker, see ``IdentityTracker.update``
    reused: int = 0                 # frames since that took its detections over

    def stands_for(self, small: np.ndarray, options: SegmenterOptions) -> bool:
        """Return whether a frame of the same stream and size shows the same: its drift is below ``encoder_reuse``."""
        return (self.options == options and self.reused < MAX_REUSED
                and drift(self.small, small) < options.encoder_reuse)


def drift(before: np.ndarray, after: np.ndarray) -> float:
    """Return the greatest change of a cell between two small grey pictures ``(h, w)``, grey levels 0..255."""
    return float(np.abs(after - before).max())
