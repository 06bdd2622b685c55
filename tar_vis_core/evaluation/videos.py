"""Models on labelled videos: tubes of every way of decoding, their average precision, identities, executed layers.

A model that names classes itself has one object a slot of its tracker, whose classes and scores hold for the whole
video (``slots``, the published protocol). A model whose objects are named by semantics has the tracks that users
get from the segmenter (``tracks``), scored by the mean over the frames that show them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from tqdm import tqdm

from tar_vis_core.data.ytvis import VideoRecord, load_ytvis
from tar_vis_core.errors import DataError
from tar_vis_core.evaluation.identity_measures import MATCH, IdentityMeasures, identity_measures
from tar_vis_core.evaluation.results_json import categories_of, read_results, write_results
from tar_vis_core.evaluation.track_iou import TrackIoU, track_ious
from tar_vis_core.evaluation.track_iou import as_table as object_table
from tar_vis_core.evaluation.tubes import TrackTubes, TubePrediction
from tar_vis_core.evaluation.whole_video import segment_video
from tar_vis_core.evaluation.ytvis_ap import TITLES, VideoResult, cells, evaluate_tubes
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import write_text
from tar_vis_core.masks import MaskGeometry
from tar_vis_core.models.class_sets import plain_name
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.presets import TRACKERS, ModelConfig
from tar_vis_core.models.tracked import Tracked, stacked
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.preprocess import prepare
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.tracking.tracker import make_tracker

OBJECT_LINES = 20       # labelled objects, at most, of which each has a line of its own in what is printed
Way = Callable[[Features, Tensor | None], DecoderOutput]   # features, the way's own queries of the frame before


@dataclass(frozen=True)
class VideoRow:
    """One way of decoding and what it gave."""

    name: str
    executed: list[np.ndarray]           # a video each: (frames, layers) bool
    predictions: list[TubePrediction]
    ap: VideoResult
    identities: IdentityMeasures
    objects: list[TrackIoU]              # how well each labelled object is followed, by tracks of any name

    @property
    def executed_layers(self) -> float:
        """Layers per frame, mean; NaN where the predictions come from a file."""
        return float(np.concatenate(self.executed).sum(1).mean()) if self.executed else float('nan')


@dataclass(frozen=True)
class Frame:
    """A picture, encoded once for all ways."""

    image: np.ndarray        # (H, W, 3) uint8 RGB
    features: Features
    geometry: MaskGeometry


def published_instances(config: ModelConfig) -> int:
    """Return how many predictions a video the published configuration of a model gives."""
    on_ovis = config.family in ('dvis', 'dvispp') and config.class_set == 'ovis'
    return 20 if config.family == 'dvis_daq' or on_ovis else 10


class SlotFollower:
    """One way through one video, frame by frame; classes and scores at its end (``whole_video``)."""

    def __init__(self, model: VideoInstanceModel, way: Way, tracker: str, max_instances: int):
        self.names, self.way = model.config.class_names, way
        self.max_instances = max_instances or published_instances(model.config)
        name = model.config.tracker if tracker == 'auto' else tracker
        # the memory bank's masks count in its scores (CTVIS)
        self.tracker, self.by_mask = make_tracker(name, model), name == 'memory_bank'
        self.previous = self.memory = self.geometry = None
        self.tracked: list[Tracked] = []
        self.mask_features: list[Tensor] = []
        self.executed: list[tuple[bool, ...]] = []

    def step(self, frame: Frame) -> None:
        """The next frame."""
        out = self.way(frame.features, self.previous)
        tracked, self.memory = self.tracker.track(out, frame.features.mask_features, self.memory)
        self.previous, self.geometry = out.queries, frame.geometry
        self.tracked.append(tracked)
        self.mask_features.append(frame.features.mask_features[0])     # the same memory for all ways
        self.executed.append(out.trace.executed)

    def tubes(self) -> Iterable[tuple[str, float, list[dict | None]]]:
        """Class name, score and run lengths of each prediction."""
        video = segment_video(stacked(self.tracked), self.mask_features, self.geometry, self.max_instances,
                              encode_masks)
        scores = video.scores * video.mask_scores if self.by_mask else video.scores
        for k, (score, label) in enumerate(zip(scores.tolist(), video.labels.tolist(), strict=True)):
            yield self.names[label], score, [rles[k] for rles in video.masks]


def encode_masks(masks: Tensor) -> list[dict | None]:
    """Run lengths of boolean masks ``(K, H, W)``, None for an empty one."""
    columns = masks.transpose(1, 2).contiguous().cpu().numpy().astype(np.uint8)      # pycocotools goes down columns
    return [rle if mask.any() else None for rle, mask in zip(coco_mask.encode(columns.T), columns, strict=True)]


class OneWay:
    """A model as the segmenter sees it, with features that were made before and one way of decoding them."""

    def __init__(self, model: VideoInstanceModel, way: Way):
        self.config, self.pixel_mean, self.prepare, self.way = model.config, model.pixel_mean, model.prepare, way
        self.features: Features | None = None
        self.executed: list[tuple[bool, ...]] = []

    def encode(self, images: Tensor) -> Features:
        return self.features

    def decode(self, features: Features, previous: Tensor | None, *_) -> DecoderOutput:
        return self.way(features, previous)


class TrackFollower:
    """One way through one video with the segmenter's own online tracks."""

    def __init__(self, model: VideoInstanceModel, way: Way, tracker: str, options: SegmenterOptions):
        self.segmenter = VideoSegmenter.from_model(model, str(model.pixel_mean.device), options=options,
                                                   tracker=tracker)
        self.segmenter.model = self.model = OneWay(model, way)
        self.state = self.segmenter.new_state()
        self.tracks = TrackTubes()
        self.executed: list[tuple[bool, ...]] = []

    def step(self, frame: Frame) -> None:
        """The next frame."""
        self.model.features = frame.features
        result = self.segmenter.step(frame.image, self.state)
        self.tracks.add(len(self.executed), result)
        self.executed.append(result.routing.executed)

    def tubes(self) -> Iterable[tuple[str, float, list[dict | None]]]:
        """Class name, score and run lengths of each track."""
        return self.tracks.tubes(len(self.executed))


