"""``tar-vis eval``: mask AP on stills or videos by number of decoder layers and by routing, with controls.

Temporal routing needs a frame before. On stills that is the picture itself, moved a little: a camera that pans. The
controls say what a router's choice is worth: all layers, every routable layer skipped, and random gates that execute
as often as the router does. Videos are the matter of ``videos``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from tar_vis_core import detection, nano_detection
from tar_vis_core.data.coco import ImageRecord, load_coco
from tar_vis_core.data.label_fields import holds_videos, read_labels
from tar_vis_core.errors import DataError, TarVisError
from tar_vis_core.evaluation import videos
from tar_vis_core.evaluation.coco_ap import CocoResult, Prediction, evaluate, expand_categories
from tar_vis_core.instances import place_runs
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import write_text
from tar_vis_core.masks import MaskGeometry
from tar_vis_core.models.class_sets import plain_name
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.preprocess import prepare
from tar_vis_core.runtime.device import pick_device
from tar_vis_core.tracking.tracker import MatchingTracker
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

MIN_SCORE = 0.01
PAN = 0.02               # of the width: the largest move between the two frames of a still


@dataclass(frozen=True)
class Row:
    """One way of decoding and its result."""

    name: str
    executed: float      # layers per frame, mean
    result: CocoResult


def frame_before(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture moved by up to :data:`PAN` of its width in both directions, edges mirrored."""
    h, w = image.shape[:2]
    dx, dy = rng.uniform(-PAN, PAN, 2) * w
    return cv2.warpAffine(image, np.array([[1, 0, dx], [0, 1, dy]]), (w, h), borderMode=cv2.BORDER_REFLECT_101)


def to_predictions(model: VideoInstanceModel, image: np.ndarray, features: Features, out: DecoderOutput,
                   geometry: MaskGeometry) -> list[Prediction]:
    """Everything that the decoder says above :data:`MIN_SCORE`, with the segmenter's own scores and duplicates."""
    names, find = model.config.class_names, nano_detection if model.config.semantic_classes else detection
    rows, _ = MatchingTracker().track(out, features.mask_features, None)    # the queries in their own order
    found = find.detect(rows, features, image, geometry, MIN_SCORE, np.ones(len(names), bool))
    full = []
    for one in found:
        mask = place_runs(one.runs, one.box, *image.shape[:2])
        # every class that the object may be is a prediction of its own, as in COCO's protocol
        full += [(float(score), name, mask) for score, name in zip(one.class_scores, names, strict=True)
                 if score >= MIN_SCORE]
    return full


@torch.inference_mode()
def evaluate_routings(model: VideoInstanceModel, records: list, ways: dict[str, Callable], short_side: int,
                      categories: tuple[str, ...]) -> list[Row]:
    """AP of each way of decoding, images encoded once. A way takes (features, previous queries), gives the output."""
    answers: dict[str, list[list[Prediction]]] = {name: [] for name in ways}
    executed = dict.fromkeys(ways, 0)
    for number, record in enumerate(tqdm(records, desc='images', unit='image')):
        image = record.image()
        both = []
        for frame in (frame_before(image, np.random.default_rng(number)), image):
            images, geometry = prepare(model, frame, short_side)
            both.append(model.encode(images))
        previous = model.decode(both[0]).queries
        for name, way in ways.items():
            out = way(both[1], previous)
            executed[name] += out.trace.executed_layers
            answers[name].append(to_predictions(model, image, both[1], out, geometry))
    rows = []
    for name, predictions in answers.items():
        queue = iter(predictions)
        result = evaluate(lambda image, queue=queue: next(queue), records, categories=categories, progress=False)
        rows.append(Row(name, executed[name] / max(1, len(records)), result))
    return rows


def ways_of(model: VideoInstanceModel, layers: list[int], routing: bool) -> dict[str, Callable]:
    """The decodings to compare: the first k layers, and TAR with its controls.

    Each takes (features, previous queries), None for the first frame of a video. The random gates keep to the rate
    of the routers up to now: on every frame they must come after 'TAR'.
    """
    def fixed(k: int) -> Callable:
        return lambda features, previous: model.decode(features, routing='fixed', fixed_layers=k)

    ways = {f'first {k}': fixed(k) for k in layers}
    if not routing:
        return ways
    rng = np.random.default_rng(0)
    rate: list[float] = []      # share of the routed layers that ran, by frame: the routers', then the random gates'
    drawn: list[float] = []

    def share_of(out: DecoderOutput) -> float:
        return float(np.mean(out.trace.executed[model.config.warmup_layers:]))

    def adaptive(features: Features, previous: torch.Tensor | None) -> DecoderOutput:
        out = model.decode(features, previous, 'adaptive')
        if previous is not None:
            rate.append(share_of(out))
        return out

    def random_gates(features: Features, previous: torch.Tensor | None) -> DecoderOutput:
        if previous is None:
            return model.decode(features)
        # the mean up to now lags behind a rate that changes: what it missed is made up for over some twenty frames
        share, count = np.mean(rate) + (sum(rate[:-1]) - sum(drawn)) / 20, model.config.decoder_layers
        out = model.decode(features, previous, 'adaptive',
                           gate=lambda layer: (rng.random(count - layer) < share).astype(float))
        drawn.append(share_of(out))
        return out

    def biased(bias: float) -> Callable:
        return lambda features, previous: model.decode(features, previous, 'adaptive', skip_bias=bias)

    return {**ways, 'TAR': adaptive, 'TAR, all executed': biased(-math.inf), 'TAR, all skipped': biased(math.inf),
            'TAR, random gates': random_gates}


