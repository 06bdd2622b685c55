"""Score the recorded answers of one bag: by image, as tubes, and against the ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rclpy.serialization import deserialize_message

from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.errors import DataError
from tar_vis_core.evaluation.identity_measures import MATCH, overlaps
from tar_vis_core.evaluation.results_json import write_results
from tar_vis_core.evaluation.tubes import TrackTubes, TubePrediction, is_evaluated
from tar_vis_core.instances import FrameResult, TrackStatus
from tar_vis_core.media.recording import finite_or_none
from tar_vis_core.models.class_sets import plain_name
from tar_vis_core.runtime.assignment import linear_sum_assignment
from tar_vis_ros.bags.reader import read_topics
from tar_vis_ros.conversions.messages import decode_result
from tar_vis_ros.msg import InstanceMaskArray, SkipDiagnostics
from tar_vis_ros.replay.outcome import ANSWERS, RESULTS, BagOutcome
from tar_vis_ros.replay.proof import answer_sha256, answers_sha256
from tar_vis_ros.replay.truth import Truth

WORST = 12      # images named as the worst ones


def recorded_answers(folder: Path, order: Sequence[int]) -> Iterator[tuple[int, FrameResult, SkipDiagnostics]]:
    """Yield the recorded answers with the image of each; ``order`` names the images of the answers."""
    halves: dict[type, list] = {InstanceMaskArray: [], SkipDiagnostics: []}
    number = 0
    for topic, cdr in read_topics(folder / ANSWERS):
        kind = InstanceMaskArray if topic.endswith('/instances') else SkipDiagnostics
        halves[kind].append(deserialize_message(cdr, kind))
        while all(halves.values()):
            instances, diagnostics = (waiting.pop(0) for waiting in halves.values())
            yield order[number], decode_result(instances, diagnostics), diagnostics
            number += 1


def score_answers(outcome: BagOutcome, folder: Path, order: Sequence[int], truth: Truth | None, number: int) -> None:
    """Complete the outcome from the recorded answers, and write RESULTS.

    ``number`` is the bag's video id if there is no ground truth. Raise DataError if the truth is of images of
    another size, or of none of these.
    """
    gathered, classes = TrackTubes(), {}
    for image in outcome.frames:
        image.frame = truth.frame(image.index, image.stamp_ns) if truth else image.index
    if all(image.frame < 0 for image in outcome.frames):
        raise DataError(f'{truth.path}: none of its stamps is that of an image of {outcome.path}')
    size, first_epoch = [truth.record.width, truth.record.height] if truth else [], None
    for index, result, diagnostics in recorded_answers(folder, order) if order else ():
        image, visible = outcome.frames[index], [i for i in result.instances if i.status != TrackStatus.LOST]
        image.latency_ms, image.step_ms = finite_or_none(diagnostics.latency_ms), finite_or_none(result.times.total)
        image.executed, image.frame_mse = list(result.routing.executed), finite_or_none(result.frame_mse)
        image.dropped, image.reset_reason, image.instances = (
            diagnostics.frames_dropped, result.reset_reason, len(visible))
        first_epoch = result.track_epoch if first_epoch is None else first_epoch
        image.answer = answer_sha256(result, first_epoch)
        classes |= {i.class_id + 1: i.class_name for i in visible}
        outcome.size = outcome.size or [result.width, result.height]
        size = size or outcome.size
        if size == [result.width, result.height]:
            if image.frame >= 0:
                gathered.add(image.frame, result)
        elif truth:
            raise DataError(f'{truth.path}: video {truth.record.name} is of {size[0]}x{size[1]} pixels, image {index} '
                            f'of {outcome.path} of {result.width}x{result.height}')
    outcome.answers_sha256 = answers_sha256(outcome.frames)
    outcome.categories = truth.categories if truth else classes
    outcome.video_id = truth.record.id if truth else number
    names = {plain_name(name): name for name in outcome.categories.values()}
    tubes = [TubePrediction(outcome.video_id, names[plain_name(label)], score, rles)
             for label, score, rles in gathered.tubes(len(truth.record.paths) if truth else len(outcome.frames))
             if plain_name(label) in names]
    write_results(folder / RESULTS, tubes, outcome.categories)
    if truth:
        outcome.truth, quality = str(truth.path), frame_quality(truth.record, tubes)
        for image in outcome.frames:
            image.quality = finite_or_none(quality[image.frame]) if image.frame >= 0 else None
    outcome.worst = worst_images(outcome)


def worst_images(outcome: BagOutcome) -> list[int]:
    """Return the answered images of the lowest quality, or without ground truth those of the longest latency."""
    judged = [image for image in outcome.frames if image.answered and (image.quality is not None or not outcome.truth)]
    by_quality = sorted(judged, key=lambda image: image.quality if outcome.truth else -(image.latency_ms or 0.0))
    return [image.index for image in by_quality[:WORST]]


def frame_quality(record: VideoRecord, tubes: Sequence[TubePrediction]) -> np.ndarray:
    """Return the quality of each frame ``(frames,)``, 0..1: the IoU of its matched masks over all masks of both sides.

    Masks match by class if their IoU is at least one half. A matched pair counts once. The quality is 1 if nothing is
    labelled and nothing is predicted. If not everything is labelled, a mask that matches nothing does not count.
    """
    frames = len(record.paths)
    good, masks = np.zeros(frames), np.zeros(frames)
    for name in {track.category for track in record.tracks} | {tube.category for tube in tubes}:
        if not is_evaluated(record, name):
            continue
        labelled = [track.rles for track in record.tracks if track.category == name and not track.crowd]
        ious, seen, shown = overlaps(labelled, [tube.rles for tube in tubes if tube.category == name], frames)
        for t, frame in enumerate(ious):
            fits = np.where(frame >= MATCH, frame, 0)
            rows, columns = linear_sum_assignment(-fits)
            found = fits[rows, columns]
            matches = np.count_nonzero(found)
            good[t] += found.sum()
            masks[t] += seen[t].sum() + (shown[t].sum() - matches if record.exhaustive else 0)
    return np.divide(good, masks, out=np.ones(frames), where=masks > 0)
