"""Run models on labelled videos: tubes of every decoding, their average precision, identities, layers.

A model that names classes itself has one object a slot of its tracker, whose classes and scores hold for the whole
video (``slots``, the published protocol). A model whose slots follow objects only roughly has the tracks that users
get from the segmenter (``tracks``), scored by the mean over the frames that show them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from tqdm import tqdm

from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.evaluation.decodings import Decoding
from tar_vis_core.evaluation.identity_measures import MATCH, IdentityMeasures, identity_measures
from tar_vis_core.evaluation.track_iou import TrackIoU, track_ious
from tar_vis_core.evaluation.tubes import TrackTubes, TubePrediction
from tar_vis_core.evaluation.whole_video import segment_video
from tar_vis_core.evaluation.ytvis_ap import TITLES, VideoResult, evaluate_tubes, table_cells
from tar_vis_core.masks import MaskGeometry
from tar_vis_core.models.class_sets import plain_name
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.presets import ModelConfig
from tar_vis_core.models.seeing_routers import Past
from tar_vis_core.models.tracked import Tracked, stacked
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.preprocess import prepare
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.tracking.tracker import make_tracker


@dataclass(frozen=True)
class VideoRow:
    """One decoding and its results."""

    name: str
    executed: list[np.ndarray]           # a video each: (frames, layers) bool
    predictions: list[TubePrediction]
    ap: VideoResult
    identities: IdentityMeasures
    objects: list[TrackIoU]              # how well each labelled object is followed, by tracks of any name

    @property
    def executed_layers(self) -> float:
        """Return the mean number of layers per frame, NaN if the predictions come from a file."""
        return float(np.concatenate(self.executed).sum(1).mean()) if self.executed else float('nan')


@dataclass(frozen=True)
class EncodedPicture:
    """A picture, encoded once for all decodings."""

    image: np.ndarray        # (H, W, 3) uint8 RGB
    features: Features
    geometry: MaskGeometry


def published_instances(config: ModelConfig) -> int:
    """Return how many predictions a video the published configuration of a model gives."""
    on_ovis = config.family in ('dvis', 'dvispp') and config.class_set == 'ovis'
    return 20 if config.family == 'dvis_daq' or on_ovis else 10


class SlotFollower:
    """One decoding of one video, frame by frame; classes and scores at its end (``whole_video``)."""

    def __init__(self, model: VideoInstanceModel, decoding: Decoding, tracker: str, max_instances: int):
        self.names, self.decoding = model.config.class_names, decoding
        self.max_instances = max_instances or published_instances(model.config)
        name = model.config.tracker if tracker == 'auto' else tracker
        # the memory bank's masks count in its scores (CTVIS)
        self.tracker, self.by_mask = make_tracker(name, model), name == 'memory_bank'
        self.previous = self.memory = self.geometry = None
        self.tracked: list[Tracked] = []
        self.mask_features: list[Tensor] = []
        self.executed: list[tuple[bool, ...]] = []

    def step(self, frame: EncodedPicture) -> None:
        """Take the next frame."""
        out = self.decoding(frame.features, self.previous)
        tracked, self.memory = self.tracker.track(out, frame.features.mask_features, self.memory)
        self.previous, self.geometry = out.past, frame.geometry
        self.tracked.append(tracked)
        self.mask_features.append(frame.features.mask_features[0])     # the same memory for all decodings
        self.executed.append(out.trace.executed)

    def tubes(self) -> Iterable[tuple[str, float, list[dict | None]]]:
        """Yield class name, score and run lengths of each prediction."""
        video = segment_video(stacked(self.tracked), self.mask_features, self.geometry, self.max_instances,
                              encode_masks)
        scores = video.scores * video.mask_scores if self.by_mask else video.scores
        for k, (score, label) in enumerate(zip(scores.tolist(), video.labels.tolist(), strict=True)):
            yield self.names[label], score, [rles[k] for rles in video.masks]


def encode_masks(masks: Tensor) -> list[dict | None]:
    """Return the run lengths of boolean masks ``(K, H, W)``, None for an empty one."""
    columns = masks.transpose(1, 2).contiguous().cpu().numpy().astype(np.uint8)      # pycocotools goes down columns
    return [rle if mask.any() else None for rle, mask in zip(coco_mask.encode(columns.T), columns, strict=True)]


class ModelOfOneDecoding:
    """A model as the segmenter sees it, with features that were made before and one decoding."""

    def __init__(self, model: VideoInstanceModel, decoding: Decoding):
        self.config, self.pixel_mean, self.prepare = model.config, model.pixel_mean, model.prepare
        self.decoding = decoding
        self.features: Features | None = None
        self.executed: list[tuple[bool, ...]] = []

    def encode(self, images: Tensor) -> Features:
        return self.features

    def decode(self, features: Features, previous: Past | None, *_) -> DecoderOutput:
        return self.decoding(features, previous)


class TrackFollower:
    """One decoding of one video with the segmenter's own online tracks."""

    def __init__(self, model: VideoInstanceModel, decoding: Decoding, tracker: str, options: SegmenterOptions):
        self.segmenter = VideoSegmenter.from_model(model, str(model.pixel_mean.device), options=options,
                                                   tracker=tracker)
        self.segmenter.model = self.model = ModelOfOneDecoding(model, decoding)
        self.state = self.segmenter.new_state()
        self.tracks = TrackTubes()
        self.executed: list[tuple[bool, ...]] = []

    def step(self, frame: EncodedPicture) -> None:
        """Take the next frame."""
        self.model.features = frame.features
        result = self.segmenter.step(frame.image, self.state)
        self.tracks.add(len(self.executed), result)
        self.executed.append(result.routing.executed)

    def tubes(self) -> Iterable[tuple[str, float, list[dict | None]]]:
        """Yield class name, score and run lengths of each track."""
        return self.tracks.tubes(len(self.executed))


