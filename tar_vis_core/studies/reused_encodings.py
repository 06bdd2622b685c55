"""Savings and costs of reusing the image encoder's features while the picture stands still."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from tqdm import tqdm

from tar_vis_core.data.ytvis import Track, VideoRecord
from tar_vis_core.encoder_reuse import MAX_REUSED
from tar_vis_core.evaluation.identity_measures import identity_measures, overlaps
from tar_vis_core.evaluation.tubes import TrackTubes, TubePrediction
from tar_vis_core.evaluation.videos import score_row
from tar_vis_core.media.frames import open_frames, play
from tar_vis_core.models.class_sets import plain_name
from tar_vis_core.models.packed import inference_form
from tar_vis_core.options import option
from tar_vis_core.runtime.assignment import linear_sum_assignment
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.studies.bootstrap import Precision, Row, resamples, spread
from tar_vis_core.studies.inputs import StudyInputs, inputs_text, machine_text, open_model, open_videos
from tar_vis_core.studies.report import write_report


@dataclass
class BoundRun:
    """All videos of a row by one bound; arrays are a video each, ``(frames,)``."""

    bound: float
    reused: list[np.ndarray] = field(default_factory=list)
    ms: list[np.ndarray] = field(default_factory=list)
    tubes: list[TubePrediction] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ReuseStudy(StudyInputs):
    """Encoder features reused while the picture stands still (not of the paper)."""

    bounds: tuple[float, ...] = option((4.0, 8.0, 16.0), 'of encoder_reuse, grey levels, beside off', low=0, high=255)
    clips: tuple[str, ...] = option((), 'video files without labels, instead of the videos')
    width: int = option(640, 'clips: pixels; 0: as they are', low=0)
    first: int = option(0, 'clips: frames to leave out before', low=0)
    clip_frames: int = option(0, 'clips: how many then; 0: all', low=0)
    score_threshold: float = option(SegmenterOptions.score_threshold, 'score that a new track needs', low=0, high=1)
    resamples: int = option(1000, 'bootstrap samples', low=1)


def clip_frames(path: str, asked: ReuseStudy) -> Iterator[np.ndarray]:
    """Return the frames of a clip that were asked for, uint8 RGB."""
    with open_frames(path) as reader:
        for frame in play(reader, limit=asked.first + asked.clip_frames if asked.clip_frames else 0, width=asked.width):
            if frame.index >= asked.first:
                yield frame.image


def run_video(segmenter: VideoSegmenter, images: Iterator[np.ndarray], video: int, runs: Sequence[BoundRun]
              ) -> tuple[int, int, int]:
    """Run every frame of a video with each bound in turn, each with its own state; add the results to ``runs``.

    Return the number of frames and their size (height, width), zeros if there is none.
    """
    options, frames, size = segmenter.options, 0, (0, 0)
    states, tracks = [segmenter.new_state() for _ in runs], [TrackTubes() for _ in runs]
    seen: list[list[tuple[bool, float]]] = [[] for _ in runs]
    for frames, image in enumerate(tqdm(images, unit='frame', desc=f'video {video}', leave=False), 1):
        size = image.shape[:2]
        for k in np.roll(range(len(runs)), frames):         # none always finds the warmer cache
            segmenter.options = replace(options, encoder_reuse=runs[k].bound)
            result = segmenter.step(image, states[k])
            tracks[k].add(frames - 1, result)
            seen[k].append((result.encoder_reused, result.times.total))
    segmenter.options = options
    for run, track, numbers in zip(runs, tracks, seen, strict=True):
        reused, ms = np.array(numbers, float).reshape(-1, 2).T
        run.reused.append(reused.astype(bool))
        run.ms.append(ms)
        run.tubes += [TubePrediction(video, *tube) for tube in track.tubes(frames)]
    return frames, *size


def mask_agreement(expected: Sequence[TubePrediction], given: Sequence[TubePrediction], frames: int) -> np.ndarray:
    """Return the mask IoU by frame, ``(frames,)``: the mean over the masks of both sides.

    Masks are paired one to one for the greatest sum; a mask without a partner counts 0. NaN if neither shows
    anything."""
    ious, seen, shown = overlaps([t.rles for t in expected], [t.rles for t in given], frames)
    means = np.full(frames, np.nan)
    for t, frame in enumerate(ious):
        if most := max(seen[t].sum(), shown[t].sum()):
            means[t] = frame[linear_sum_assignment(-frame)].sum() / most
    return means


def without_truth(run: BoundRun, off: BoundRun, records: Sequence[VideoRecord]) -> Row:
    """Compare a bound with the run that encodes every frame, whose tracks count as true."""
    values, truth = [], []
    for record in records:
        expected, given = ([t for t in r.tubes if t.video_id == record.id] for r in (off, run))
        values.append(mask_agreement(expected, given, len(record.paths)))
        truth.append(replace(record, tracks=[Track(k, t.category, t.rles) for k, t in enumerate(expected)]))
    iou, reused = np.concatenate(values), np.concatenate(run.reused)
    return {'IoU with off': 100 * mean(iou), 'IoU where reused': 100 * mean(iou[reused]), 'tracks': len(run.tubes),
            'IDF1 with off': 100 * identity_measures(truth, run.tubes, 0).idf1}


def mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float('nan')


def with_truth(runs: Sequence[BoundRun], records: Sequence[VideoRecord], samples: np.ndarray) -> list[Row]:
    """Compare each bound with labels. AP is over all videos, its interval over bootstrap samples of them."""
    names = sorted({track.category for record in records for track in record.tracks})
    known, rows, off = {plain_name(name): name for name in names}, [], None
    for run in runs:
        tubes = [replace(tube, category=known.get(plain_name(tube.category), tube.category)) for tube in run.tubes]
        row = score_row('', records, tubes, [], 0, names)
        precision = Precision(records, row.predictions)
        ap = np.array([100 * precision(chosen) for chosen in [np.arange(len(records)), *samples]])
        off = ap if off is None else off
        rows.append({**spread('AP', ap), **spread('AP less off', ap - off), 'AP50': 100 * row.ap.mean.ap50,
                     'switches': row.identities.switches,
                     'IoU by object': 100 * float(np.mean([o.track for o in row.objects]))})
    return rows


def step_times(run: BoundRun) -> Row:
    """Return how often the encoder was spared, and milliseconds of the step."""
    ms, reused = np.concatenate(run.ms), np.concatenate(run.reused)

    def median(chosen: np.ndarray) -> float:
        return float(np.median(ms[chosen])) if chosen.any() else float('nan')

    return {'bound': f'{run.bound:g}' if run.bound else 'off', 'percent reused': 100 * float(reused.mean()),
            'mean ms': float(ms.mean()), 'median encoded': median(~reused), 'median reused': median(reused)}


def clip_rows(segmenter: VideoSegmenter, asked: ReuseStudy) -> list[Row]:
    """Return rows of each clip, which has no truth."""
    rows = []
    for number, path in enumerate(asked.clips):
        runs = [BoundRun(bound) for bound in (0.0, *asked.bounds)]
        frames, height, width = run_video(segmenter, clip_frames(path, asked), number, runs)
        if not frames:
            raise ValueError(f'{path}: no frame comes after the first {asked.first}')
        record = VideoRecord(number, Path(path).stem, height, width, [Path(path)] * frames, True)
        rows += [{'video': record.name, **step_times(r), **without_truth(r, runs[0], [record])} for r in runs]
    return rows


def labelled_rows(segmenter: VideoSegmenter, records: Sequence[VideoRecord], asked: ReuseStudy) -> list[Row]:
    """Return rows of labelled videos, all together."""
    runs = [BoundRun(bound) for bound in (0.0, *asked.bounds)]
    for record in records:
        run_video(segmenter, record.frames(), record.id, runs)
    judged = with_truth(runs, records, resamples(len(records), asked.resamples))
    return [{'video': 'all', **step_times(r), **row, **without_truth(r, runs[0], records)}
            for r, row in zip(runs, judged, strict=True)]


def run(asked: ReuseStudy) -> None:
    """Run ``tar-vis study still``."""
    model = open_model(asked)
    segmenter = VideoSegmenter.from_model(
        inference_form(model, model.pixel_mean.device), asked.device,
        options=SegmenterOptions(score_threshold=asked.score_threshold))
    segmenter.warm_up(480, 640)
    records = [] if asked.clips else open_videos(asked)
    rows = clip_rows(segmenter, asked) if asked.clips else labelled_rows(segmenter, records, asked)
    accuracy = 'IoU with off' if asked.clips else 'AP'

    def draw(axes: Axes) -> None:
        for video in dict.fromkeys(row['video'] for row in rows):
            own = [row for row in rows if row['video'] == video]
            axes.plot([r['mean ms'] / own[0]['mean ms'] for r in own], [r[accuracy] for r in own], 'o-', label=video)
            for row in own:
                axes.annotate(f' {row["bound"]}', (row['mean ms'] / own[0]['mean ms'], row[accuracy]), fontsize=8)
        axes.set_xlabel('mean time of a step, as a part of that with every frame encoded')
        axes.set_ylabel(f'{accuracy}, percent')
        axes.legend(fontsize=8, title='by bound, grey levels', title_fontsize=8)

    write_report(asked.out, 'Features of an earlier picture while it stands still', rows, [
        inputs_text(asked, records) if records else
        f'Ours: preset {asked.preset}; clips without labels, {asked.width} pixels wide; '
        f'{machine_text(model.pixel_mean.device)}; no seed.',
        f'A frame takes over the features of the last encoded one where no cell of a 64 wide grey picture differs by '
        f'the bound or more, {MAX_REUSED} frames in a row at most. All bounds take turns frame by frame in one run. '
        'IoU with off: masks of a frame, paired one to one with those of the run that encodes every frame; 0 for one '
        'that is alone. IDF1 with off: its tracks as the truth.',
        'It shows what is spared on these videos and what that changes. It cannot show how still another camera\'s '
        'pictures are, or how noisy; and agreement with the other run is no accuracy: both may be wrong.'], draw)
