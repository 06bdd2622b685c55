"""Inputs of a study: a model and labelled videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tar_vis_core.benchmark.machine import in_words, machine
from tar_vis_core.data.synth import SynthVideos
from tar_vis_core.data.ytvis import VideoRecord, load_ytvis
from tar_vis_core.data.ytvis_writer import write_ytvis
from tar_vis_core.io.paths import user_path
from tar_vis_core.models.class_sets import CROWD
from tar_vis_core.models.presets import PRESETS, STUDIED
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.options import ModelOptions, Options, option, same_option
from tar_vis_core.runtime.device import pick_device
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

PAPER = 'The paper: MinVIS on ResNet-50, YouTube-VIS 2019, an RTX 3090; another model, other data, another machine.'


@dataclass(frozen=True, kw_only=True)
class StudyInputs(Options):
    """The model and the labelled videos of a study."""

    out: Path                                   # folder of the results
    size: tuple[int, int] = (192, 288)          # of made-up videos: height, width
    preset: str = option('crowd', f'one of {", ".join(PRESETS | STUDIED)}')
    weights: tuple[str, ...] = option((), 'safetensors file, for layers also several; none: the weights in this '
                                          'package. Those of crowd are docs/research/crowd.safetensors')
    adapter: str = same_option(ModelOptions, 'adapter')
    device: str = same_option(ModelOptions, 'device')
    threads: int = same_option(ModelOptions, 'threads')
    data: str = option('synth', 'YouTube-VIS file, or synth: crowds of look-alikes, made under --out')
    categories: tuple[str, ...] = option((), 'categories of the file that count; none: all')
    videos: int = option(20, 'number of videos: made, or the first of the file', low=1)
    frames: int = option(24, 'synth: frames of each video', low=1)
    data_seed: int = option(1000, 'synth: chooses the videos')


def one_file(inputs: StudyInputs) -> Path:
    """Return the weights of a study that takes one file. Raise ValueError for several."""
    if len(inputs.weights) > 1:
        raise ValueError(f'--weights names {len(inputs.weights)} files, expected one')
    return user_path(inputs.weights[0]) if inputs.weights else packaged_weights(inputs.preset)


def open_model(inputs: StudyInputs, weights: Path | None = None) -> VideoInstanceModel:
    """Return the model of a study on its device, in evaluation mode, with the file ``weights`` if it is given."""
    if inputs.threads:
        torch.set_num_threads(inputs.threads)
    device = pick_device(inputs.device)
    adapter = user_path(inputs.adapter) if inputs.adapter else None
    return load_model(inputs.preset, weights or one_file(inputs), adapter).to(device)


def open_videos(inputs: StudyInputs) -> list[VideoRecord]:
    """Return the labelled videos of a study; ValueError if there is none."""
    path = Path(inputs.data)
    if inputs.data == 'synth':
        height, width = inputs.size
        made_of = f'{inputs.videos}x{inputs.frames}_{height}x{width}_{inputs.data_seed}'
        path = inputs.out / f'videos_{made_of}' / 'instances.json'
        if not path.exists():
            made = SynthVideos(inputs.size, inputs.frames, length=inputs.videos, seed=inputs.data_seed)
            clips = (made[i] for i in tqdm(range(len(made)), unit='video', desc='making videos'))
            write_ytvis(path.parent, clips, CROWD, f'SynthVideos, seed {inputs.data_seed}')
    records = load_ytvis(path)[:inputs.videos]
    if not records:
        raise ValueError(f'{path} holds no videos')
    if inputs.categories:
        records = [replace(record, tracks=[track for track in record.tracks if track.category in inputs.categories])
                   for record in records]
        if not any(record.tracks for record in records):
            raise ValueError(f'{path} has no object of category {" or ".join(inputs.categories)}')
    return records


def inputs_text(inputs: StudyInputs, records: list[VideoRecord]) -> str:
    """Return a paragraph for the report: model, data, machine."""
    files = ', '.join(f'{path.parent.name}/{path.name}' for path in map(Path, inputs.weights)) or 'packaged'
    data = f'made-up crowds of seed {inputs.data_seed}' if inputs.data == 'synth' else Path(inputs.data).name
    counted = f', {" and ".join(inputs.categories)} only' if inputs.categories else ''
    return (f'Ours: preset {inputs.preset}, weights {files}; {data}{counted}, {len(records)} videos, '
            f'{sum(len(r.paths) for r in records)} frames; {machine_text(pick_device(inputs.device))}.')


def machine_text(device: torch.device) -> str:
    """Return a line about the machine and the threads in use."""
    return f'{in_words(machine(device))}, {torch.get_num_threads()} threads'


def first_frames(records: list[VideoRecord], count: int) -> Iterator[np.ndarray]:
    """Return the first ``count`` frames of the videos; they start again if there are fewer."""
    while True:
        for record in records:
            for image in record.frames():
                if count <= 0:
                    return
                count -= 1
                yield image
