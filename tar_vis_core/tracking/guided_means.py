"""Running means of what a track shows, moved by a new value the more, the more alike that is to the last ones.

    m <- (1 - b) m + b e,   b = max(0, mean cosine of e to the values before)

Of CTVIS (re-identification embeddings) and of DVIS-DAQ (places).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def move_means(means: Tensor, recent: Tensor, rows: Tensor, times: Tensor, values: Tensor) -> None:
    """Move some rows of ``means (M, E)`` by ``values (n, E)``, in place; a row's first value becomes its mean.

    ``recent (M, K, E)`` are the last K values of each row at unit length, a ring, zero if there is none yet; the new
    ones are added. ``rows (n,)`` are those that have a value, ``times (n,)`` how many they had before.
    """
    unit, kept = F.normalize(values, dim=1), recent.shape[1]
    cosine = (recent[rows] @ unit[:, :, None]).sum((1, 2)) / times.clamp(1, kept)
    share = torch.where(times == 0, 1.0, cosine.clamp(min=0))[:, None]
    means[rows] = (1 - share) * means[rows] + share * values
    recent[rows, times % kept] = unit
