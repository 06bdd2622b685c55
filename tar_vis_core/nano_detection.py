"""Whose pixels are whose: the masks of a frame's queries, made into one mask per object.

A small decoder's queries compete little: several find one object, one grasps two objects at once, and neighbours
overlap. What is done about it here cost no accuracy on the validation images, and mostly gained some.
Masks are logits at stride 4; a pixel is taken from a mask by making its logit negative.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from tar_vis_core.masks import intersections

# A part of a mask that is apart from its largest part is kept only when it is near and not tiny.
PART_AREA = 0.05           # of the largest part
PART_GAP = 0.5             # of the root of the largest part's area
# A smaller part belongs to another query of the same class whose whole mask it is.
CLAIM_IOU = 0.5
CLAIM_SCORE = 0.3          # of this mask's score
SAME_CLASS_IOU = 0.5       # two masks of one class that overlap more are one object
ANY_CLASS_IOU = 0.7        # two masks of different classes that overlap more are one object
CONTAINED = 0.75           # a mask of the same class that lies inside another to this part is a piece of it
WHOLE_SCORE = 0.5          # of a piece's score: what the whole that holds it must have
COMPARABLE = 0.7           # two scores with at least this ratio: the surer mask takes the pixel, otherwise the score


def parts_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts of a boolean mask: labels ``(h, w)``, 0 outside, and the area of each label, 0 for label 0."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    return labels, areas


def without(logits: Tensor, pixels: np.ndarray) -> Tensor:
    """The logits with the given boolean pixels made negative."""
    return torch.where(torch.from_numpy(pixels), logits.clamp(max=-1), logits)


def without_far_parts(logits: Tensor) -> Tensor:
    """Mask logits ``(h, w)`` without the parts that are far from the largest, or specks.

    An object that something thin divides keeps its parts.
    """
    labels, areas = parts_of((logits > 0).numpy())
    if len(areas) <= 2:  # background and one part
        return logits
    largest = int(areas.argmax())
    drop = areas < PART_AREA * areas[largest]
    gaps = cv2.distanceTransform((labels != largest).astype(np.uint8), cv2.DIST_L2, 3)
    for part in np.flatnonzero(~drop):
        drop[part] = gaps[labels == part].min() > PART_GAP * areas[largest] ** 0.5
    drop[0] = False
    return without(logits, drop[labels])


def without_claimed_parts(logits: Tensor, scores: np.ndarray, classes: np.ndarray) -> Tensor:
    """Mask logits ``(K, h, w)`` without the smaller parts that another query of the same class has for itself."""
    masks = (logits > 0).numpy()
    out = list(logits)
    for k, mask in enumerate(masks):
        others = np.flatnonzero((classes == classes[k]) & (scores > CLAIM_SCORE * scores[k]))
        others = others[others != k]
        if not others.size:
            continue
        labels, areas = parts_of(mask)
        for part in range(1, len(areas)):
            if part != areas.argmax():
                common = (masks[others] & (labels == part)).sum((1, 2))
                union = masks[others].sum((1, 2)) + areas[part] - common
                if (common > CLAIM_IOU * union).any():
                    out[k] = without(out[k], labels == part)
    return torch.stack(out)


def absorb_pieces(masks: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """New scores ``(K,)``: a piece that lies in a larger mask of its class hands its score to the whole and gets 0.

    For objects named by what is seen inside them: an eye is as surely 'cat' as the cat is. ``masks (K, h, w)``.
    """
    common = intersections(masks, masks)
    areas = common.diagonal()
    out = scores.copy()
    for k in np.argsort(areas, kind='stable'):               # small ones first: a piece of a piece goes all the way
        holds = (areas > areas[k]) & (common[k] > CONTAINED * areas[k]) & (classes == classes[k])
        wholes = np.flatnonzero(holds & (scores >= WHOLE_SCORE * out[k]))
        if wholes.size:
            whole = wholes[scores[wholes].argmax()]
            out[whole], out[k] = max(out[whole], out[k]), 0.0
    return out


def distinct(masks: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[int]:
    """Indices of the masks ``(K, h, w)`` that stay when every object keeps its best one, by falling score."""
    common = intersections(masks, masks)
    areas = common.diagonal()
    iou = common / np.maximum(areas[:, None] + areas[None] - common, 1)
    inside = common / np.maximum(np.minimum(areas[:, None], areas[None]), 1)
    same = classes[:, None] == classes[None]
    duplicate = (iou > ANY_CLASS_IOU) | (same & ((iou > SAME_CLASS_IOU) | (inside > CONTAINED)))
    kept: list[int] = []
    for k in np.argsort(-scores, kind='stable'):
        if not duplicate[k, kept].any():
            kept.append(int(k))
    return kept


def shared_out(logits: Tensor, scores: np.ndarray, classes: np.ndarray) -> Tensor:
    """Mask logits ``(K, h, w)`` in which no pixel is in two masks of one class.

    Masks of different classes may overlap: what a person holds is the person's silhouette as well.
    """
    masks = (logits > 0).numpy()
    meet = intersections(masks, masks) > 0
    out = list(logits)
    for k in range(len(masks)):
        for j in np.flatnonzero(meet[k] & (classes == classes[k])):
            if j == k or scores[j] < COMPARABLE * scores[k]:
                continue
            lost = masks[k] & masks[j]
            if scores[k] >= COMPARABLE * scores[j]:
                # of two equally sure ones the first keeps the pixel
                surer = logits[j] > logits[k] if k < j else logits[j] >= logits[k]
                lost &= surer.numpy()
            out[k] = without(out[k], lost)
    return torch.stack(out) if out else logits
