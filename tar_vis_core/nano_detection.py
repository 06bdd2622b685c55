"""The detections of a small model, which needs help with its masks and with the names of its objects.

It tells person from object, and its semantic head names the objects. A small decoder's queries compete little: several
find one object, one grasps two objects at once, and neighbours overlap. What is done about it here cost no accuracy on
the validation images, and mostly gained some. Masks are logits at stride 4; a pixel is taken from a mask by making its
logit negative.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.detection import (
    CONTAINED,
    Candidates,
    Detection,
    class_probabilities,
    described,
    distinct,
    large_enough,
    likeliest,
    mask_quality,
)
from tar_vis_core.errors import NotFiniteError
from tar_vis_core.masks import MaskGeometry, intersections
from tar_vis_core.models.class_sets import VOC
from tar_vis_core.models.tracked import Tracked, masks_of
from tar_vis_core.models.video_model import Features

# A part of a mask that is apart from its largest part is kept only when it is near and not tiny.
PART_AREA = 0.05           # of the largest part
PART_GAP = 0.5             # of the root of the largest part's area
# A smaller part belongs to another query of the same class whose whole mask it is.
CLAIM_IOU = 0.5
CLAIM_SCORE = 0.3          # of this mask's score
WHOLE_SCORE = 0.5          # of a piece's score: what the whole that holds it must have
COMPARABLE = 0.7           # two scores with at least this ratio: the surer mask takes the pixel, otherwise the score
NEAR = 0.6                 # of the least score: what a mask with all its parts must reach to be looked at further
# Pascal VOC channels (0 is background) of the classes that follow 'person' in a semantic model's class names
PERSON_CHANNEL = VOC.index('person')
PERSON = 0                 # its place among those class names
OBJECT_CHANNELS = [c for c in range(1, len(VOC)) if c != PERSON_CHANNEL]
# A person's score is scaled by 1 - PERSON_SEMANTICS where the semantic head sees no person at all, and not at all
# where it sees nothing else.
PERSON_SEMANTICS = 0.35


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


def name_objects(probabilities: Tensor, logits: Tensor, semantic: Tensor) -> Tensor:
    """Class scores ``(K, 20)`` of a model that tells person from object and names objects by its semantic head.

    ``probabilities (K, 3)`` are person, object, no-object; ``logits (K, h, w)`` the masks; ``semantic`` the VOC
    logits ``(21, h', w')`` of the same padded frame, pooled inside each mask. A person's score is the decoder's own,
    lowered where the semantic head disagrees; any other class gets the probability of being something (the decoder
    gives 'person' to animals, too) times its semantic probability.
    """
    inside = F.interpolate(logits.sigmoid()[:, None], semantic.shape[-2:], mode='area')[:, 0].flatten(1)
    pooled = inside @ semantic.softmax(0).flatten(1).t() / inside.sum(1, keepdim=True).clamp(min=1e-6)
    agreed = 1 - PERSON_SEMANTICS * (1 - pooled[:, [PERSON_CHANNEL]])
    something = 1 - probabilities[:, -1:]
    return torch.cat((probabilities[:, :1] * agreed, something * pooled[:, OBJECT_CHANNELS]), 1)


def candidates(tracked: Tracked, features: Features, min_score: float) -> Candidates:
    """Return what the likeliest queries show; their masks come in their near and unclaimed parts.

    Raise NotFiniteError as :func:`detect` does.
    """
    probabilities = class_probabilities(tracked).cpu()
    if not torch.isfinite(probabilities).all():
        raise NotFiniteError
    queries = likeliest(probabilities, min_score)
    logits = masks_of(tracked, 0, queries.to(tracked.logits.device), features.mask_features).float().cpu()
    semantic = features.semantic[0].float().cpu()

    def scores() -> Tensor:
        found = name_objects(probabilities[queries], logits, semantic) * mask_quality(logits)[:, None]
        if not torch.isfinite(found).all():
            raise NotFiniteError
        return found

    # looking for parts takes longer than scoring: only where the mask as it is comes near
    near = scores().amax(1) >= NEAR * min_score
    queries, logits = queries[near], logits[near]
    if len(queries):
        logits = torch.stack([without_far_parts(mask) for mask in logits])
        found = scores().numpy()
        logits = without_claimed_parts(logits, found.max(1), found.argmax(1))
    embeddings = tracked.embeddings[0].float().cpu()[queries]
    return Candidates(queries.numpy(), scores().numpy(), embeddings.numpy(), logits, None)


def detect(tracked: Tracked, features: Features, image: np.ndarray, geometry: MaskGeometry, min_score: float,
           allowed: np.ndarray) -> list[Detection]:
    """Return a frame's objects as ``detection.detect`` does, all of it on the CPU.

    Masks lose far and claimed parts and pieces of others, and share out the pixels that several claim.
    """
    found = candidates(tracked, features, min_score)
    class_scores = found.class_scores * allowed
    good, positive = large_enough(found, class_scores, geometry, min_score)
    rows, columns = geometry.content_cells
    classes = class_scores.argmax(1)
    of_objects = classes[good] != PERSON
    objects = good[of_objects]
    class_scores[objects, classes[objects]] = absorb_pieces(
        positive[of_objects, :rows, :columns], class_scores[objects].max(1), classes[objects])
    still = class_scores[good].max(1) >= min_score
    good, positive = good[still], positive[still]
    alone = distinct(positive[:, :rows, :columns], class_scores[good].max(1), class_scores[good].argmax(1))
    good = good[alone]
    found.logits[good] = shared_out(found.logits[good], class_scores[good].max(1), class_scores[good].argmax(1))
    return described(found, class_scores, good, found.positive(good), image, geometry)
