"""What every tracker does: the decoder's output of the next frames in, the same objects in the same slots out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.query_matching import match_embeddings


@dataclass
class Tracked:
    """T frames after tracking: R rows each, which are decoder queries or a tracker's own slots."""

    logits: Tensor            # (T, R, classes + 1), the last column is no-object
    mask_embeddings: Tensor   # (T, R, D): their product with the mask features, plus the bias, gives mask logits
    mask_bias: Tensor | None  # (T, R); None is zero
    embeddings: Tensor        # (T, R, E)
    slots: np.ndarray         # (T, R) int64: the slot that a row stands for; -1 where it stands for none


class Tracker(Protocol):
    """Stateless: all that lives between calls is the memory, of a type of its own, None before the first frame.

    One call with T frames gives what T calls with one frame each give.
    """

    def track(self, frames: DecoderOutput, mask_features: Tensor, memory: Any) -> tuple[Tracked, Any]:
        """``frames`` are T consecutive frames of one stream, ``mask_features (T, D, h, w)`` at stride 4."""


class MatchingTracker:
    """MinVIS (Huang et al. 2022): each slot continues in the query nearest to its last embedding."""

    def track(self, frames: DecoderOutput, mask_features: Tensor, memory: Tensor | None) -> tuple[Tracked, Tensor]:
        """``memory (Q, E)`` are the last frame's embeddings in slot order; the first frame keeps its order."""
        rows = []
        for embeddings in frames.embeddings.float():
            slots = np.arange(len(embeddings))
            if memory is not None:
                indices = match_embeddings(memory, embeddings)
                slots[indices.cpu().numpy()] = np.arange(len(embeddings))
                embeddings = embeddings[indices]
            memory = embeddings
            rows.append(slots)
        return Tracked(frames.logits, frames.mask_embeddings, None, frames.embeddings, np.stack(rows)), memory


def masks_of(tracked: Tracked, frame: int, rows: Tensor, mask_features: Tensor) -> Tensor:
    """Mask logits ``(K, h, w)`` at stride 4 of some rows of a frame; ``mask_features (T, D, h, w)``."""
    masks = torch.einsum('kd,dhw->khw', tracked.mask_embeddings[frame, rows], mask_features[frame])
    return masks if tracked.mask_bias is None else masks + tracked.mask_bias[frame, rows, None, None]
