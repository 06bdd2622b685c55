"""A measurement of a model's whole step in three lines, taking turns in one run, and of what it costs.

The lines are a reference-style baseline (the plain model as published implementations compute: all layers, full-size
masks and all heads after every layer, unfused attention, deformable attention by grid_sample, the pixel decoder in
float32), ours with all layers, and ours with TAR.
"""

from __future__ import annotations

import datetime
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import torch

from tar_vis_core.benchmark.company import Rival, busy_processes
from tar_vis_core.benchmark.contenders import (
    FULL,
    REFERENCE,
    RIVAL,
    Contender,
    Measured,
    MeasuredStream,
    costs,
    make_lines,
    reference_line,
    summary,
    take_turns,
)
from tar_vis_core.benchmark.cost import memory, parameters_by_part
from tar_vis_core.benchmark.machine import machine, power_draw
from tar_vis_core.media.frames import open_frames, play
from tar_vis_core.models.packed import inference_dtype, inference_form
from tar_vis_core.models.presets import PRESETS, STUDIED
from tar_vis_core.models.video_model import VideoInstanceModel, build_model, input_size
from tar_vis_core.options import InferenceOptions, option, same_option
from tar_vis_core.runtime.device import pick_device
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

POWER_S = 5.0       # for so long a GPU's power is watched


@dataclass(frozen=True, kw_only=True)
class BenchRun(InferenceOptions):
    """The choices of a measurement; a file of figures keeps them."""

    preset: str = option('nano', ', '.join(PRESETS | STUDIED))
    untrained: bool = option(False, 'fresh weights (seed 0) in place of a file, routers set: cost without a checkpoint')
    source: str = option('photographs', 'video, folder, or photographs')
    size: str = option('640x480', "of the source's images", pattern=r'\d+x\d+', example='WIDTHxHEIGHT such as 640x480')
    short_side: int = same_option(SegmenterOptions, 'input_short_side')
    frames: int = option(110, 'frames, warm-up included', low=2)
    warm_up: int = option(10, 'first frames, not timed', low=1)
    beside: int = option(0, 'measure a second time with so many busy processes beside it', low=0, high=1024)
    against: str = option('', 'ONNX file of another network, run by ONNX Runtime in turn with the lines; timed alone')


def read_images(run: BenchRun) -> tuple[list[np.ndarray], float]:
    """Return the source's frames at ``--size`` and their rate; ValueError for too few frames."""
    width, height = map(int, run.size.split('x'))
    if run.frames <= run.warm_up:
        raise ValueError(f'--frames is {run.frames}, expected more than the {run.warm_up} that warm up')
    with open_frames(run.source) as reader:
        images = [cv2.resize(f.image, (width, height), interpolation=cv2.INTER_AREA)
                  for f in play(reader, limit=run.frames)]
        if len(images) <= run.warm_up:
            raise ValueError(f'{run.source} has {len(images)} frames, expected more than {run.warm_up}')
        return images, reader.fps


def plain_model(run: BenchRun) -> VideoInstanceModel:
    """Return the model of the command line; ValueError if --untrained and weights are both given."""
    if run.threads:
        torch.set_num_threads(run.threads)
    if not run.untrained:
        return load_model(run.preset, run.weights or packaged_weights(run.preset), run.adapter or None)
    if run.weights or run.adapter:
        raise ValueError('--untrained excludes --weights and --adapter; give one of them')
    torch.manual_seed(0)
    model = build_model(run.preset)
    if model.config.tracker == 'dynamic_anchors':
        without_tracks(model)
    return model


def without_tracks(model: VideoInstanceModel) -> None:
    """Let a fresh DVIS-DAQ open no track; left alone it opens one for each anchor of each frame."""
    with torch.no_grad():
        for part in (model.decoder, model.tracker):
            part.class_embed.bias[-1] = 100


def resources_taken(run: BenchRun, line: str, images: list[np.ndarray]) -> tuple[int, float | None, int | None]:
    """Return what a model and a few frames take: peak memory, mean power, and memory of the GPU.

    The first are the bytes by which the peak memory of this fresh process rises. The second are the watts that a GPU
    draws. The third are the bytes that the GPU has lent to all processes then."""
    device = pick_device(run.device)
    before, model = memory(device)[0], plain_model(run)
    if line == REFERENCE:
        shown = reference_line(model, run.device, run.precision, run.tracker, run.short_side)
    else:
        options = SegmenterOptions('full', input_short_side=run.short_side)
        model = inference_form(model, device, inference_dtype(run.precision, model.config, device))
        shown = Contender(VideoSegmenter.from_model(model, run.device, run.precision, options, run.tracker), options)
    segmenter = shown.segmenter
    state = segmenter.new_state()
    for index, image in enumerate(images):
        shown.step(image, state, float(index))
    if device.type == 'cpu':
        return memory(device)[1] - before, None, None
    torch.cuda.empty_cache()        # what choosing algorithms took is not taken again
    torch.cuda.reset_peak_memory_stats(device)
    shown.step(images[-1], state, float(len(images)))
    rise = memory(device)[1] - before
    with power_draw(device) as watts:
        end = time.monotonic() + POWER_S
        while time.monotonic() < end:
            shown.step(images[0], segmenter.new_state(), 0.0)
    free, total = torch.cuda.mem_get_info(device)
    return rise, float(np.mean(watts)) if watts else None, total - free