@torch.inference_mode()
def evaluate_videos(model: VideoInstanceModel, records: Sequence[VideoRecord], decodings: Mapping[str, Decoding],
                    *, categories: Sequence[str] | None = None, tracker: str = 'auto',
                    short_side: int = 0, max_instances: int = 0, options: SegmenterOptions | None = None,
                    min_score: float | None = None, progress: bool = True) -> list[VideoRow]:
    """Run a model through videos by each decoding (see ``evaluation.decodings``), frames encoded once for all.

    The model stays on its device and is left in evaluation mode. For one video at a time, its mask features at stride 4
    and the decoder's outputs are kept in memory.

    Args:
        model: the model.
        records: the labelled videos.
        decodings: by name; see ``decodings``.
        categories: the data's names; None: those that are labelled. Classes are matched by name, and predictions of
            others are left out.
        tracker: 'auto' for the model's own, or another.
        short_side: of the network's input, pixels; 0: the preset's.
        max_instances: slots: predictions a video; 0: as published.
        options: of the segmenter, for tracks.
        min_score: score that a tube needs for identity measures; None: one half for slots, 0 for tracks.
        progress: show a bar.

    Raises:
        ValueError: if model, data and choices do not fit, or if scores are not finite.
    """
    config = model.eval().config
    by_track = config.tracker == 'motion'       # slots are never refreshed
    if categories is None:
        categories = sorted({track.category for record in records for track in record.tracks})
    known = {plain_name(name): name for name in categories}
    if not known.keys() & map(plain_name, config.class_names):
        raise ValueError(f'the model knows none of the categories of the data ({", ".join(categories)}), only '
                         f'{", ".join(config.class_names)}')
    if min_score is None:
        min_score = 0 if by_track else MATCH
    options = replace(options or SegmenterOptions(), input_short_side=short_side)
    found: dict[str, list[TubePrediction]] = {name: [] for name in decodings}
    executed: dict[str, list[np.ndarray]] = {name: [] for name in decodings}
    for record in tqdm(records, desc='videos', unit='video', disable=not progress):
        followers = {name: TrackFollower(model, decoding, tracker, options) if by_track
                     else SlotFollower(model, decoding, tracker, max_instances) for name, decoding in decodings.items()}
        for image in record.frames():
            frame = encode_picture(model, image, short_side or config.short_side)
            for follower in followers.values():
                follower.step(frame)
        for name, follower in followers.items():
            found[name] += [TubePrediction(record.id, known.get(plain_name(label), label), score, rles)
                            for label, score, rles in follower.tubes()]
            executed[name].append(np.array(follower.executed))
    return [score_row(name, records, found[name], executed[name], min_score, categories) for name in decodings]


def encode_picture(model: VideoInstanceModel, image: np.ndarray, short_side: int) -> EncodedPicture:
    """Run the image encoder on a picture ``(H, W, 3)``."""
    images, geometry = prepare(model, image, short_side)
    return EncodedPicture(image, model.encode(images), geometry)


def score_row(name: str, records: Sequence[VideoRecord], predictions: list[TubePrediction],
              executed: list[np.ndarray], min_score: float, categories: Sequence[str] | None) -> VideoRow:
    """Return the figures of one set of predictions. Other categories count for the objects' IoU only."""
    counted = [p for p in predictions if categories is None or p.category in categories]
    return VideoRow(name, executed, counted, evaluate_tubes(records, counted, categories),
                    identity_measures(records, counted, min_score, categories), track_ious(records, predictions))


def as_table(rows: Sequence[VideoRow]) -> str:
    """Return a text table, one line for each decoding: layers, the metric's means in percent, HOTA, IDF1, switches."""
    lines = [f'{"decoding":<20}{"layers":>8}' + ''.join(f'{title:>8}' for title in TITLES.values())
             + f'{"HOTA":>8}{"IDF1":>8}{"switches":>10}']
    for row in rows:
        layers = f'{row.executed_layers:>8.2f}' if row.executed else f'{"-":>8}'
        identity = row.identities
        lines.append(f'{row.name:<20}{layers}{table_cells(row.ap.mean)}{100 * identity.hota:>8.1f}'
                     f'{100 * identity.idf1:>8.1f}{identity.switches:>10}')
    return '\n'.join(lines)


def as_figures(row: VideoRow) -> dict:
    """Return a row for JSON, without masks."""
    return {'name': row.name, 'executed': row.executed_layers, 'mean': asdict(row.ap.mean),
            'categories': [asdict(c) for c in row.ap.categories], 'identities': asdict(row.identities),
            'objects': [asdict(o) for o in row.objects]}
