"""What a tracker gives: the objects of some frames, a row each, and their masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Tracked:
    """T frames after tracking: R rows each, which are decoder queries or a tracker's own slots."""

    logits: Tensor            # (T, R, classes + 1), the last column is no-object
    mask_embeddings: Tensor   # (T, R, D): their product with the mask features, plus the bias, gives mask logits
    mask_bias: Tensor | None  # (T, R); None is zero
    embeddings: Tensor        # (T, R, E)
    slots: np.ndarray         # (T, R) int64: the slot that a row stands for; -1 where it stands for none


def masks_of(tracked: Tracked, frame: int, rows: Tensor, mask_features: Tensor) -> Tensor:
    """Return mask logits ``(K, h, w)`` at stride 4 of some rows of a frame; ``mask_features (T, D, h, w)``.

    The product is computed in the narrower type of both, as mixed precision does it.
    """
    embeddings, features = tracked.mask_embeddings[frame, rows], mask_features[frame]
    narrow = min(embeddings.dtype, features.dtype, key=lambda dtype: dtype.itemsize)
    masks = torch.einsum('kd,dhw->khw', embeddings.to(narrow), features.to(narrow))
    return masks if tracked.mask_bias is None else masks + tracked.mask_bias[frame, rows, None, None]
