"""Named model configurations."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

YOUTUBE_VIS_2019 = (
    'person', 'giant panda', 'lizard', 'parrot', 'skateboard', 'sedan', 'ape', 'dog', 'snake', 'monkey', 'hand',
    'rabbit', 'duck', 'cat', 'cow', 'fish', 'train', 'horse', 'turtle', 'bear', 'motorbike', 'giraffe', 'leopard',
    'fox', 'deer', 'owl', 'surfboard', 'airplane', 'truck', 'zebra', 'tiger', 'elephant', 'snowboard', 'boat', 'shark',
    'mouse', 'frog', 'eagle', 'earless seal', 'tennis racket')

# The Pascal VOC classes in the order of the semantic head (0 is background), under their COCO names.
VOC = ('background', 'airplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
       'dining table', 'dog', 'horse', 'motorcycle', 'person', 'potted plant', 'sheep', 'couch', 'train', 'tv')


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model; every preset is one of these."""

    name: str
    backbone: str                           # 'resnet50' or 'mobilenetv2'
    classes: int                            # decoder classes, without no-object
    class_names: tuple[str, ...]            # what users see; for nano, see ``semantic_classes``
    dim: int
    queries: int
    decoder_ffn: int
    encoder_layers: int
    encoder_ffn: int
    short_side: int                         # test-time size of the shorter edge, pixels
    pixel_mean: tuple[float, float, float]  # RGB, 0..255
    pixel_std: tuple[float, float, float]
    heads: int = 8
    encoder_heads: int = 8
    decoder_layers: int = 9
    warmup_layers: int = 1                  # M^s of the paper
    separable: bool = False                 # depthwise-separable FPN convolution
    routing: bool = True                    # Synchronizer and Routers present
    # True: the decoder tells person from object, and the backbone's semantic head names the objects.
    semantic_classes: bool = False


PRESETS = {c.name: c for c in (
    ModelConfig(
        name='nano', backbone='mobilenetv2', classes=2,
        class_names=('person', *(n for n in VOC[1:] if n != 'person')),
        dim=128, queries=50, decoder_ffn=512, encoder_layers=1, encoder_ffn=512, encoder_heads=4, short_side=256,
        separable=True, pixel_mean=(127.5, 127.5, 127.5), pixel_std=(127.5, 127.5, 127.5), semantic_classes=True),
    ModelConfig(
        name='minvis_r50', backbone='resnet50', classes=40, class_names=YOUTUBE_VIS_2019,
        dim=256, queries=100, decoder_ffn=2048, encoder_layers=6, encoder_ffn=1024, short_side=360,
        pixel_mean=(123.675, 116.28, 103.53), pixel_std=(58.395, 57.12, 57.375)),
)}


def find_preset(name: str) -> ModelConfig:
    """The configuration of that name; ValueError with the nearest name otherwise."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise ValueError(f'unknown preset {name!r}{hint}; expected one of {", ".join(PRESETS)}')
