"""Mask AP on stills, each a frame and the frame before it.

Temporal routing needs a frame before. On stills that is the picture itself, moved a little: a camera that pans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from tar_vis_core.data.coco import ImageRecord
from tar_vis_core.detection import detect
from tar_vis_core.errors import DataError
from tar_vis_core.evaluation.coco_ap import CocoResult, Prediction, evaluate, expand_categories
from tar_vis_core.evaluation.decodings import Decoding
from tar_vis_core.evaluation.reported import ALL, Reported, reported
from tar_vis_core.instances import place_runs
from tar_vis_core.masks import MaskGeometry
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.preprocess import prepare
from tar_vis_core.tracking.tracker import MatchingTracker

MIN_SCORE = 0.01
PAN = 0.02               # of the width: the largest move between the two frames of a still


@dataclass(frozen=True)
class StillsRow:
    """One way of decoding and its result."""

    name: str
    executed: float      # layers per frame, mean
    result: CocoResult
    reported: list[Reported]     # the first category, then all classes


def frame_before(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the picture moved by up to :data:`PAN` of its width in both directions, edges mirrored."""
    h, w = image.shape[:2]
    dx, dy = rng.uniform(-PAN, PAN, 2) * w
    return cv2.warpAffine(image, np.array([[1, 0, dx], [0, 1, dy]]), (w, h), borderMode=cv2.BORDER_REFLECT_101)


def to_predictions(model: VideoInstanceModel, image: np.ndarray, features: Features, out: DecoderOutput,
                   geometry: MaskGeometry, threshold: float) -> tuple[list[Prediction], list[Prediction]]:
    """Return everything that the decoder says above :data:`MIN_SCORE`, and what a user is shown of it.

    Scores and duplicates are the segmenter's own.
    """
    names, gains = model.config.class_names, model.config.class_gains
    rows, _ = MatchingTracker().track(out, features.mask_features, None)    # the queries in their own order
    found = detect(rows, features, image, geometry, MIN_SCORE * gains.min(), np.ones(len(names), bool), gains)
    full, shown = [], []
    for one in found:
        mask = place_runs(one.runs, one.box, *image.shape[:2])
        # every class that the object may be is a prediction of its own, as in COCO's protocol
        full += [(float(score), name, mask) for score, name in zip(one.class_scores, names, strict=True)
                 if score >= MIN_SCORE]
        if one.score >= threshold:
            shown.append((one.score, names[one.class_id], mask))
    return full, shown


@torch.inference_mode()
def evaluate_routings(model: VideoInstanceModel, records: list, ways: dict[str, Decoding], short_side: int,
                      categories: tuple[str, ...], threshold: float) -> list[StillsRow]:
    """Return the AP of each way of decoding; images are encoded once.

    A way takes (features, previous queries) and returns the decoder's output.
    """
    answers: dict[str, list[tuple[list[Prediction], list[Prediction]]]] = {name: [] for name in ways}
    executed = dict.fromkeys(ways, 0)
    for number, record in enumerate(tqdm(records, desc='images', unit='image')):
        image = record.image()
        both = []
        for frame in (frame_before(image, np.random.default_rng(number)), image):
            images, geometry = prepare(model, frame, short_side)
            both.append(model.encode(images))
        previous = model.decode(both[0]).past
        for name, way in ways.items():
            out = way(both[1], previous)
            executed[name] += out.trace.executed_layers
            answers[name].append(to_predictions(model, image, both[1], out, geometry, threshold))
    rows = []
    for name, pairs in answers.items():
        said, shown = zip(*pairs, strict=True) if pairs else ((), ())
        rows.append(StillsRow(name, executed[name] / max(1, len(records)), evaluate(records, said, categories),
                              [reported(records, shown, kind) for kind in (categories[0], ALL)]))
    return rows


def labelled_categories(path: Path, records: Sequence[ImageRecord], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the categories to evaluate. Raises DataError for one that is labelled nowhere."""
    names = expand_categories(wanted, records)
    there = Counter(a.category for record in records for a in record.annotations if not a.crowd)
    if missing := [name for name in names if name not in there] or ([] if names else list(wanted)):
        held = ', '.join(f'{name} ({number})' for name, number in there.most_common(20)) or 'no object at all'
        raise DataError(f'{path}: no {" and no ".join(missing)} is labelled here, so there is nothing to find; it has '
                        f'{held}: choose with --categories')
    return tuple(names)


def as_table(rows: Sequence[StillsRow]) -> str:
    """Return a text table of the first category, in percent: a decoding a line."""
    lines = [f'{"decoding":<20}{"layers":>8}{"AP":>8}{"AP50":>8}{"AP75":>8}{"small":>8}{"medium":>8}{"large":>8}'
             f'{"R50: small":>12}{"medium":>8}{"large":>8}']
    for row in rows:
        first = row.result.categories[0]
        cells = (first.ap, first.ap50, first.ap75, first.small, first.medium, first.large)
        recalls = (first.recall50_small, first.recall50_medium, first.recall50_large)
        lines.append(f'{row.name:<20}{row.executed:>8.2f}' + ''.join(f'{100 * v:>8.1f}' for v in cells) + ' ' * 4
                     + ''.join(f'{100 * v:>8.1f}' for v in recalls))
    return '\n'.join(lines)
