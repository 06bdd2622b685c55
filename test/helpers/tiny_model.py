"""A small network with seeded random weights: for the mechanics only, its masks mean nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from tar_vis_core.models.presets import STUDIED
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter


def tiny_model(seed: int = 4, **changes) -> VideoInstanceModel:
    torch.manual_seed(seed)
    config = replace(STUDIED['crowd'], **{**dict(
        class_set='custom', class_names=('person', 'dog', 'cat'), classes=0, tracker='motion', dim=32, queries=12,
        heads=4, decoder_ffn=32, encoder_layers=1, encoder_ffn=32, short_side=64), **changes})
    model = VideoInstanceModel(config)
    # at the usual scale of fresh weights all queries give one and the same mask
    for layer in (*model.decoder.mask_embed.layers, model.decoder.class_embed, model.pixel_decoder.mask_features):
        nn.init.normal_(layer.weight)
    return model


def tiny_segmenter(seed: int = 4, **options) -> VideoSegmenter:
    """With this seed it reports some three things on every image."""
    return VideoSegmenter.from_model(tiny_model(seed), 'cpu', options=SegmenterOptions(
        **{'score_threshold': 0.1, **options}))


def picture(seed: int = 4, height: int = 96, width: int = 128) -> np.ndarray:
    """Smooth colour noise, uint8 RGB."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3))
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 8 // width
    fine = rng.integers(-20, 20, (height, width, 3))
    return np.clip(coarse[rows][:, columns] + fine, 0, 255).astype(np.uint8)
