"""From tracked frames to the instances of a whole video, one way for every tracker.

A slot's classes are its mean logits over the frames in which it is present (MinVIS, Huang et al. 2022; CTVIS, Ying
et al. 2023). The slots of query matching and of the referring tracker always are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.masks import MaskGeometry
from tar_vis_core.models.tracked import Tracked, masks_of

# Once frame 8 is over, a slot is forgotten that was seen in fewer than 3 frames and is missing in the last 2 (CTVIS).
SETTLED, FLEETING_SEEN, FLEETING_ABSENT = 8, 3, 2


@dataclass(frozen=True)
class VideoInstances:
    """The K best (slot, class) pairs of a video, by falling score; a slot may come with several classes."""

    scores: Tensor    # (K,) float32, softmax of the mean logits
    labels: Tensor    # (K,) int64, 0-based class
    queries: Tensor   # (K,) int64, the tracker's slot
    masks: Any        # (K, T, H, W) bool, at the video's own size; or what was kept of each frame, a list
    # (K,) float32, mean probability of the masks' pixels (Mask2Former); CTVIS multiplies its scores by it
    mask_scores: Tensor


def rows_by_slot(slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the slots ``(S,)`` of a video, rising, and the row of each in every frame ``(S, T)``, -1 if it is absent.

    ``slots (T, R)`` are -1 for a row without a slot. A slot that the tracker forgot as fleeting is left out. If it
    comes again later, it begins anew.
    """
    frame, row = np.nonzero(slots >= 0)
    numbers, which = np.unique(slots[frame, row], return_inverse=True)
    rows = np.full((len(numbers), len(slots)), -1)
    rows[which, frame] = row
    seen, absent = np.zeros((2, len(numbers)), np.int64)
    for t in range(len(slots)):
        here = rows[:, t] >= 0
        seen, absent = seen + here, np.where(here, 0, absent + 1)
        fleeting = (seen < FLEETING_SEEN) & (absent >= FLEETING_ABSENT) & (t > SETTLED)
        rows[fleeting, :t + 1], seen[fleeting] = -1, 0
    stay = (rows >= 0).any(1)
    return numbers[stay], rows[stay]


def mean_logits(logits: Tensor, rows: Tensor) -> Tensor:
    """Return the class logits ``(S, classes + 1)`` of slots.

    They are the mean of ``logits (T, R, .)`` over the frames of a slot; ``rows (S, T)`` is -1 in a frame without the
    slot."""
    own = logits.float()[torch.arange(len(logits), device=rows.device), rows.clamp(min=0)]
    here = (rows >= 0)[..., None]
    return (own * here).sum(1) / here.sum(1)


def resize_mask_logits(mask_logits: Tensor, geometry: MaskGeometry) -> Tensor:
    """Return mask logits ``(K, h, w)`` at the video's size ``(K, H, W)``, by two bilinear resizes."""
    grown = F.interpolate(mask_logits[:, None].float(), geometry.padded, mode='bilinear', align_corners=False)
    grown = grown[..., :geometry.content[0], :geometry.content[1]]
    return F.interpolate(grown, geometry.source, mode='bilinear', align_corners=False)[:, 0]


@torch.no_grad()
def segment_video(tracked: Tracked, mask_features: Tensor | Sequence[Tensor], geometry: MaskGeometry,
                  max_instances: int = 10, keep: Callable[[Tensor], Any] | None = None) -> VideoInstances:
    """Return the instances of a video from all its frames, tracked, and their mask features ``(T, D, h, w)``.

    A long video's masks are large: ``keep`` takes a frame's ``(K, H, W)`` and returns what is to be kept of them.
    No score threshold and no duplicate removal: the metric wants all of them. MinVIS and DVIS++ give 10 instances
    (20 on OVIS), CTVIS as many as there are classes. In a frame without the slot its mask is empty.
    """
    numbers, rows = (torch.from_numpy(x).to(mask_features[0].device) for x in rows_by_slot(tracked.slots))
    probabilities = mean_logits(tracked.logits, rows).softmax(-1)[:, :-1]
    classes = probabilities.shape[1]
    scores, picked = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    slots, labels = picked // classes, picked % classes
    kept, pixels, total = [], 0, 0
    for t, row in enumerate(rows[slots].T):  # one frame at a time bounds the memory of the resize
        logits = resize_mask_logits(masks_of(tracked, t, row.clamp(min=0), mask_features), geometry)
        masks = (logits > 0) & (row >= 0)[:, None, None]
        pixels = pixels + masks.sum((1, 2))
        total = total + (logits.sigmoid() * masks).sum((1, 2))
        kept.append(keep(masks) if keep else masks)
    return VideoInstances(scores, labels, numbers[slots], kept if keep else torch.stack(kept, 1),
                          total / pixels.clamp(min=1))
