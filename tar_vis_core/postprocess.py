"""From a frame's queries to its detections: scores, mask quality, one mask per object, masks at the source's size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.instances import encode_runs
from tar_vis_core.masks import MaskGeometry, full_size_mask
from tar_vis_core.models.class_sets import VOC
from tar_vis_core.overlaps import absorb_pieces, distinct, shared_out, without_claimed_parts, without_far_parts

MAX_CANDIDATES = 64        # masks evaluated per frame at most, best first
MIN_CELLS = 3              # a mask of fewer stride-4 pixels is noise
# Pascal VOC channels (0 is background) of the classes that follow 'person' in a semantic model's class names
PERSON_CHANNEL = VOC.index('person')
PERSON = 0                 # its place among those class names
OBJECT_CHANNELS = [c for c in range(1, len(VOC)) if c != PERSON_CHANNEL]
# A person's score is scaled by 1 - PERSON_SEMANTICS where the semantic head sees no person at all, and not at all
# where it sees nothing else.
PERSON_SEMANTICS = 0.35
NEAR = 0.6                 # of the least score: what a mask with all its parts must reach to be looked at further


@dataclass
class Detection:
    """One object of one frame, not yet tracked."""

    query: int                           # the decoder's slot
    class_scores: np.ndarray             # (classes,) float32, 0..1: class probability times mask quality
    mask: np.ndarray                     # bool, at stride 4 of the resized image
    embedding: np.ndarray                # (D,) float32, the decoder's normed query
    colours: np.ndarray                  # unit vector of the colours inside the mask, see ``colour_signature``
    box: tuple[int, int, int, int]       # tight, x, y, width, height in source pixels
    area: int                            # source pixels
    runs: np.ndarray                     # run lengths inside the box

    @property
    def class_id(self) -> int:
        return int(self.class_scores.argmax())

    @property
    def score(self) -> float:
        return float(self.class_scores.max())


def mask_quality(logits: Tensor) -> Tensor:
    """Mean probability over the positive pixels of each mask ``(K, h, w)``, ``(K,)``; 0 for an empty one."""
    positive = logits > 0
    return (logits.sigmoid() * positive).sum((1, 2)) / positive.sum((1, 2)).clamp(min=1)


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


def scores_of(probabilities: Tensor, logits: Tensor, semantic: Tensor | None) -> Tensor:
    """Class scores ``(K, classes)`` of queries with masks ``(K, h, w)``: class probability times mask quality."""
    named = probabilities[:, :-1] if semantic is None else name_objects(probabilities, logits, semantic)
    return named * mask_quality(logits)[:, None]


def colour_signature(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colours of the upper and the lower half of a mask as a unit vector ``(128,)`` float32.

    ``image (h, w, 3)`` uint8 and ``mask (h, w)`` have one size. Each half is a histogram of 4x4x4 RGB bins under a
    square root, so that the dot product of two signatures is their Bhattacharyya coefficient: 1 for equal colours.
    """
    rows, columns = np.nonzero(mask)
    bins = image[rows, columns].astype(np.int64) >> 6
    lower = rows > rows.mean()
    index = (bins[:, 0] * 4 + bins[:, 1]) * 4 + bins[:, 2] + 64 * lower
    histogram = np.bincount(index, minlength=128).astype(np.float32)
    return np.sqrt(histogram / histogram.sum())


def candidates(probabilities: Tensor, masks_of: Callable[[Tensor], Tensor], semantic: Tensor | None,
               min_score: float, allowed: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
    """Queries ``(K,)`` that may reach ``min_score``, their mask logits, their class scores.

    A small model's masks come in their near and unclaimed parts.
    """
    # no score exceeds the probability of being anything at all, so this loses nothing
    something = 1 - probabilities[:, -1]
    queries = torch.nonzero(something >= min_score)[:, 0]
    queries = queries[something[queries].argsort(descending=True, stable=True)[:MAX_CANDIDATES]]
    if not len(queries):
        return queries, torch.zeros(0, 0, 0), np.zeros((0, len(allowed)), np.float32)
    logits = masks_of(queries)
    if semantic is None:
        return queries, logits, scores_of(probabilities[queries], logits, None).numpy() * allowed
    # looking for parts takes longer than scoring: only where the mask as it is comes near
    near = scores_of(probabilities[queries], logits, semantic).max(1).values >= NEAR * min_score
    queries, logits = queries[near], logits[near]
    if len(queries):
        logits = torch.stack([without_far_parts(mask) for mask in logits])
        scores = scores_of(probabilities[queries], logits, semantic).numpy()
        logits = without_claimed_parts(logits, scores.max(1), scores.argmax(1))
    return queries, logits, scores_of(probabilities[queries], logits, semantic).numpy() * allowed


def detect(probabilities: Tensor, masks_of: Callable[[Tensor], Tensor], embeddings: Tensor, semantic: Tensor | None,
           image: np.ndarray, geometry: MaskGeometry, min_score: float, allowed: np.ndarray,
           ) -> list[Detection]:
    """The distinct objects of a frame whose score reaches ``min_score``, by falling score.

    Masks are as the network gives them. A small model, one with ``semantic`` logits, needs help: its masks lose far
    and claimed parts and pieces of others, and share out the pixels that several claim.
    ``probabilities (Q, classes + 1)`` end with no-object; ``masks_of`` gives the mask logits ``(K, h, w)`` of a
    vector of query indices; ``embeddings (Q, D)``; ``semantic (21, h', w')`` where the model has it; ``image`` is
    the source, uint8 RGB; ``allowed`` a boolean per user-visible class. Tensors are float32 on the CPU.
    """
    queries, logits, class_scores = candidates(probabilities, masks_of, semantic, min_score, allowed)
    good = np.flatnonzero(class_scores.max(1) >= min_score)
    if not good.size:
        return []
    rows, columns = geometry.content_cells
    masks = (logits[:, :rows, :columns] > 0).numpy()
    good = good[masks[good].sum((1, 2)) >= MIN_CELLS]
    if semantic is not None:
        classes = class_scores.argmax(1)
        objects = good[classes[good] != PERSON]
        class_scores[objects, classes[objects]] = absorb_pieces(
            masks[objects], class_scores[objects].max(1), classes[objects])
        good = good[class_scores[good].max(1) >= min_score]
    good = good[distinct(masks[good], class_scores[good].max(1), class_scores[good].argmax(1))]
    logits = logits[good]
    if semantic is not None:
        logits = shared_out(logits, class_scores[good].max(1), class_scores[good].argmax(1))
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    detections = []
    for k, mask_logits in zip(good, logits, strict=True):
        cells = (mask_logits[:rows, :columns] > 0).numpy()
        full = full_size_mask(mask_logits, geometry)
        if full is None or cells.sum() < MIN_CELLS:
            continue
        box, mask = full
        query = int(queries[k])
        detections.append(Detection(
            query, class_scores[k], cells, embeddings[query].numpy(), colour_signature(small, cells), box,
            int(np.count_nonzero(mask)), encode_runs(mask)))
    return detections
