"""The output of a tracker: the objects of some frames, one row for each, and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.models.box_masks import BoxShapes


@dataclass
class Tracked:
    """T frames after tracking: R rows each, which are decoder queries or a tracker's own slots."""

    logits: Tensor            # (T, R, classes + 1), the last column is no-object
    mask_embeddings: Tensor   # (T, R, D): their product with the mask features, plus the bias, gives mask logits
    mask_bias: Tensor | None  # (T, R); None is zero
    embeddings: Tensor        # (T, R, E)
    slots: np.ndarray         # (T, R) int64: the slot that a row stands for; -1 if it stands for none
    # (T, R) bool: rows whose slot is out of sight, though the video's masks and classes have it. None: no slot hides.
    # With it a slot that a frame lacks has ended.
    hidden: np.ndarray | None = None
    # (T, R, classes + 1) class logits over the slot's frames so far, which users get; None: those of the frame
    logits_so_far: Tensor | None = None
    shapes: BoxShapes | None = None     # where masks are drawn in boxes


def stacked(parts: Sequence[Tracked]) -> Tracked:
    """Return the frames of ``parts`` as one; rows that a frame lacks stand for no slot."""
    rows = max(part.slots.shape[1] for part in parts)

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat([
            F.pad(v, (0, 0) * (v.dim() - 2) + (0, rows - v.shape[1])) for v in values])

    def padded(name: str, empty: int) -> np.ndarray:
        return np.concatenate([np.pad(v, ((0, 0), (0, rows - v.shape[1])), constant_values=empty)
                               for v in (getattr(part, name) for part in parts)])

    return Tracked(*map(joined, ('logits', 'mask_embeddings', 'mask_bias', 'embeddings')), padded('slots', -1),
                   None if parts[0].hidden is None else padded('hidden', False), joined('logits_so_far'))


def masks_of(tracked: Tracked, frame: int, rows: Tensor, mask_features: Tensor) -> Tensor:
    """Return mask logits ``(K, h, w)`` at stride 4 of some rows of a frame; ``mask_features (T, D, h, w)``.

    The product is computed in the narrower type of both, as mixed precision does it.
    """
    embeddings, features = tracked.mask_embeddings[frame, rows], mask_features[frame]
    narrow = min(embeddings.dtype, features.dtype, key=lambda dtype: dtype.itemsize)
    # one product of matrices: einsum would make a batch of it, which PyTorch copies on a CPU
    masks = (embeddings.to(narrow) @ features.to(narrow).flatten(1)).unflatten(1, features.shape[1:])
    if tracked.mask_bias is not None:
        masks = masks + tracked.mask_bias[frame, rows, None, None]
    return masks if tracked.shapes is None else tracked.shapes.drawn(masks, frame, rows, embeddings, features)
