"""Inputs of a study: a model and labelled videos, from the command line."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tar_vis_core.data.synth import SynthVideos
from tar_vis_core.data.ytvis import VideoRecord, load_ytvis
from tar_vis_core.data.ytvis_writer import write_ytvis
from tar_vis_core.models.class_sets import CROWD
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime.device import pick_device
from tar_vis_core.studies.report import machine
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

PAPER = 'The paper: MinVIS on ResNet-50, YouTube-VIS 2019, an RTX 3090; another model, other data, another machine.'


def open_model(args: argparse.Namespace, weights: Path | None = None) -> VideoInstanceModel:
    """Return the model of the command line on its device, in evaluation mode; ``weights`` go first."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    return load_model(args.preset, weights or args.weights or packaged_weights(args.preset), args.adapter).to(device)


def open_videos(args: argparse.Namespace) -> list[VideoRecord]:
    """Return the labelled videos of the command line; ValueError if there is none."""
    if args.videos < 1:
        raise ValueError(f'--videos is {args.videos}, expected at least 1')
    path = Path(args.data)
    if args.data == 'synth':
        height, width = args.size
        path = args.out / f'videos_{args.videos}x{args.frames}_{height}x{width}_{args.data_seed}' / 'instances.json'
        if not path.exists():
            made = SynthVideos(args.size, args.frames, length=args.videos, seed=args.data_seed)
            clips = (made[i] for i in tqdm(range(len(made)), unit='video', desc='making videos'))
            write_ytvis(path.parent, clips, CROWD, f'SynthVideos, seed {args.data_seed}')
    records = load_ytvis(path)[:args.videos]
    if not records:
        raise ValueError(f'{path} holds no videos')
    if args.categories:
        records = [replace(record, tracks=[track for track in record.tracks if track.category in args.categories])
                   for record in records]
        if not any(record.tracks for record in records):
            raise ValueError(f'{path} has no object of category {" or ".join(args.categories)}')
    return records


def described(args: argparse.Namespace, records: list[VideoRecord]) -> str:
    """Return a paragraph for the report: model, data, machine."""
    weights = args.weights if isinstance(args.weights, list) else [args.weights]
    files = ', '.join('packaged' if path is None else f'{path.parent.name}/{path.name}' for path in weights)
    data = f'made-up crowds of seed {args.data_seed}' if args.data == 'synth' else Path(args.data).name
    counted = f', {" and ".join(args.categories)} only' if args.categories else ''
    return (f'Ours: preset {args.preset}, weights {files}; {data}{counted}, {len(records)} videos, '
            f'{sum(len(r.paths) for r in records)} frames; {machine(pick_device(args.device))}.')


def pictures(records: list[VideoRecord], count: int) -> Iterator[np.ndarray]:
    """Return the first ``count`` frames of the videos; they start again if there are fewer."""
    while True:
        for record in records:
            for image in record.frames():
                if count <= 0:
                    return
                count -= 1
                yield image


class Stopwatch:
    """Milliseconds of each call of the wrapped function, with the device synchronised."""

    def __init__(self, call: Callable, device: torch.device):
        self._call, self._device = call, device
        self.spent: list[float] = []

    def __call__(self, *args, **kwargs):
        self._wait()
        began = time.perf_counter()
        result = self._call(*args, **kwargs)
        self._wait()
        self.spent.append(1e3 * (time.perf_counter() - began))
        return result

    def _wait(self) -> None:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)

    @property
    def median(self) -> float:
        """Return the median, NaN before the first call."""
        return float(np.median(self.spent)) if self.spent else float('nan')
