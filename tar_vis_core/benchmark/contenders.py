"""The three lines of a speed table, on the same weights and frames: reference style, ours with all layers, with TAR.

The paper compares the first with the last. TAR's own gain is the difference of the last two.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from tar_vis_core.benchmark import reference
from tar_vis_core.benchmark.cost import gflops_by_stage, metered
from tar_vis_core.benchmark.reference import PublishedAttention, in_reference_style, unfused_attention
from tar_vis_core.instances import FrameResult
from tar_vis_core.models import deformable
from tar_vis_core.models.cuda_graphs import eager
from tar_vis_core.models.packed import PackedAttention, inference_dtype, inference_form
from tar_vis_core.models.seeing_routers import SeeingRouters
from tar_vis_core.models.temporal_routing import EXECUTE
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import elapsed_ms, mark, pick_device
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter

REFERENCE, FULL, TAR = 'reference style', 'all layers', 'TAR'
RIVAL = 'the other network'     # of --against
# the stages of a step in their order; 'tracker' is the tracker's network or matching and the identities
STAGES = ('preprocess', 'backbone', 'pixel_decoder', 'decoder', 'masks', 'tracker')
# of fresh routers, which know nothing: about what the paper's execute (its Table 5 read as a cost model)
SET_LAYERS = 4


@dataclass(frozen=True)
class Contender:
    """How a line computes a step."""

    segmenter: VideoSegmenter
    options: SegmenterOptions
    style: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    routing: str = 'all layers'     # what decides which layers run, in words

    def step(self, image: np.ndarray, state, stamp_s: float | None = None) -> FrameResult:
        """Return a step of the segmenter in this line's way."""
        self.segmenter.options = self.options
        with self.style():
            return self.segmenter.step(image, state, stamp_s)


@dataclass(frozen=True)
class Measured:
    """A frame's result and its milliseconds by stage, ``total`` among them."""

    result: FrameResult
    times: dict[str, float]


def set_routers(model: VideoInstanceModel, layers: int) -> None:
    """Set fresh routers to 'execute' for the first ``layers`` layers, 'skip' for the others, on all but first frames.

    A fresh router has no weights but its bias, so that no skip bias lies between all layers and the warm-up alone.
    """
    with torch.no_grad():
        routers = model.decoder.routers
        bias = routers.worth.bias if isinstance(routers, SeeingRouters) else routers.bias2[..., EXECUTE]
        bias.fill_(-1.0)
        bias[:layers - model.decoder.warmup_layers] = 1.0


def reference_line(model: VideoInstanceModel, device: str = 'cpu', precision: str = 'float32', tracker: str = 'auto',
                   short_side: int = 0, keep_memory: bool = True) -> Contender:
    """Return the first line, around the weights of a plain model."""
    full = SegmenterOptions('full', input_short_side=short_side)
    segmenter = VideoSegmenter.from_model(in_reference_style(model), device, precision, full, tracker, keep_memory)
    return Contender(segmenter, full, unfused_attention)


def make_lines(model: VideoInstanceModel, device: str = 'cpu', precision: str = 'float32', tracker: str = 'auto',
               short_side: int = 0, fresh: bool = False) -> dict[str, Contender]:
    """Return the lines of a plain model; two if it has no routers.

    ``fresh`` sets the routers to :data:`SET_LAYERS`, or to all layers but one, for weights that are not trained.
    """
    baseline = reference_line(model, device, precision, tracker, short_side)
    full = baseline.options
    tar, routing = replace(full, routing='adaptive'), 'layers as the routers choose'
    if fresh and model.config.routing:
        count = min(SET_LAYERS, model.config.decoder_layers - 1)
        set_routers(model, count)
        tar, routing = replace(tar, refresh_frames=0), f'routers SET, not learned, to {count} layers a frame'
    place = pick_device(device)
    fast = inference_form(copy.deepcopy(model), place, inference_dtype(precision, model.config, place))
    ours = VideoSegmenter.from_model(fast, device, precision, full, tracker)
    lines = {REFERENCE: baseline, FULL: Contender(ours, full)}
    if model.config.routing:
        lines[TAR] = Contender(ours, tar, routing=routing)
    return lines


