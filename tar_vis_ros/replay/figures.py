"""The figures of one replayed bag, or of several together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tar_vis_core.data.ytvis import VideoRecord, load_ytvis
from tar_vis_core.evaluation.identity_measures import identity_measures
from tar_vis_core.evaluation.results_json import read_results, write_results
from tar_vis_core.evaluation.tubes import TubePrediction
from tar_vis_core.evaluation.ytvis_ap import evaluate_tubes
from tar_vis_core.media.recording import finite_or_none
from tar_vis_ros.replay.outcome import RESULTS, BagOutcome, ImageOutcome
from tar_vis_ros.replay.truth import only_frames

Spread = dict[str, float | None]    # p50, p95, p99


@dataclass(frozen=True)
class Accuracy:
    """Accuracy against the ground truth, 0..1; None if nothing is labelled."""

    videos: int
    objects: int
    frames: int                 # labelled ones that were played
    ap: float | None
    ap50: float | None
    ar10: float | None
    hota: float | None
    idf1: float | None
    switches: int
    streaming_ap: float | None = None       # real time only: of what was known when each image was published
    streaming_ap50: float | None = None


@dataclass(frozen=True)
class Figures:
    """Counts and measurements; times are milliseconds."""

    images: int                 # published
    answered: int
    dropped: int                # published, but without an answer
    passed_over: int            # dropped images that the node itself reports
    sent_again: int
    resets: int
    layers: int
    executed_layers: float | None    # of ``layers``, mean over answers
    executed_share: list[float]      # of the answers, by layer
    latency_ms: Spread          # from the image's arrival at the node to its answer
    round_trip_ms: Spread       # from publishing to the answer, at the replay
    step_ms: Spread             # the model
    late_ms: Spread             # of publishing, real time only
    accuracy: Accuracy | None = field(default=None)


def figures(outcomes: Sequence[BagOutcome], accuracy: Accuracy | None) -> Figures:
    """Return the figures over all images of the outcomes."""
    images = [image for outcome in outcomes for image in outcome.frames]
    answers = [image for image in images if image.answered]
    layers = max((len(image.executed) for image in answers), default=0)
    executed = np.array([image.executed for image in answers if len(image.executed) == layers], float)
    return Figures(
        images=len(images), answered=len(answers), dropped=len(images) - len(answers),
        passed_over=sum(image.dropped for image in answers), sent_again=sum(image.sent - 1 for image in images),
        resets=sum(bool(image.reset_reason) for image in answers), layers=layers,
        executed_layers=finite_or_none(executed.sum(1).mean()) if answers else None,
        executed_share=[round(share, 4) for share in executed.mean(0).tolist()] if answers else [],
        **{name: percentiles([getattr(image, name) for image in images])
           for name in ('latency_ms', 'round_trip_ms', 'step_ms', 'late_ms')}, accuracy=accuracy)


def percentiles(values: Sequence[float | None]) -> Spread:
    """Return p50, p95 and p99 of the known values."""
    there = [value for value in values if value is not None]
    return {f'p{share}': finite_or_none(np.percentile(there, share)) if there else None for share in (50, 95, 99)}


def with_truth(outcomes: Mapping[Path, BagOutcome]) -> dict[Path, BagOutcome]:
    """Return the outcomes, by folder, that have a ground truth."""
    return {folder: outcome for folder, outcome in outcomes.items() if outcome.truth}


def accuracy(outcomes: Mapping[Path, BagOutcome]) -> Accuracy | None:
    """Return the accuracy of the outcomes with ground truth, over the frames that were played; None without any."""
    judged = with_truth(outcomes)
    records, predictions, known, names = [], [], [], {}
    for number, (folder, outcome) in enumerate(judged.items(), 1):
        record, tubes = read_predictions(folder, outcome)
        frames = sorted({f.frame for f in outcome.frames if f.frame >= 0})
        streamed = None if known is None else tubes_when_published(outcome.frames, tubes)
        known = None if streamed is None else known + [
            replace(tube, video_id=number) for tube in only_frames(record, streamed, frames)[1]]
        record, tubes = only_frames(record, tubes, frames)
        records.append(replace(record, id=number))      # unlike the ids of several files, never the same twice
        predictions += [replace(tube, video_id=number) for tube in tubes]
        names |= dict.fromkeys(outcome.categories.values())
    if not records:
        return None
    mean = evaluate_tubes(records, predictions, list(names)).mean
    identities = identity_measures(records, predictions, 0, list(names))
    streamed = None if known is None else evaluate_tubes(records, known, list(names)).mean
    streaming = () if streamed is None else map(finite_or_none, (streamed.ap, streamed.ap50))
    shares = (mean.ap, mean.ap50, mean.ar10, identities.hota, identities.idf1)
    return Accuracy(len(records), identities.objects, sum(len(record.paths) for record in records),
                    *map(finite_or_none, shares), identities.switches, *streaming)


def tubes_when_published(images: Sequence[ImageOutcome], tubes: Sequence[TubePrediction]
                         ) -> list[TubePrediction] | None:
    """Return the tubes as they were known when each image was published: those of the newest answer until then.

    That is the setting of streaming accuracy (Li et al., ECCV 2020): an answer that comes late is of an old picture.
    None if the images were not published in real time, or if some of them have no labels: the answers to those are
    not in the tubes.
    """
    if any(image.published_ms is None or image.frame < 0 for image in images):
        return None
    answers = sorted((image.published_ms + image.round_trip_ms, image.index) for image in images if image.answered)
    times = [time for time, _ in answers]
    newest = np.maximum.accumulate([index for _, index in answers]).tolist() if answers else []
    source = {}     # frame: the frame whose answer was known
    for image in images:
        if until := bisect_right(times, image.published_ms):
            source[image.frame] = images[newest[until - 1]].frame
    return [replace(tube, rles=[tube.rles[source[t]] if t in source else None for t in range(len(tube.rles))])
            for tube in tubes]


def read_predictions(folder: Path, outcome: BagOutcome) -> tuple[VideoRecord, list[TubePrediction]]:
    """Return a bag as a labelled video (without labels if there are none), and its predictions."""
    if outcome.truth:
        record = next(r for r in load_ytvis(outcome.truth, pictures=False) if r.id == outcome.video_id)
    else:
        width, height = outcome.size or (1, 1)
        record = VideoRecord(outcome.video_id, outcome.name, height, width, [Path()] * len(outcome.frames), True)
    return record, read_results(folder / RESULTS, [record], outcome.categories)


def merge_results(path: Path, outcomes: Mapping[Path, BagOutcome]) -> None:
    """Return the results of all bags as one file; if some bags have a ground truth, of those only.

    Video ids are those of the truth if they differ from each other, else the bags' numbers from 1.
    """
    chosen = with_truth(outcomes) or outcomes
    unique = len({outcome.video_id for outcome in chosen.values()}) == len(chosen)
    tubes, ids = [], {}
    for number, (folder, outcome) in enumerate(chosen.items(), 1):
        ids |= {name: i for i, name in outcome.categories.items() if name not in ids}
        for tube in read_predictions(folder, outcome)[1] if outcome.frames else ():
            tubes.append(tube if unique else replace(tube, video_id=number))
    write_results(path, tubes, {i: name for name, i in ids.items()})
