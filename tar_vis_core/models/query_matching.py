"""Tracking by query matching, as MinVIS does it (Huang et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.runtime.assignment import linear_sum_assignment


def match_embeddings(reference: Tensor, current: Tensor) -> Tensor:
    """Return the one-to-one assignment of the current frame's queries to the reference's slots, by cosine distance.

    ``reference`` and ``current`` are ``(Q, D)``: the previous frame's embeddings in slot order, and this frame's.
    The result is ``indices (Q,)``, int64 on the device of ``current``: slot ``r`` continues in query ``indices[r]``, so
    ``current[indices]`` is in slot order. An embedding that is zero or not finite has no direction: its similarity
    to every other counts as 0, and it gets a slot that the others leave.
    Raise ValueError if the shapes differ.
    """
    if reference.ndim != 2 or reference.shape != current.shape:
        raise ValueError(
            f'expected two (Q, D) sets of embeddings, got {tuple(reference.shape)} and {tuple(current.shape)}')
    with torch.autocast(current.device.type, enabled=False):  # half precision would tie neighbours
        similarity = F.normalize(reference.detach().float(), dim=1) @ F.normalize(current.detach().float(), dim=1).T
    cost = 1 - similarity.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(columns, dtype=torch.long, device=current.device)