def synchronized(device: torch.device) -> float:
    """Return the host's clock in milliseconds once the device has done all its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return 1e3 * time.perf_counter()


class MeasuredStream:
    """A line's turns at the frames of a stream, each of them measured."""

    def __init__(self, line: Contender):
        self.line, self.state = line, line.segmenter.new_state()

    def take(self, image: np.ndarray, stamp_s: float) -> Measured:
        """Return the next frame."""
        line, device = self.line, self.line.segmenter.device
        with metered(line.segmenter, lambda: mark(device)) as marks:
            began = synchronized(device)
            result = line.step(image, self.state, stamp_s)
            total = synchronized(device) - began
        spent = {stage: sum(elapsed_ms(*pair) for pair in pairs) for stage, pairs in marks.items()}
        # the others are in the step's own times
        spent |= {stage: getattr(result.times, stage) for stage in ('preprocess', 'masks', 'tracker')}
        return Measured(result, {stage: spent[stage] for stage in STAGES} | {'total': total})


def take_turns(lines: dict[str, Contender], images: list[np.ndarray], rate: float, warm_up: int,
               elsewhere: dict[str, Callable[[np.ndarray, float], Measured]] | None = None,
               ) -> dict[str, list[Measured]]:
    """Run every image through every line, each with its own state. Return the results after ``warm_up`` frames.

    ``elsewhere`` are lines whose turns are taken in another process.
    """
    takes = {name: MeasuredStream(line).take for name, line in lines.items()} | (elsewhere or {})
    found: dict[str, list[Measured]] = {name: [] for name in lines}
    order = list(lines)
    for index, image in enumerate(tqdm(images, unit='frame', desc='bench')):
        # who goes first rotates, so that none always finds a warm cache
        for name in order[index % len(order):] + order[:index % len(order)]:
            found[name].append(takes[name](image, index / rate))
    return {name: measured[warm_up:] for name, measured in found.items()}


def summary(measured: list[Measured]) -> dict:
    """Return median and 95th percentile of each stage in ms, layers, and frames per second of the median."""
    times = {stage: np.array([m.times[stage] for m in measured]) for stage in (*STAGES, 'total')}
    executed = np.array([m.result.routing.executed for m in measured])
    return {
        'frames': len(measured), 'fps': float(1e3 / np.median(times['total'])),
        'median_ms': {stage: float(np.median(t)) for stage, t in times.items()},
        'p95_ms': {stage: float(np.percentile(t, 95)) for stage, t in times.items()},
        'executed_layers': float(executed.sum(1).mean()),
        # layers 1, 4, 7 read stride 32, layers 2, 5, 8 stride 16, layers 3, 6, 9 stride 8
        'executed_by_stride': {str(s): float(executed[:, k::3].sum(1).mean()) for k, s in enumerate((32, 16, 8))},
        'instances': float(np.mean([sum(i.area > 0 for i in m.result.instances) for m in measured])),
    }


def operators(line: Contender, image: np.ndarray) -> dict[str, str]:
    """Return the operators of attention and deformable attention in a line, found by running a step of it."""
    with eager(), profile(activities=[ProfilerActivity.CPU]) as seen:
        line.step(image, line.segmenter.new_state(), 0.0)
    attention = line.segmenter.model.decoder.layers[0].cross_attn
    compiled = isinstance(attention, PackedAttention) and kernels.attends(line.segmenter.model.config.dim
                                                                          // attention.heads)
    fused = ['compiled kernel'] if compiled else []      # torch does not see our own
    names = {event.key.removeprefix('aten::') for event in seen.key_averages()}
    # the function itself is none of those that it chooses from
    fused += sorted(name.strip('_') for name in names if name.startswith('_scaled_dot_product') and 'math' not in name)
    layer = next((m for m in line.segmenter.model.modules() if isinstance(m, deformable.DeformableAttention)), None)
    if layer is None:
        return {'attention': ', '.join(fused) or 'separate products', 'deformable_attention': 'none'}
    with torch.inference_mode():
        style = reference if isinstance(layer, PublishedAttention) else deformable
        sampler = style.sampler(line.segmenter.device, line.segmenter.model.config.dim // layer.heads)
    return {'attention': ', '.join(fused) or 'separate products', 'deformable_attention': sampler}


def costs(lines: dict[str, Contender], model: VideoInstanceModel, images: list[np.ndarray], rate: float,
          ) -> dict[str, dict]:
    """Return operations and operators of each line. Operations are counted on the plain ``model``."""
    found = {}
    for name, line in lines.items():
        # in float32, in which as many are done: torch's counter loses mixed precision in inference mode
        plain = VideoSegmenter.from_model(line.segmenter.model if name == REFERENCE else model,
                                          str(line.segmenter.device), tracker=line.segmenter.tracker_name)
        # all frames cost the same but those of TAR, of which one plain pass and those that follow it are a cycle
        cycle = max(1, line.options.refresh_frames) if name == TAR else 1
        counted = Contender(plain, line.options, line.style)
        found[name] = {'gflops': gflops_by_stage(plain, images[:1 + cycle], rate, counted.step),
                       **operators(line, images[0])}
    return found
