"""From tracked frames to the instances of a whole video, one way for every tracker.

A slot's classes are its mean logits over the frames in which it is present (MinVIS, Huang et al. 2022; CTVIS, Ying
et al. 2023). The slots of query matching and of the referring tracker always are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.masks import MaskGeometry
from tar_vis_core.tracking.memory_bank import is_fleeting
from tar_vis_core.tracking.tracker import Tracked, masks_of


@dataclass(frozen=True)
class VideoInstances:
    """The K best (slot, class) pairs of a video, by falling score; a slot may come with several classes."""

    scores: Tensor    # (K,) float32, softmax of the mean logits
    labels: Tensor    # (K,) int64, 0-based class
    queries: Tensor   # (K,) int64, the tracker's slot
    masks: Tensor     # (K, T, H, W) bool, at the video's own size


def mean_logits(logits: Tensor, slots: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """The slots ``(S,)`` of a video, rising, and their mean class logits ``(S, classes + 1)``.

    ``logits (T, R, classes + 1)`` belong to ``slots (T, R)``, -1 for a row without one. Slots that the memory bank
    deleted for being fleeting are left out.
    """
    frame, row = np.nonzero(slots >= 0)
    numbers, which = np.unique(slots[frame, row], return_inverse=True)
    seen, last = np.bincount(which), np.zeros(len(numbers), np.int64)
    np.maximum.at(last, which, frame)
    frame, row, which, count = (torch.from_numpy(x).to(logits.device) for x in (frame, row, which, seen))
    total = logits.new_zeros(len(numbers), logits.shape[-1], dtype=torch.float32)
    mean = total.index_add(0, which, logits[frame, row].float()) / count[:, None]
    end = len(slots) - 1
    stay = ~is_fleeting(seen, end - last, end)
    return numbers[stay], mean[torch.from_numpy(stay).to(logits.device)]


def resize_mask_logits(mask_logits: Tensor, geometry: MaskGeometry) -> Tensor:
    """Mask logits ``(K, h, w)`` at the video's size ``(K, H, W)``, by two bilinear resizes."""
    grown = F.interpolate(mask_logits[:, None].float(), geometry.padded, mode='bilinear', align_corners=False)
    grown = grown[..., :geometry.content[0], :geometry.content[1]]
    return F.interpolate(grown, geometry.source, mode='bilinear', align_corners=False)[:, 0]


@torch.no_grad()
def segment_video(tracked: Tracked, mask_features: Tensor, geometry: MaskGeometry,
                  max_instances: int = 10) -> VideoInstances:
    """The instances of a video from all its frames, tracked, and their mask features ``(T, D, h, w)``.

    No score threshold and no duplicate removal: the metric wants all of them. MinVIS and DVIS++ give 10 instances
    (20 on OVIS), CTVIS as many as there are classes. In a frame without the slot its mask is empty.
    """
    numbers, logits = mean_logits(tracked.logits, tracked.slots)
    probabilities = logits.softmax(-1)[:, :-1]
    classes = probabilities.shape[1]
    scores, picked = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    queries, labels = torch.from_numpy(numbers).to(picked.device)[picked // classes], picked % classes
    frames = []
    for t, slots in enumerate(tracked.slots):  # one frame at a time bounds the memory of the resize
        here = torch.from_numpy(slots).to(queries.device) == queries[:, None]
        masks = resize_mask_logits(masks_of(tracked, t, here.int().argmax(1), mask_features), geometry) > 0
        frames.append(masks & here.any(1)[:, None, None])
    return VideoInstances(scores, labels, queries, torch.stack(frames, 1))