def labelled_categories(path: Path, records: Sequence[ImageRecord], asked: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the categories to evaluate. Raises DataError for one that is labelled nowhere."""
    names = expand_categories(asked, records)
    there = Counter(a.category for record in records for a in record.annotations if not a.crowd)
    if missing := [name for name in names if name not in there] or ([] if names else list(asked)):
        held = ', '.join(f'{name} ({number})' for name, number in there.most_common(20)) or 'no object at all'
        raise DataError(f'{path}: no {" and no ".join(missing)} is labelled here, so there is nothing to find; it has '
                        f'{held}: choose with --categories')
    return tuple(names)


def open_decodings(args: argparse.Namespace) -> tuple[VideoInstanceModel, dict[str, Callable]]:
    """The model of the command line, on its device, and its ways of decoding."""
    model = load_model(args.preset, args.weights or packaged_weights(args.preset), args.adapter)
    ways = ways_of(model, args.layers, model.config.routing and not args.no_routing)
    return model.to(pick_device(args.device)), ways


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog='tar-vis eval', description=__doc__.split('\n\n')[0])
    made.add_argument('--data', type=user_path, required=True,
                      help="COCO JSON, images beside it; or YouTube-VIS JSON, frames in JPEGImages beside it")
    made.add_argument('--preset', default='nano')
    made.add_argument('--weights', type=user_path, help="safetensors file; the preset's packaged weights by default")
    made.add_argument('--adapter', type=user_path, help='safetensors file with TAR for weights without it')
    made.add_argument('--device', default='auto', help='auto, cpu or cuda:N')
    made.add_argument('--layers', type=int, nargs='*', default=[0, 1, 3, 6, 9], help='first k layers to evaluate')
    made.add_argument('--no-routing', action='store_true', help='leave out TAR and its controls')
    made.add_argument('--short-side', type=int, default=0, help="input size; 0 for the preset's")
    made.add_argument('--categories', nargs='+', help="stills: person by default, 'voc' for the 20 VOC classes; "
                                                      'videos: all by default')
    made.add_argument('--json', type=user_path, help='write the figures here, too')
    videos.add_options(made.add_argument_group('videos'))
    return made


def main(argv: list[str] | None = None) -> int:
    """``tar-vis eval --data FILE.json``."""
    args = parser().parse_args(argv)
    try:
        if holds_videos(read_labels(args.data)):
            return videos.run(args, open_decodings)
        records = load_coco(args.data, preload=False)
        names = labelled_categories(args.data, records, args.categories or ['person'])
        model, ways = open_decodings(args)
        if not set(names) & set(map(plain_name, model.config.class_names)):
            raise ValueError(f'the model knows none of the categories to evaluate ({", ".join(names)}), only '
                             f'{", ".join(model.config.class_names)}')
        rows = evaluate_routings(model, records, ways, args.short_side or model.config.short_side, names)
    except (TarVisError, ValueError) as error:
        print(f'tar-vis eval: {error}', file=sys.stderr)
        return 1
    print(f'\n{args.data.name}: {len(records)} images; {rows[-1].result.categories[0].name} masks, percent')
    print(f'{"decoding":<20}{"layers":>8}{"AP":>8}{"AP50":>8}{"AP75":>8}{"small":>8}{"medium":>8}{"large":>8}'
          f'{"R50: small":>12}{"medium":>8}{"large":>8}')
    for row in rows:
        first = row.result.categories[0]
        cells = (first.ap, first.ap50, first.ap75, first.small, first.medium, first.large)
        recalls = (first.recall50_small, first.recall50_medium, first.recall50_large)
        print(f'{row.name:<20}{row.executed:>8.2f}' + ''.join(f'{100 * v:>8.1f}' for v in cells) + ' ' * 4
              + ''.join(f'{100 * v:>8.1f}' for v in recalls))
    if len(rows[-1].result.categories) > 1:
        for row in rows:
            print(f'\n{row.name}\n{row.result}')
    if args.json:
        write_text(args.json, json.dumps([asdict(row) for row in rows], indent=1) + '\n')
        print(f'figures: {args.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
