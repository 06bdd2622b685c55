"""From a frame's queries to its detections: scores, mask quality, one mask per object, masks at the source's size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.errors import NotFiniteError
from tar_vis_core.instances import encode_runs
from tar_vis_core.masks import MaskGeometry, Placed, full_size_mask, full_size_masks, packed_bits
from tar_vis_core.models.class_sets import VOC
from tar_vis_core.nano_detection import absorb_pieces, distinct, shared_out, without_claimed_parts, without_far_parts
from tar_vis_core.runtime.device import to_host

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


@dataclass(frozen=True)
class Candidates:
    """What the K likeliest queries of a frame show."""

    queries: np.ndarray         # (K,)
    class_scores: np.ndarray    # (K, classes) float32
    embeddings: np.ndarray      # (K, D) float32
    logits: Tensor              # (K, h, w) float32 mask logits at stride 4, on a GPU where they were made there
    bits: np.ndarray | None     # (K, h, .) where they are positive, eight cells a byte; None on a CPU, which can look

    def positive(self, which: np.ndarray) -> np.ndarray:
        """Where the mask logits of some of them are positive, boolean ``(k, h, w)``."""
        if self.bits is None:
            return (self.logits[which] > 0).numpy()
        return np.unpackbits(self.bits[which], axis=-1, count=self.logits.shape[-1]).view(bool)

    def masks(self, which: np.ndarray, positive: np.ndarray, geometry: MaskGeometry) -> list[Placed | None]:
        """Their masks in source pixels."""
        logits = self.logits[which]
        return [full_size_mask(one, geometry) for one in logits] if self.bits is None else full_size_masks(
            logits, positive, geometry)


def by_host(tensor: Tensor) -> bool:
    """Whether the host may look at values at once; those of a GPU it would have to wait for."""
    return tensor.device.type == 'cpu'


def likeliest(probabilities: Tensor, min_score: float) -> Tensor:
    """The queries ``(K,)`` that are surest to be something, or those of them that may reach ``min_score``."""
    # no score exceeds the probability of being anything at all, so this loses nothing
    something = 1 - probabilities[:, -1]
    queries = something.argsort(descending=True, stable=True)[:MAX_CANDIDATES]
    return queries[something[queries] >= min_score] if by_host(queries) else queries


def plain_candidates(probabilities: Tensor, masks_of: Callable[[Tensor], Tensor], embeddings: Tensor,
                     min_score: float) -> Candidates:
    """Masks are as the network gives them. From a GPU comes what decides, in one transfer; the masks stay there.

    Raises NotFiniteError as :func:`detect` does.
    """
    queries = likeliest(probabilities, min_score)
    logits = masks_of(queries)
    scores = scores_of(probabilities[queries], logits, None)
    finite = torch.isfinite(probabilities).all() & torch.isfinite(scores).all()
    bits = [] if by_host(logits) else [packed_bits(logits > 0)]
    found = [t.numpy() for t in to_host(queries, scores, embeddings[queries], finite[None], *bits)]
    if not found[3]:
        raise NotFiniteError
    return Candidates(*found[:3], logits, found[4] if bits else None)


def cleaned_candidates(probabilities: Tensor, masks_of: Callable[[Tensor], Tensor], embeddings: Tensor,
                       semantic: Tensor, min_score: float) -> Candidates:
    """A small model's masks come in their near and unclaimed parts. All tensors are on the CPU.

    Raises NotFiniteError as :func:`detect` does.
    """
    if not torch.isfinite(probabilities).all():
        raise NotFiniteError
    queries = likeliest(probabilities, min_score)
    logits = masks_of(queries)

    def scores() -> Tensor:
        found = scores_of(probabilities[queries], logits, semantic)
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
    return Candidates(queries.numpy(), scores().numpy(), embeddings[queries].numpy(), logits, None)


def detect(probabilities: Tensor, masks_of: Callable[[Tensor], Tensor], embeddings: Tensor, semantic: Tensor | None,
           image: np.ndarray, geometry: MaskGeometry, min_score: float, allowed: np.ndarray,
           ) -> list[Detection]:
    """The distinct objects of a frame whose score reaches ``min_score``, by falling score.

    Masks are as the network gives them. A small model, one with ``semantic`` logits, needs help: its masks lose far
    and claimed parts and pieces of others, and share out the pixels that several claim.
    ``probabilities (Q, classes + 1)`` end with no-object; ``masks_of`` gives the mask logits ``(K, h, w)`` of a
    vector of query indices; ``embeddings (Q, D)``; ``semantic (21, h', w')`` where the model has it; ``image`` is
    the source, uint8 RGB; ``allowed`` a boolean per user-visible class. Tensors are float32, on the CPU where there
    are ``semantic`` logits. Raises NotFiniteError where they hold what is not a finite number.
    """
    if semantic is None:
        found = plain_candidates(probabilities, masks_of, embeddings, min_score)
    else:
        found = cleaned_candidates(probabilities, masks_of, embeddings, semantic, min_score)
    class_scores = found.class_scores * allowed
    good = np.flatnonzero(class_scores.max(1) >= min_score)
    if not good.size:
        return []
    rows, columns = geometry.content_cells
    positive = found.positive(good)
    large = positive[:, :rows, :columns].sum((1, 2)) >= MIN_CELLS
    good, positive = good[large], positive[large]
    if semantic is not None:
        classes = class_scores.argmax(1)
        of_objects = classes[good] != PERSON
        objects = good[of_objects]
        class_scores[objects, classes[objects]] = absorb_pieces(
            positive[of_objects, :rows, :columns], class_scores[objects].max(1), classes[objects])
        still = class_scores[good].max(1) >= min_score
        good, positive = good[still], positive[still]
    alone = distinct(positive[:, :rows, :columns], class_scores[good].max(1), class_scores[good].argmax(1))
    good, positive = good[alone], positive[alone]
    if semantic is not None:
        found.logits[good] = shared_out(found.logits[good], class_scores[good].max(1), class_scores[good].argmax(1))
        positive = found.positive(good)
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    detections = []
    for k, own, full in zip(good, positive, found.masks(good, positive, geometry), strict=True):
        cells = own[:rows, :columns]
        if full is None or cells.sum() < MIN_CELLS:
            continue
        box, mask = full
        detections.append(Detection(
            int(found.queries[k]), class_scores[k], cells, found.embeddings[k], colour_signature(small, cells), box,
            int(np.count_nonzero(mask)), encode_runs(mask)))
    return detections
