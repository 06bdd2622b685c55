"""A download of video sets in miniature, and a network of the official families that is quick to train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch.nn.functional as F
from coco_files import write_coco
from torch import Tensor, nn

from tar_vis_core.data.synth import SynthVideos
from tar_vis_core.data.ytvis_writer import write_ytvis
from tar_vis_core.models.backbones import BACKBONES
from tar_vis_core.models.presets import PRESETS

SIZE = 64, 96


def write_videos(folder: Path, names: tuple[str, ...] = ('person', 'giant_panda', 'dog', 'Cat'), videos: int = 3,
                 frames: int = 6, seed: int = 1) -> Path:
    """``folder/train.json`` with ``folder/train/JPEGImages``, as YouTube-VIS comes."""
    made = SynthVideos(SIZE, frames, seed=seed)
    path = write_ytvis(folder / 'train', (made[i] for i in range(videos)), names, 'test')
    return path.rename(folder / 'train.json')


def write_download(folder: Path) -> Path:
    """``ytvis_2019`` and ``coco`` as their publishers lay them out."""
    write_videos(folder / 'ytvis_2019')
    path = write_coco(folder / 'coco' / 'train2017')
    (folder / 'coco' / 'annotations').mkdir()
    path.rename(folder / 'coco' / 'annotations' / 'instances_train2017.json')
    return folder


class TinyBackbone(nn.Module):
    """Maps of strides 4 to 32 of 16 channels, with a batch norm that remembers what it saw in training."""

    channels = (16,) * 4

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.BatchNorm2d(16)
        self.down = nn.ModuleList(nn.Conv2d(16, 16, 2, 2) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [F.relu(self.norm(self.stem(x)))]
        for layer in self.down:
            maps.append(F.relu(layer(maps[-1])))
        return maps


def shrink_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The families on that backbone, 32 channels wide."""
    monkeypatch.setitem(BACKBONES, 'r50', TinyBackbone)
    small = dict(dim=32, queries=12, heads=4, decoder_ffn=32, encoder_layers=1, encoder_heads=4, encoder_ffn=32)
    for name in ('minvis_r50', 'ctvis_r50', 'dvispp_r50', 'dvis_r50', 'dvis_daq_r50'):
        layers = 2 * name.startswith('dvis')
        monkeypatch.setitem(PRESETS, name, replace(
            PRESETS[name], **small, tracker_layers=layers, tracker_ffn=32))
