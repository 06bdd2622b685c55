"""Tracking against a bank of remembered objects: the inference of CTVIS (Ying et al., ICCV 2023).

    similarity   s_ij = (softmax over tracks + softmax over detections) / 2 of e_i . m_j      (bi-softmax)
    memory       m <- (1 - b) m + b e,   b = max(0, mean cosine of e to the embeddings cached before)

e are a frame's re-identification embeddings, m the bank's. Detections choose in the order of their scores. Of the
tracks that are similar enough a detection takes that of the greatest similarity times frames seen: an object that was
begun twice goes on as the established track. A slot here is a track number, and most queries of a frame have none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.tracked import Tracked
from tar_vis_core.tracking.guided_means import move_means

MIN_SCORE = 0.01          # of a detection
MAX_OVERLAP = 0.6         # IoU above which the mask of lower score is suppressed
CACHED = 10               # embeddings that a track's next one is compared with
DEAD_AFTER = 20           # a track that is missing in more frames is forgotten


@dataclass(frozen=True)
class Bank:
    """The M tracks that may go on: those in sight and those missing for a moment."""

    embeddings: Tensor     # (M, E) similarity-guided
    cached: Tensor         # (M, CACHED, E) the last embeddings at unit length, in a ring; zero if there is none yet
    numbers: np.ndarray    # (M,) int64 track numbers, rising
    seen: np.ndarray       # (M,) frames with a match
    absent: np.ndarray     # (M,) frames since the last match
    next_number: int       # no track had it yet


class MemoryBankTracker:
    """Track against a memory bank.

    ``match_threshold`` is the similarity that a detection needs to continue a track: 0.2, or 0.3 as the authors have it
    for ResNet-50 on YouTube-VIS 2019."""

    def __init__(self, match_threshold: float = 0.2):
        self.match_threshold = match_threshold

    def track(self, frames: DecoderOutput, mask_features: Tensor, memory: Bank | None) -> tuple[Tracked, Bank]:
        """Track, see :class:`~tar_vis_core.tracking.tracker.Tracker`; rows are queries, slots track numbers.

        Raise ValueError if the decoder has no re-identification head.
        """
        if frames.reid is None:
            raise ValueError('the memory bank compares re-identification embeddings, and this model has none; '
                             "use the tracker 'matching'")
        slots = np.full(frames.logits.shape[:2], -1)
        with torch.autocast(mask_features.device.type, enabled=False):  # areas and similarities need all digits
            for t, reid in enumerate(frames.reid.detach().float().nan_to_num(0, 0, 0)):
                rows, scores = detections(frames.logits[t].float(), frames.mask_embeddings[t].float(),
                                          mask_features[t].float())
                slots[t, rows.cpu().numpy()], memory = self.step(reid[rows], scores, memory)
        return Tracked(frames.logits, frames.mask_embeddings, None, frames.embeddings, slots), memory

    def step(self, embeddings: Tensor, scores: np.ndarray, bank: Bank | None) -> tuple[np.ndarray, Bank]:
        """Take one frame's detections ``(n, E)`` by falling score. Return their track numbers ``(n,)``, -1 for none."""
        if bank is None:
            none = np.zeros(0, np.int64)
            bank = Bank(embeddings[:0], embeddings.new_zeros(0, CACHED, embeddings.shape[1]), none, none, none, 0)
        choice = self.choose(embeddings, bank)
        new = np.flatnonzero((choice < 0) & (scores > MIN_SCORE))
        choice[new] = len(bank.numbers) + np.arange(len(new))
        numbers = np.append(bank.numbers, bank.next_number + np.arange(len(new)))
        matched = choice >= 0
        bank = updated_bank(bank, numbers, choice[matched], embeddings[torch.from_numpy(matched).to(embeddings.device)])
        return np.where(matched, numbers[choice] if len(numbers) else -1, -1), bank

    def choose(self, embeddings: Tensor, bank: Bank) -> np.ndarray:
        """Return the bank's row that each detection continues, none of them twice; -1 for none."""
        choice = np.full(len(embeddings), -1)
        if not len(bank.numbers):
            return choice
        product = embeddings @ bank.embeddings.T
        similarity = ((product.softmax(1) + product.softmax(0)) / 2).nan_to_num(0).cpu().numpy()
        weight = np.where(similarity > self.match_threshold, similarity * bank.seen, 0)
        for i, row in enumerate(weight):
            best = row.argmax()
            if row[best] > 0:
                choice[i] = best
                weight[:, best] = 0
        return choice


def detections(logits: Tensor, mask_embeddings: Tensor, mask_features: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return the queries ``(n,)`` of a frame that are no duplicates, by falling score, and the scores.

    ``logits (Q, classes + 1)``, ``mask_embeddings (Q, D)``, ``mask_features (D, h, w)``. The best class must reach
    the least score (one query always stays), and a mask that one of higher score mostly covers is a duplicate.
    """
    scores, order = logits.softmax(-1)[:, :-1].amax(-1).nan_to_num(0).sort(descending=True, stable=True)
    count = max(1, int((scores > MIN_SCORE).sum()))
    scores, order = scores[:count], order[:count]
    masks = (torch.einsum('kd,dhw->khw', mask_embeddings[order], mask_features) > 0).flatten(1).float()
    shared, area = masks @ masks.T, masks.sum(1)
    union = area[:, None] + area - shared
    duplicate = ((shared > MAX_OVERLAP * union) | (union == 0)).cpu().numpy()   # empty masks are equal
    kept = np.ones(count, bool)
    for i in range(count):
        if kept[i]:
            kept[i + 1:] &= ~duplicate[i, i + 1:]
    rows = torch.from_numpy(kept).to(order.device)
    return order[rows], scores[rows].cpu().numpy()


def updated_bank(bank: Bank, numbers: np.ndarray, rows: np.ndarray, embeddings: Tensor) -> Bank:
    """Return the bank after a frame, without the tracks that died.

    ``numbers`` are the bank's, followed by those of new tracks; the tracks ``rows (n,)`` among them, all new ones too,
    were seen with ``embeddings (n, E)``.
    """
    new = len(numbers) - len(bank.numbers)
    guided = torch.cat((bank.embeddings, bank.embeddings.new_zeros(new, bank.embeddings.shape[1])))
    cached = torch.cat((bank.cached, bank.cached.new_zeros(new, *bank.cached.shape[1:])))
    seen = np.append(bank.seen, np.zeros(new, np.int64))
    absent = np.append(bank.absent, np.zeros(new, np.int64)) + 1

    at, times = (torch.from_numpy(x).to(embeddings.device) for x in (rows, seen[rows]))
    move_means(guided, cached, at, times, embeddings)
    seen[rows] += 1
    absent[rows] = 0

    alive = absent <= DEAD_AFTER
    kept = torch.from_numpy(alive).to(embeddings.device)
    return Bank(guided[kept], cached[kept], numbers[alive], seen[alive], absent[alive], bank.next_number + new)
