"""The detections of a frame's queries: scores, mask quality, one mask per object, masks at the source's size."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from tar_vis_core.errors import NotFiniteError
from tar_vis_core.instances import encode_runs
from tar_vis_core.masks import MaskGeometry, Placed, full_size_mask, full_size_masks, intersections, packed_bits
from tar_vis_core.models.tracked import Tracked, masks_of
from tar_vis_core.models.video_model import Features
from tar_vis_core.runtime.device import to_host

MAX_CANDIDATES = 64        # masks evaluated per frame at most, best first
MIN_CELLS = 3              # a mask of fewer stride-4 pixels is noise
# Of two masks that overlap more, in one class or in two, the surer one stays.
SAME_CLASS_IOU, ANY_CLASS_IOU = 0.5, 0.7


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
    gain: float = 1.0                    # of its class, see ``detect``

    @property
    def class_id(self) -> int:
        return int(self.class_scores.argmax())

    @property
    def score(self) -> float:
        return min(1.0, self.gain * float(self.class_scores.max()))


def mask_quality(logits: Tensor) -> Tensor:
    """Return the mean probability over the positive pixels of each mask ``(K, h, w)``, ``(K,)``; 0 for an empty one."""
    positive = logits > 0
    return (logits.sigmoid() * positive).sum((1, 2)) / positive.sum((1, 2)).clamp(min=1)


def colour_signature(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the colours of the upper and the lower half of a mask as a unit vector ``(128,)`` float32.

    ``image (h, w, 3)`` uint8 and ``mask (h, w)`` have one size. Each half is a histogram of 4x4x4 RGB bins under a
    square root, so that the dot product of two signatures is their Bhattacharyya coefficient: 1 for equal colours.
    """
    r, g, b = (image >> 6).transpose(2, 0, 1)
    bins, counts = (r * 4 + g) * 4 + b, mask.sum(1)
    middle = int(counts @ np.arange(len(counts)) / counts.sum()) + 1        # below the mean row
    histogram = np.concatenate([np.bincount(bins[half][mask[half]], minlength=64) for half in (
        slice(middle), slice(middle, None))]).astype(np.float32)
    return np.sqrt(histogram / histogram.sum())


@dataclass(frozen=True)
class Candidates:
    """The content of the K likeliest queries of a frame."""

    queries: np.ndarray         # (K,)
    class_scores: np.ndarray    # (K, classes) float32
    embeddings: np.ndarray      # (K, D) float32
    logits: Tensor              # (K, h, w) float32 mask logits at stride 4, on a GPU if they were made there
    bits: np.ndarray | None     # (K, h, .) where they are positive, eight cells a byte; None on a CPU, which can look

    def positive(self, which: np.ndarray) -> np.ndarray:
        """Return where the mask logits of some of them are positive, boolean ``(k, h, w)``."""
        if self.bits is None:
            return (self.logits[which] > 0).numpy()
        return np.unpackbits(self.bits[which], axis=-1, count=self.logits.shape[-1]).view(bool)

    def masks(self, which: np.ndarray, positive: np.ndarray, geometry: MaskGeometry) -> list[Placed | None]:
        """Return their masks in source pixels."""
        logits = self.logits[which]
        return [full_size_mask(one, geometry) for one in logits] if self.bits is None else full_size_masks(
            logits, positive, geometry)


def on_cpu(tensor: Tensor) -> bool:
    """Return whether the host can read values at once; it would have to wait for those of a GPU."""
    return tensor.device.type == 'cpu'


def class_probabilities(tracked: Tracked) -> Tensor:
    """Return the class probabilities ``(R, classes + 1)`` of a frame's rows; a row without a slot shows nothing."""
    logits = tracked.logits if tracked.logits_so_far is None else tracked.logits_so_far
    probabilities = logits[0].float().softmax(-1)
    nobody = np.flatnonzero((tracked.slots[0] < 0) | (tracked.hidden is not None and tracked.hidden[0]))
    if nobody.size:     # what is not finite stays so
        rows = torch.from_numpy(nobody).to(probabilities.device)
        nothing = torch.eye(probabilities.shape[1], device=probabilities.device)[-1]
        probabilities[rows] = 0 * probabilities[rows] + nothing
    return probabilities


def likeliest_queries(probabilities: Tensor, min_score: float, allowed: np.ndarray, gains: np.ndarray) -> Tensor:
    """Return the queries ``(K,)`` that are surest to be something, or those of them that may reach ``min_score``."""
    something = 1 - probabilities[:, -1]
    queries = something.argsort(descending=True, stable=True)[:MAX_CANDIDATES]
    if not on_cpu(queries):
        return queries
    # no score exceeds the probability of being anything at all, so this loses nothing
    likeliest = (probabilities[queries, :-1].numpy() * allowed).argmax(1)
    return queries[torch.from_numpy(something[queries].numpy() * gains[likeliest] >= min_score)]


