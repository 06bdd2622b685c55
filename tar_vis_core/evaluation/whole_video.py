"""From per-frame outputs to the instances of a whole video: the inference of MinVIS (Huang et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.tracking.matching import match_embeddings


@dataclass(frozen=True)
class VideoInstances:
    """The K best (query, class) pairs of a video, by falling score; a query may come with several classes."""

    scores: Tensor    # (K,) float32, softmax of the mean logits
    labels: Tensor    # (K,) int64, 0-based class
    queries: Tensor   # (K,) int64, slot of the first frame
    masks: Tensor     # (K, T, H, W) bool, at the video's own size


def match_frames(embeddings: Sequence[Tensor]) -> Tensor:
    """Slot assignments ``(T, Q)`` of a video's embeddings, each ``(Q, D)``; the first frame keeps its order.

    Only the previous frame is remembered, in slot order.
    """
    reference = embeddings[0]
    rows = [torch.arange(reference.shape[0], device=reference.device)]
    for current in embeddings[1:]:
        rows.append(match_embeddings(reference, current))
        reference = current[rows[-1]]
    return torch.stack(rows)


def resize_mask_logits(mask_logits: Tensor, padded_size: tuple[int, int], content_size: tuple[int, int],
                       output_size: tuple[int, int]) -> Tensor:
    """Mask logits ``(N, h, w)`` at the video's size ``(N, H, W)``, by two bilinear resizes.

    ``padded_size`` is the network's input, ``content_size`` its upper left part that holds the resized image, and
    ``output_size`` the video's own size, each (height, width) in pixels.
    """
    grown = F.interpolate(mask_logits[None].float(), padded_size, mode='bilinear', align_corners=False)
    grown = grown[:, :, :content_size[0], :content_size[1]]
    return F.interpolate(grown, output_size, mode='bilinear', align_corners=False)[0]


@torch.no_grad()
def segment_video(class_logits: Sequence[Tensor], mask_logits: Sequence[Tensor], embeddings: Sequence[Tensor],
                  padded_size: tuple[int, int], content_size: tuple[int, int], output_size: tuple[int, int],
                  max_instances: int = 10) -> VideoInstances:
    """The instances of a video from its frames' outputs, each frame's queries in the decoder's own order.

    ``class_logits`` holds ``(Q, C + 1)`` a frame with no-object last, ``mask_logits`` ``(Q, h, w)`` at stride 4,
    ``embeddings`` ``(Q, D)`` after the decoder's norm; a stacked tensor will do. For the sizes see
    :func:`resize_mask_logits`. No score threshold and no duplicate removal: the metric wants all of them.
    """
    if not len(class_logits) == len(mask_logits) == len(embeddings) > 0:
        raise ValueError(f'expected the same number of frames, at least one, got {len(class_logits)} class logits, '
                         f'{len(mask_logits)} mask logits and {len(embeddings)} embeddings')
    slots = match_frames(embeddings)
    mean_logits = torch.stack([frame[row] for frame, row in zip(class_logits, slots, strict=True)]).float().mean(0)
    probabilities = mean_logits.softmax(-1)[:, :-1]
    classes = probabilities.shape[1]
    scores, picked = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    queries, labels = picked // classes, picked % classes
    frames = []
    for frame, row in zip(mask_logits, slots, strict=True):  # one frame at a time bounds the memory of the resize
        logits = resize_mask_logits(frame[row[queries]], padded_size, content_size, output_size)
        frames.append(logits > 0)
    return VideoInstances(scores, labels, queries, torch.stack(frames, dim=1))
