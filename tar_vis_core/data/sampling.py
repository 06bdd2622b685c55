"""From single samples to batches, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler

from tar_vis_core.data.transforms import Sample


@dataclass
class Batch:
    """Samples of one size together."""

    images: torch.Tensor        # (b, 3, h, w) uint8 RGB
    targets: list[Sample]


def collate(samples: list[Sample]) -> Batch:
    """Stack the images; the targets stay a list, for each has its own number of instances."""
    return Batch(torch.stack([sample.image for sample in samples]), list(samples))


class ShardSampler(Sampler):
    """Every process's own share of a shuffled epoch; the same (seed, epoch) gives the same order everywhere.

    ``weights`` (one per item) draws with replacement in proportion to them instead of visiting each item once.
    """

    def __init__(self, length: int, *, seed: int = 0, rank: int = 0, world: int = 1,
                 weights: Sequence[float] | None = None) -> None:
        if not 0 <= rank < world:
            raise ValueError(f'rank {rank} is not one of {world} processes')
        self.length, self.seed, self.rank, self.world, self.epoch = length, seed, rank, world, 0
        self.odds = None if weights is None else np.asarray(weights, float) / np.sum(weights)

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = (rng.permutation(self.length) if self.odds is None
                 else rng.choice(self.length, self.length, p=self.odds))
        return iter(order[self.rank:len(self) * self.world:self.world].tolist())