def candidates(tracked: Tracked, mask_features: Tensor, min_score: float, allowed: np.ndarray, gains: np.ndarray,
               ) -> Candidates:
    """Return the likeliest queries. On a GPU the masks stay there; all that decides comes in one transfer.

    Raise NotFiniteError as :func:`detect` does.
    """
    probabilities = class_probabilities(tracked)
    queries = likeliest_queries(probabilities, min_score, allowed, gains)
    logits = masks_of(tracked, 0, queries, mask_features).float()
    scores = probabilities[queries, :-1] * mask_quality(logits)[:, None]
    finite = torch.isfinite(probabilities).all() & torch.isfinite(scores).all()
    bits = [] if on_cpu(logits) else [packed_bits(logits > 0)]
    embeddings = tracked.embeddings[0, queries].float()
    found = [t.numpy() for t in to_host(queries, scores, embeddings, finite[None], *bits)]
    if not found[3]:
        raise NotFiniteError
    return Candidates(*found[:3], logits, found[4] if bits else None)


def large_enough(found: Candidates, scores: np.ndarray, geometry: MaskGeometry, min_score: float,
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidates ``(k,)`` that reach the score with a mask that is no speck, and their masks of cells."""
    good = np.flatnonzero(scores >= min_score)
    rows, columns = geometry.content_cells
    positive = found.positive(good)
    large = positive[:, :rows, :columns].sum((1, 2)) >= MIN_CELLS
    return good[large], positive[large]


def without_duplicates(masks: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[int]:
    """Return the indices of the masks ``(K, h, w)`` that stay if every object keeps its best one, by falling score."""
    common = intersections(masks, masks)
    areas = common.diagonal()
    iou = common / np.maximum(areas[:, None] + areas[None] - common, 1)
    same = classes[:, None] == classes[None]
    duplicate = (iou > ANY_CLASS_IOU) | (same & (iou > SAME_CLASS_IOU))
    kept: list[int] = []
    for k in np.argsort(-scores, kind='stable'):
        if not duplicate[k, kept].any():
            kept.append(int(k))
    return kept


def to_detections(found: Candidates, class_scores: np.ndarray, gain: np.ndarray, good: np.ndarray,
                  positive: np.ndarray, image: np.ndarray, geometry: MaskGeometry) -> list[Detection]:
    """Return the detections of the candidates ``good (k,)``, whose masks of cells are ``positive (k, h, w)``."""
    if not good.size:
        return []
    rows, columns = geometry.content_cells
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    detections = []
    for k, own, full in zip(good, positive, found.masks(good, positive, geometry), strict=True):
        cells = own[:rows, :columns]
        if full is None or cells.sum() < MIN_CELLS:
            continue
        box, mask = full
        # A track keeps copies: views would hold the memory of all candidates, from a GPU pinned.
        detections.append(Detection(
            int(found.queries[k]), class_scores[k].copy(), cells.copy(), found.embeddings[k].copy(),
            colour_signature(small, cells), box, int(np.count_nonzero(mask)), encode_runs(mask), float(gain[k])))
    return detections


def detect(tracked: Tracked, features: Features, image: np.ndarray, geometry: MaskGeometry, min_score: float,
           allowed: np.ndarray, gains: np.ndarray | None = None) -> list[Detection]:
    """Return the distinct objects of a frame whose score reaches ``min_score``, by falling probability.

    Masks are the network's own. ``tracked`` is of one frame; ``image`` is the source, uint8 RGB; ``allowed`` a
    boolean for each class that users see. ``gains (classes,)`` are what the score of a class is multiplied by, so that
    one threshold fits all; which class an object has is decided without them. Raise NotFiniteError if the network's
    numbers are not finite.
    """
    gains = np.ones(len(allowed)) if gains is None else gains
    found = candidates(tracked, features.mask_features, min_score, allowed, gains)
    class_scores = found.class_scores * allowed
    scores, classes = class_scores.max(1), class_scores.argmax(1)
    good, positive = large_enough(found, scores * gains[classes], geometry, min_score)
    rows, columns = geometry.content_cells
    alone = without_duplicates(positive[:, :rows, :columns], scores[good], classes[good])
    return to_detections(found, class_scores, gains[classes], good[alone], positive[alone], image, geometry)