def memory_and_power(run: BenchRun, images: list[np.ndarray]) -> dict[str, dict[str, float | None]]:
    """Return what the baseline's model and ours take, each in its own process, to keep their memory apart."""
    found = {}
    for line in (REFERENCE, FULL):
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as fresh:
            found[line] = fresh.submit(resources_taken, run, line, images).result()
    return {'peak_memory_gb': {line: peak / 1e9 for line, (peak, _, _) in found.items()},
            'device_memory_gb': {line: lent and lent / 1e9 for line, (_, _, lent) in found.items()},
            'power_w': {line: watts for line, (_, watts, _) in found.items()}}


class Baseline:
    """Line 1 in its own process, which gives free memory back to the system as any program does.

    That ours does not (``runtime/allocator.py``) is one of the things that make it faster. It holds process-wide.
    """

    turns: MeasuredStream    # in that process

    @classmethod
    def begin(cls, run: BenchRun) -> None:
        """Make the model; the first call in a new process."""
        line = reference_line(plain_model(run), run.device, run.precision, run.tracker, run.short_side,
                              keep_memory=False)
        cls.turns = MeasuredStream(line)

    @classmethod
    def take(cls, image: np.ndarray, stamp_s: float) -> Measured:
        """Return the next frame, see :class:`MeasuredStream`."""
        return cls.turns.take(image, stamp_s)

    @classmethod
    def start_anew(cls) -> None:
        """Begin another stream."""
        cls.turns = MeasuredStream(cls.turns.line)


@dataclass
class Rounds:
    """The lines frame by frame, and the milliseconds of the network of ``--against`` at the same frames, if any."""

    lines: dict[str, list[Measured]]
    rival_ms: list[float]

    def times(self) -> dict[str, dict[str, float]]:
        """Return the whole steps of each line and of the rival, as :func:`median_and_p95` gives them."""
        found = {name: median_and_p95([m.times['total'] for m in measured]) for name, measured in self.lines.items()}
        return found | ({RIVAL: median_and_p95(self.rival_ms)} if self.rival_ms else {})


def median_and_p95(times: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile of milliseconds."""
    return {'median_ms': float(np.median(times)), 'p95_ms': float(np.percentile(times, 95))}


def measured_rounds(run: BenchRun, lines: dict[str, Contender], images: list[np.ndarray], rate: float,
                    ) -> tuple[Rounds, Rounds | None]:
    """Return all lines frame by frame in turn, the first one and a rival elsewhere, and the same on a busy machine."""
    for name, line in lines.items():
        if name != REFERENCE:       # as a node does at configure
            line.segmenter.options = line.options
            line.segmenter.warm_up(*images[0].shape[:2])
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, context) as apart, ProcessPoolExecutor(1, context) as rival:
        apart.submit(Baseline.begin, run).result()
        if run.against:
            rival.submit(Rival.begin, run.against, torch.get_num_threads()).result()

        def measured() -> Rounds:
            rival_ms: list[float] = []

            def take(image: np.ndarray, stamp_s: float) -> Measured:
                if run.against:
                    rival_ms.append(rival.submit(Rival.take, image).result())
                return apart.submit(Baseline.take, image, stamp_s).result()

            found = take_turns(lines, images, rate, run.warm_up, {REFERENCE: take})
            return Rounds(found, rival_ms[run.warm_up:])

        idle = measured()
        if not run.beside:
            return idle, None
        with busy_processes(run.beside):
            apart.submit(Baseline.start_anew).result()
            return idle, measured()


def measure(run: BenchRun) -> dict:
    """Return all figures of a run, as ``--json`` writes them."""
    images, rate = read_images(run)
    model = plain_model(run)
    parameters = parameters_by_part(model)
    lines = make_lines(model, run.device, run.precision, run.tracker, run.short_side, run.untrained)
    segmenter = lines[FULL].segmenter
    idle, busy = measured_rounds(run, lines, images, rate)
    found = {name: summary(measured) for name, measured in idle.lines.items()}
    for name, figures in costs(lines, model, images, rate).items():
        found[name] |= figures | {'routing': lines[name].routing}
    configuration = asdict(run) | {
        'device': str(segmenter.device), 'threads': torch.get_num_threads(), 'tracker': segmenter.tracker_name}
    height, width = input_size(*images[0].shape[:2], run.short_side or segmenter.model.config.short_side)
    title = (f'{run.preset}{", fresh weights" if run.untrained else ""}, {run.size} {run.source}, network input '
             f'{width}x{height}, {segmenter.device}, {segmenter.arithmetic}, {torch.get_num_threads()} threads')
    return {'title': title, 'date': datetime.date.today().isoformat(), 'machine': machine(segmenter.device),
            'remarks': list(segmenter.remarks),
            'configuration': configuration, 'input': f'{width}x{height}', 'parameters': parameters,
            **memory_and_power(run, images[:3]), 'lines': found, 'idle': idle.times(),
            'busy': busy and busy.times()}
