"""What a model costs by part: parameters, floating point operations, peak memory; and a meter for its stages."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.segmenter import VideoSegmenter

STAGES = ('backbone', 'pixel_decoder', 'decoder', 'tracker')
Reading = TypeVar('Reading')
ROUTING = ('decoder.synchronizer.', 'decoder.routers.')


def parameters_by_part(model: VideoInstanceModel) -> dict[str, int]:
    """Learned numbers of each stage, and of TAR as ``routing``; frozen norms are constants and do not count."""
    counts = dict.fromkeys((*STAGES, 'routing'), 0)
    for name, parameter in model.named_parameters():
        counts['routing' if name.startswith(ROUTING) else name.split('.')[0]] += parameter.numel()
    return counts


@contextlib.contextmanager
def metered(segmenter: VideoSegmenter, read: Callable[[], Reading]) -> Iterator[dict[str, list[tuple]]]:
    """While the block runs, notes for each call of a stage what ``read()`` gave before and after it."""
    noted: dict[str, list[tuple]] = {stage: [] for stage in STAGES}

    def meter(stage: str, call: Callable) -> Callable:
        def metered_call(*args, **kwargs):
            before = read()
            result = call(*args, **kwargs)
            noted[stage].append((before, read()))
            return result
        return metered_call

    model = segmenter.model
    with contextlib.ExitStack() as stack:
        for stage, owner, method in zip(
                STAGES, (model.backbone, model.pixel_decoder, model.decoder, segmenter.tracker),
                ('forward', 'forward', 'forward', 'track'), strict=True):
            stack.enter_context(mock.patch.object(owner, method, meter(stage, getattr(owner, method))))
        yield noted


def counter() -> FlopCounterMode:
    """Counts floating point operations as twice the multiply-accumulates of convolutions, products and attention.

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
    """Mean GFLOPs of a frame by stage, over all ``images`` but the first, which begins a stream and costs its own.

    ``segmenter`` is of a plain model: torch's counter knows neither oneDNN's operators nor kernels of our own. ``step``
    is its step where it is not the usual one. The model takes no gradients afterwards.
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
    """Bytes that this process holds now, and the most it has held: what torch has of a GPU, else resident memory.

    What a model takes is the most at the end less what was held before it was built, in a process whose peak it is.
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
