"""Masks compared at points (PointRend, Mask2Former): a few thousand of them in place of every pixel.

Points are (x, y) in 0..1 of the padded image, so that maps of any resolution can be read at them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OVERSAMPLE, UNCERTAIN = 3, 0.75     # candidates for each point; share of the points that are the least certain


def sample_at(maps: Tensor, points: Tensor) -> Tensor:
    """Return ``maps (N, C, h, w)`` read bilinearly at ``points (N, K, 2)``, ``(N, C, K)``; zero outside."""
    return F.grid_sample(maps.float(), 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int) -> Tensor:
    """Return ``count`` points for each mask of ``logits (P, h, w)``, ``(P, count, 2)``.

    Of three times as many random points, those with logits nearest to zero become three quarters of the result. The
    rest is random.
    """
    sharp = int(UNCERTAIN * count)
    candidates = torch.rand(len(logits), OVERSAMPLE * count, 2, device=logits.device)
    certainty = sample_at(logits[:, None], candidates)[:, 0].abs()
    chosen = certainty.topk(sharp, dim=1, largest=False).indices
    chosen = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat((chosen, torch.rand(len(logits), count - sharp, 2, device=logits.device)), 1)
