"""The samples of a run, which depend on the seed and their number alone.

They do not depend on how many processes share an iteration, which process makes them, or where a run was interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from tar_vis_core.data.category_maps import FROM_COCO
from tar_vis_core.data.clips import VideoClips
from tar_vis_core.data.coco import CocoDataset
from tar_vis_core.data.pseudo_video import PseudoVideoDataset
from tar_vis_core.data.synth import SynthVideos
from tar_vis_core.data.transforms import Sample
from tar_vis_core.errors import DataError
from tar_vis_core.models.presets import ModelConfig
from tar_vis_core.training.distributed import World
from tar_vis_core.training.recipe import Recipe, RecipeError

TRIES = 20      # draws in place of an unreadable sample


@dataclass
class Source:
    """One data set: its clips, and the object that holds the epoch (and the canvas, if any) of the next clips."""

    clips: Dataset
    control: CocoDataset | SynthVideos | VideoClips


def open_sources(recipe: Recipe, folder: Path, config: ModelConfig) -> list[Source]:
    """Return the recipe's data sets below ``folder``. Raise DataError or RecipeError that says what is wrong."""
    sources, labels = [], {name: index for index, name in enumerate(config.class_names)}
    if recipe.data == ['synth']:
        made = SynthVideos(frames=recipe.clip, seed=recipe.seed, gaps=recipe.gaps)
        sources.append(Source(made, made))
    elif recipe.data:
        # class sets of videos take some of COCO's categories, others those that have their names
        table = FROM_COCO.get(config.class_set, {name: name for name in labels})
        labels_of_coco = {name: labels[ours] for name, ours in table.items()}
        stills = CocoDataset([folder / path for path in recipe.data], seed=recipe.seed, mosaic=recipe.mosaic,
                             labels=labels_of_coco, boxes=config.backbone == 'nanodet')
        clips = stills if recipe.clip == 1 else PseudoVideoDataset(stills, recipe.clip, gaps=recipe.gaps)
        sources.append(Source(clips, stills))
    if recipe.videos:
        clips = VideoClips([folder / path for path in recipe.videos], labels, recipe.clip, seed=recipe.seed,
                           short_sides=recipe.short_sides, max_side=recipe.max_side, crop=recipe.crop, gaps=recipe.gaps)
        sources.append(Source(clips, clips))
    return sources


class RunSamples(Dataset):
    """Sample ``number`` of a run, a clip; from each source in turn."""

    def __init__(self, sources: list[Source], recipe: Recipe, bad: Path) -> None:
        self.sources, self.recipe, self.bad = sources, recipe, bad

    def __getitem__(self, number: int) -> list[Sample]:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, number])
        source = self.sources[number % len(self.sources)]
        done = number // recipe.batch / recipe.iterations
        height, width = next((int(h), int(w)) for start, h, w in reversed(recipe.sizes) if done >= start)
        source.control.epoch = number
        if not isinstance(source.control, VideoClips):
            source.control.size = height, width
        for attempt in range(TRIES):
            try:
                item = source.clips[int(rng.integers(len(source.clips)))]
                return item if isinstance(item, list) else [item]
            except DataError as error:
                if not recipe.skip_bad or attempt + 1 == TRIES:
                    raise
                with self.bad.open('a') as file:
                    file.write(f'{number}: {error}\n')
                print(f'sample {number} is replaced: {error}', file=sys.stderr)
        raise AssertionError('unreachable')


def batches(draws: RunSamples, world: World, start: int, end: int) -> Iterator[list[list[Sample]]]:
    """Return this process's clips of iterations ``start`` to ``end - 1``."""
    recipe, own = draws.recipe, draws.recipe.batch // world.size
    if recipe.batch % world.size:
        raise RecipeError(f'a batch of {recipe.batch} cannot be shared by {world.size} processes alike; --set batch=N')
    numbers = [range(i * recipe.batch + world.rank * own, i * recipe.batch + (world.rank + 1) * own)
               for i in range(start, end)]
    return iter(DataLoader(draws, batch_sampler=numbers, num_workers=recipe.workers, collate_fn=list))