@torch.inference_mode()
def evaluate_videos(model: VideoInstanceModel, records: Sequence[VideoRecord], ways: Mapping[str, Way],
                    tubes: str = 'auto', *, categories: Sequence[str] | None = None, tracker: str = 'auto',
                    short_side: int = 0, max_instances: int = 0, options: SegmenterOptions | None = None,
                    min_score: float | None = None, progress: bool = True) -> list[VideoRow]:
    """Run a model through videos by each way of decoding (see ``evaluate.ways_of``), frames encoded once for all.

    The model is used where it is and left in evaluation mode. ``tubes`` is 'slots', 'tracks', or 'auto' by the model.
    ``categories`` are the data's names (default: those that are labelled); classes are matched by name, and
    predictions of others are left out. Slots are never refreshed; ``options`` are the segmenter's, for tracks.
    Identities are measured on tubes of ``min_score`` (default: one half for slots, 0 for tracks). Kept in memory for
    one video at a time: its mask features at stride 4, and the decoder's outputs.
    Raises ValueError where model, data and choices do not fit, or scores are not finite.
    """
    config = model.eval().config
    if tubes not in ('auto', 'slots', 'tracks'):
        raise ValueError(f"tubes is {tubes!r}, expected 'auto', 'slots' or 'tracks'")
    by_track = config.semantic_classes if tubes == 'auto' else tubes == 'tracks'
    if config.semantic_classes and not by_track:
        raise ValueError("tubes is 'slots', but this model's decoder does not name classes; use 'tracks'")
    if categories is None:
        categories = sorted({track.category for record in records for track in record.tracks})
    known = {plain_name(name): name for name in categories}
    if not known.keys() & map(plain_name, config.class_names):
        raise ValueError(f'the model knows none of the categories of the data ({", ".join(categories)}), only '
                         f'{", ".join(config.class_names)}')
    if min_score is None:
        min_score = 0 if by_track else MATCH
    options = replace(options or SegmenterOptions(), input_short_side=short_side)
    found: dict[str, list[TubePrediction]] = {name: [] for name in ways}
    executed: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    for record in tqdm(records, desc='videos', unit='video', disable=not progress):
        followers = {name: TrackFollower(model, way, tracker, options) if by_track
                     else SlotFollower(model, way, tracker, max_instances) for name, way in ways.items()}
        for image in record.frames():
            frame = encode(model, image, short_side or config.short_side)
            for follower in followers.values():
                follower.step(frame)
        for name, follower in followers.items():
            found[name] += [TubePrediction(record.id, known.get(plain_name(label), label), score, rles)
                            for label, score, rles in follower.tubes()]
            executed[name].append(np.array(follower.executed))
    return [score_row(name, records, found[name], executed[name], min_score, categories) for name in ways]


def encode(model: VideoInstanceModel, image: np.ndarray, short_side: int) -> Frame:
    """A picture ``(H, W, 3)`` through the image encoder."""
    images, geometry = prepare(model, image, short_side)
    return Frame(image, model.encode(images), geometry)


