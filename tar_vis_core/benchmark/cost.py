"""Costs of a model by part: parameters, floating point operations, peak memory; and a meter for its stages."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.segmenter import VideoSegmenter
from tar_vis_core.tracking.tracker import Tracker

STAGES = ('backbone', 'pixel_decoder', 'decoder', 'tracker')
Reading = TypeVar('Reading')
ROUTING = ('decoder.synchronizer.', 'decoder.routers.')


def parameters_by_part(model: VideoInstanceModel) -> dict[str, int]:
    """Count the parameters of each stage, and of TAR as ``routing``; frozen norms are constants and do not count."""
    counts = dict.fromkeys((*STAGES, 'routing'), 0)
    for name, parameter in model.named_parameters():
        counts['routing' if name.startswith(ROUTING) else name.split('.')[0]] += parameter.numel()
    return counts


class MeteredTracker:
    """A tracker that notes the values of ``read()`` before and after it."""

    def __init__(self, tracker: Tracker, read: Callable[[], Reading], noted: list[tuple[Reading, Reading]]):
        self._tracker, self._read, self._noted = tracker, read, noted

    def track(self, *args):
        """See :class:`.Tracker`."""
        before, result = self._read(), self._tracker.track(*args)
        self._noted.append((before, self._read()))
        return result


@contextlib.contextmanager
def metered_parts(model: VideoInstanceModel, read: Callable[[], Reading]) -> Iterator[dict[str, list[tuple]]]:
    """Note the values of ``read()`` before and after each call of a part of the model, while the block runs."""
    noted: dict[str, list[tuple]] = {stage: [] for stage in STAGES[:-1]}
    begun: dict[str, Reading] = {}

    def begin(stage: str) -> None:
        begun[stage] = read()

    handles = []
    for stage, notes in noted.items():
        part = getattr(model, stage)
        handles += [part.register_forward_pre_hook(lambda *_, stage=stage: begin(stage)),
                    part.register_forward_hook(
                        lambda *_, stage=stage, notes=notes: notes.append((begun[stage], read())))]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def metered(segmenter: VideoSegmenter, read: Callable[[], Reading]) -> Iterator[dict[str, list[tuple]]]:
    """Note as :func:`metered_parts` does, and of the tracker, too."""
    tracker, track_notes = segmenter.tracker, []
    segmenter.tracker = MeteredTracker(tracker, read, track_notes)
    try:
        with metered_parts(segmenter.model, read) as noted:
            yield noted | {STAGES[-1]: track_notes}
    finally:
        segmenter.tracker = tracker


def counter() -> FlopCounterMode:
    """Count floating point operations as twice the multiply-accumulates of convolutions, products and attention.

    Not counted, as is usual: norms, activations, softmax, resizing, and the samples of deformable attention.
    """
    def attention(query, key, value, *_, out_shape=None, **__) -> int:
        batch, heads, length, width = query
        return 2 * batch * heads * length * key[2] * (width + value[3])

    # torch's counter knows the attention kernels of GPUs only
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: attention})


def gflops_by_stage(segmenter: VideoSegmenter, images: list[np.ndarray], rate: float,
                    step: Callable | None = None) -> dict[str, float]:
    """Return the mean GFLOPs of a frame by stage, over all ``images`` except the first, which begins a stream.

    ``segmenter`` has a plain model: torch's counter knows neither oneDNN's operators nor our own kernels. ``step`` is
    its step if that is not the usual one. The model takes no gradients afterwards.
    """
    segmenter.model.requires_grad_(False)   # torch's counter fails on views of parameters in inference mode
    state, step = segmenter.new_state(), step or segmenter.step
    step(images[0], state, 0.0)
    with counter() as flops, metered(segmenter, flops.get_total_flops) as noted:
        for index, image in enumerate(images[1:], 1):
            step(image, state, index / rate)
    return {stage: sum(after - before for before, after in pairs) / 1e9 / (len(images) - 1)
            for stage, pairs in noted.items()}


def memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes that this process holds now, and its peak: torch's memory on a GPU, else resident memory.

    A model's memory is the peak at the end minus the memory before it was built, in a process of its own.
    """
    if device.type == 'cuda':
        # reserved: what a graph computes in is no tensor any more, but nobody else's either
        return torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
    if sys.platform == 'linux':   # getrusage there begins with the peak of whoever started the process
        fields = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
        now, most = (int(fields[name].split()[0]) * 1024 for name in ('VmRSS', 'VmHWM'))
        return now, most
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss   # bytes on macOS
    return most, most
