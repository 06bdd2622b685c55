"""Controls of Routers that look at the picture: as many layers as TAR runs, on frames that are chosen otherwise.

TAR's own numbers of layers are given to other frames: by chance, by the difference of the pictures, or by how sure the
model is behind the Synchronizer. The oracle knows the truth: it chooses the best number of layers for each frame.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from tar_vis_core.data.clips import labelled_scene, resize_matrix
from tar_vis_core.data.transforms import to_sample, warp_scene
from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.evaluation.decodings import Decoding
from tar_vis_core.models.class_sets import plain_name
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.seeing_routers import Past
from tar_vis_core.models.video_model import MAX_LONG_SIDE, SIZE_DIVISIBILITY, Features, VideoInstanceModel
from tar_vis_core.studies.bootstrap import spearman
from tar_vis_core.training.losses import LossWeights, Target, make_target, set_losses, total_loss

WEIGHTS = LossWeights()


def in_order(model: VideoInstanceModel, count: int) -> Decoding:
    """Return TAR with the first ``count`` routable layers of its order executed on every frame."""
    gates = np.append(np.ones(model.config.warmup_layers), model.decoder.routers.place.numpy(force=True) < count)
    return lambda features, previous: model.decode(features, previous, 'adaptive', gate=lambda layer: gates[layer:])


class Watched:
    """TAR, with a list of how many routable layers ran on each frame."""

    def __init__(self, model: VideoInstanceModel, decoding: Decoding) -> None:
        self.decoding, self.warmup, self.counts = decoding, model.config.warmup_layers, []

    def __call__(self, features: Features, previous: Past | None) -> DecoderOutput:
        out = self.decoding(features, previous)
        if previous is not None:
            self.counts.append(sum(out.trace.executed[self.warmup:]))
        return out


class Control(ABC):
    """A decoding that gives TAR's numbers of layers, watched up to now, to frames in another order."""

    def __init__(self, model: VideoInstanceModel, tar: Watched) -> None:
        self.model, self.tar, self.values = model, tar, []
        self.decodings = [in_order(model, k) for k in range(len(model.decoder.layers) - tar.warmup + 1)]

    @abstractmethod
    def value(self, features: Features, previous: Past | None) -> float:
        """Return what orders the frames; it is called for each, the first of a video too. Greater: more layers run."""

    def count(self, value: float) -> int:
        """Return how many layers run: as great among TAR's as ``value`` is among all values."""
        self.values.append(value)
        rank = np.mean(np.array(self.values) < value) + 0.5 / len(self.values)
        return int(np.sort(self.tar.counts)[int(rank * len(self.tar.counts))])

    def __call__(self, features: Features, previous: Past | None) -> DecoderOutput:
        value = self.value(features, previous)
        if previous is None:
            return self.model.decode(features)
        return self.decodings[self.count(value)](features, previous)


class ByChance(Control):
    """Any frame."""

    def __init__(self, model: VideoInstanceModel, tar: Watched) -> None:
        super().__init__(model, tar)
        self.rng = np.random.default_rng(0)

    def value(self, features: Features, previous: Past | None) -> float:
        return self.rng.random()


class ByPictures(Control):
    """Frames whose picture differs from the last one's, by mean squared error."""

    def __init__(self, model: VideoInstanceModel, tar: Watched, records: Sequence[VideoRecord]) -> None:
        super().__init__(model, tar)
        self.pictures, self.before = (image for record in records for image in record.frames()), None

    def value(self, features: Features, previous: Past | None) -> float:
        picture, before = next(self.pictures).astype(np.float32), self.before
        self.before = picture
        return math.nan if previous is None else float(np.square(picture - before).mean())


class ByConfidence(Control):
    """Frames whose masks are unsure behind the Synchronizer, an exit by confidence."""

    def value(self, features: Features, previous: Past | None) -> float:
        if previous is None:
            return math.nan
        out = self.decodings[0](features, previous)
        masks = (out.mask_embeddings @ features.mask_features.flatten(2)).sigmoid()
        sure = masks.square().sum(-1) / masks.sum(-1).clamp(min=1e-6)
        objects = out.logits.softmax(-1)[..., :-1].amax(-1)
        return -float((objects * objects * sure).sum() / objects.sum())


class Oracle(Control):
    """The best number of layers by truth, with a price of a layer at which as many run as TAR's."""

    def __init__(self, model: VideoInstanceModel, tar: Watched, records: Sequence[VideoRecord]) -> None:
        super().__init__(model, tar)
        self.truth, self.losses, self.said = targets(records, model), [], []

    def value(self, features: Features, previous: Past | None) -> float:
        target = next(self.truth)
        if previous is None:
            return math.nan
        numbers = torch.arange(len(self.decodings), device=features.mask_features.device)

        def each(x: torch.Tensor) -> torch.Tensor:
            return x.expand(len(numbers), *x.shape[1:])

        many = replace(features, mask_features=each(features.mask_features), levels=[*map(each, features.levels)])
        out = self.model.supervised(many, Past(*map(each, previous)), numbers)
        self.losses.append([float(total_loss(set_losses(
            [out.logits[-1][one]], [out.mask_embeddings[-1][one]], features.mask_features, [target], WEIGHTS), WEIGHTS))
            for one in numbers.split(1)])
        self.said.append(float(out.worth[0]))
        return math.nan

    def count(self, value: float) -> int:
        losses, numbers, (low, high) = np.stack(self.losses), np.arange(len(self.decodings)), (0.0, 4.0)
        for _ in range(20):
            price = (low + high) / 2
            runs_more = (losses + price * numbers).argmin(1).mean() > np.mean(self.tar.counts)
            low, high = (price, high) if runs_more else (low, price)
        return int((losses[-1] + high * numbers).argmin())

    def agreement(self) -> float:
        """Return Spearman's correlation of what the Routers say and what their layers are worth."""
        losses = np.stack(self.losses)
        return spearman(self.said, losses[:, 0] - losses[:, self.model.decoder.routers.half])


def targets(records: Sequence[VideoRecord], model: VideoInstanceModel) -> Iterator[Target]:
    """Yield the truth of all frames at the size of the model's input."""
    labels = {plain_name(name): label for label, name in enumerate(model.config.class_names)}
    for record in records:
        view, size = resize_matrix((record.height, record.width), model.config.short_side, MAX_LONG_SIDE)
        padded = tuple(side + -side % SIZE_DIVISIBILITY for side in size)
        for frame in range(len(record.paths)):
            sample = to_sample(warp_scene(labelled_scene(record, frame, labels), view, size))
            yield make_target(sample, padded, device=model.pixel_mean.device)