def score_row(name: str, records: Sequence[VideoRecord], predictions: list[TubePrediction],
              executed: list[np.ndarray], min_score: float, categories: Sequence[str] | None) -> VideoRow:
    """The figures of one set of predictions; those of other categories are left out but for the objects' IoU."""
    counted = [p for p in predictions if categories is None or p.category in categories]
    return VideoRow(name, executed, counted, evaluate_tubes(records, counted, categories),
                    identity_measures(records, counted, min_score, categories), track_ious(records, predictions))


def as_table(rows: Sequence[VideoRow]) -> str:
    """A text table, a way a line: layers, the metric's means in percent, HOTA, IDF1, identity switches."""
    lines = [f'{"decoding":<20}{"layers":>8}' + ''.join(f'{title:>8}' for title in TITLES.values())
             + f'{"HOTA":>8}{"IDF1":>8}{"switches":>10}']
    for row in rows:
        layers = f'{row.executed_layers:>8.2f}' if row.executed else f'{"-":>8}'
        identity = row.identities
        lines.append(f'{row.name:<20}{layers}{cells(row.ap.mean)}{100 * identity.hota:>8.1f}'
                     f'{100 * identity.idf1:>8.1f}{identity.switches:>10}')
    return '\n'.join(lines)


def as_figures(row: VideoRow) -> dict:
    """A row for JSON, without masks."""
    return {'name': row.name, 'executed': row.executed_layers, 'mean': asdict(row.ap.mean),
            'categories': [asdict(c) for c in row.ap.categories], 'identities': asdict(row.identities),
            'objects': [asdict(o) for o in row.objects]}


def add_options(group: argparse._ArgumentGroup) -> None:
    """The part of the command line that is for videos."""
    group.add_argument('--tubes', default='auto', help="slots (whole videos), tracks (the segmenter's); auto: by model")
    group.add_argument('--tracker', default='auto', help=f"auto (the model's own), {', '.join(TRACKERS)}")
    group.add_argument('--max-instances', type=int, default=0,
                       help='slots: predictions a video (default: 10; 20 for DVIS-DAQ, and DVIS, DVIS++ on OVIS)')
    group.add_argument('--score-threshold', type=float, default=SegmenterOptions.score_threshold,
                       help='tracks: score that a new track needs')
    group.add_argument('--min-score', type=float,
                       help='score that a tube needs for identity measures (default: 0.5; 0 for tracks)')
    group.add_argument('--results', type=user_path, help='evaluate this results.json (or zip) and run no model')
    group.add_argument('--out', type=user_path, help='write the predictions of each decoding to this folder')
    group.add_argument('--zip', action='store_true', help='zipped, as a server takes them')


def run(args: argparse.Namespace, prepare: Callable) -> int:
    """``tar-vis eval`` on videos; ``prepare`` makes the model and its ways of decoding."""
    records, categories = load_ytvis(args.data), categories_of(args.data)
    names = list(categories.values()) if args.categories is None else args.categories
    if unknown := set(names) - set(categories.values()):
        raise ValueError(f'--categories {", ".join(sorted(unknown))}: the data has {", ".join(categories.values())}')
    counts = Counter(track.category for record in records for track in record.tracks if not track.crowd)
    labelled = any(counts[name] for name in names)
    if not labelled and (args.results or not args.out):
        held = ', '.join(f'{name} ({number})' for name, number in counts.most_common(20)) or 'no object at all'
        raise DataError(f'{args.data}: nothing of {", ".join(names) or "no category"} is labelled here, so there is '
                        f'nothing to find; it has {held}. --out FOLDER writes predictions without figures')
    if args.results:
        predictions = read_results(args.results, records, categories)
        rows = [score_row(args.results.name, records, predictions, [],
                          MATCH if args.min_score is None else args.min_score, names)]
    else:
        model, ways = prepare(args)
        rows = evaluate_videos(model, records, ways, args.tubes, categories=names, tracker=args.tracker,
                               short_side=args.short_side, max_instances=args.max_instances,
                               options=SegmenterOptions(score_threshold=args.score_threshold), min_score=args.min_score)
    print(f'\n{args.data.name}: {len(records)} videos, {sum(len(r.tracks) for r in records)} labelled objects; percent')
    print(as_table(rows) if labelled else 'nothing is labelled: no figures')
    for row in rows if labelled else ():
        print(f'\n{row.name}\n{row.ap}\n{row.identities}')
        if len(row.objects) <= OBJECT_LINES:
            print(object_table(row.objects))
    if args.json:
        write_text(args.json, json.dumps([as_figures(row) for row in rows], indent=1) + '\n')
        print(f'figures: {args.json}')
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        for row in rows:
            path = args.out / (re.sub(r'\W+', '_', row.name) + ('.zip' if args.zip else '.json'))
            write_results(path, row.predictions, categories)
            print(f'predictions: {path}')
    return 0
