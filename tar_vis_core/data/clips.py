"""Clips of consecutive frames out of labelled videos, resized, cropped and mirrored as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from tar_vis_core.data import transforms as tf
from tar_vis_core.data.clip_times import check_gaps, draw_times
from tar_vis_core.data.pseudo_video import align_clip
from tar_vis_core.data.transforms import Sample, Scene
from tar_vis_core.data.ytvis import VideoRecord, load_ytvis
from tar_vis_core.errors import DataError
from tar_vis_core.models.class_sets import plain_name

BEFORE_CROP = 400, 500, 600         # short sides that a clip has before it is cropped (DETR)


class VideoClips(Dataset):
    """Clips of ``frames`` samples from YouTube-VIS files; item i is a random clip of video i.

    Instances keep their index through a clip, with an empty mask if they are not seen; instances that no
    frame shows are left out. The same (seed, ``epoch``, index) gives the same clip. A video shorter than a clip is
    played to and fro. A clip advances by one of ``gaps`` from frame to frame (:func:`draw_times`).

    ``labels`` gives the label of a class name. The shorter edge of a clip becomes one of ``short_sides``, the longer
    at most ``max_side``. With ``crop`` (from, to) half of the clips are first cut to a box with sides in that range
    (384 to 600 for DVIS++).
    """

    def __init__(self, json_paths: Sequence[str | Path], labels: Mapping[str, int], frames: int = 2, *,
                 short_sides: Sequence[int] = (360, 480), max_side: int = 1333, crop: Sequence[int] = (),
                 mirror: float = 0.5, max_instances: int = 60, seed: int = 0, gaps: Sequence[int] = (1,)) -> None:
        self.gaps = check_gaps(gaps)
        self.labels = {plain_name(name): label for name, label in labels.items()}
        self.frames, self.short_sides, self.max_side, self.crop = frames, list(short_sides), max_side, list(crop)
        self.mirror, self.max_instances, self.seed, self.epoch = mirror, max_instances, seed, 0
        self.records: list[VideoRecord] = []
        for path in json_paths:
            records = [record for record in load_ytvis(path) if record.tracks]
            for category in sorted({track.category for record in records for track in record.tracks}):
                if plain_name(category) not in self.labels:
                    raise DataError(f"{path}: category {category!r} is none of the model's classes "
                                    f"({', '.join(self.labels)}); the recipe's option 'classes' chooses them")
            self.records += records
        if not self.records:
            raise DataError(f'no labelled video in {", ".join(map(str, json_paths))}')

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> list[Sample]:
        rng, record = np.random.default_rng([self.seed, self.epoch, index]), self.records[index]
        times = draw_times(rng, self.frames, self.gaps)
        start = int(rng.integers(max(1, len(record.paths) - times[-1])))
        view, size = self.draw_view(rng, (record.height, record.width))
        clip = [tf.warp_scene(labelled_scene(record, to_and_fro(start + time, len(record.paths)), self.labels),
                              view, size)
                for time in times]
        return [tf.to_sample(frame) for frame in align_clip(clip, 1, self.max_instances)]

    def draw_view(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Return a 3x3 matrix from the video's pixels to those of the clip, and the clip's size (height, width)."""
        matrix = np.eye(3)
        if self.crop and rng.random() < 0.5:
            matrix, size = resize_matrix(size, int(rng.choice(BEFORE_CROP)), self.max_side)
            sides = [int(rng.integers(min(self.crop[0], side), min(self.crop[1], side) + 1)) for side in size]
            top, left = (int(rng.integers(side - part + 1)) for side, part in zip(size, sides, strict=True))
            matrix, size = tf.translation(-left, -top) @ matrix, (sides[0], sides[1])
        scale, size = resize_matrix(size, int(rng.choice(self.short_sides)), self.max_side)
        matrix = scale @ matrix
        return tf.flipping(size[1]) @ matrix if rng.random() < self.mirror else matrix, size


def to_and_fro(index: int, count: int) -> int:
    """Return position ``index`` of an endless walk over ``count`` frames: 0, 1, .., count - 1, .., 1, 0, 1, .."""
    index %= max(1, 2 * (count - 1))
    return index if index < count else 2 * (count - 1) - index


def labelled_scene(record: VideoRecord, frame: int, labels: Mapping[str, int]) -> Scene:
    """One labelled frame, ``labels`` as :class:`VideoClips` has them, by :func:`plain_name`.

    Where further objects may be seen, all but the labelled ones is unknown.
    """
    own = [track for track in record.tracks if not track.crowd]
    masks = np.zeros((len(own), record.height, record.width), bool)
    for mask, track in zip(masks, own, strict=True):
        if (seen := track.mask(frame)) is not None:
            mask[:] = seen
    ignore = np.full((record.height, record.width), not record.exhaustive)
    for track in record.tracks:
        if track.crowd and (seen := track.mask(frame)) is not None:
            ignore |= seen
    names = [plain_name(track.category) for track in own]
    return Scene(record.frame(frame), masks, np.array([labels[name] for name in names], np.int64),
                 np.ones(len(own), bool),
                 ignore & ~masks.any(0), np.ones((record.height, record.width), bool),
                 exhaustive=record.annotated == 'all')


def resize_matrix(size: tuple[int, int], short_side: int, max_side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the matrix to a shorter edge of ``short_side``, the longer at most ``max_side``, and the new size."""
    scale = min(short_side / min(size), max_side / max(size))
    height, width = (max(1, round(scale * side)) for side in size)
    return tf.scaling(width / size[1], height / size[0]), (height, width)
