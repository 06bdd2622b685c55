"""Named model configurations: a model family on a backbone, sized as published."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tar_vis_core.errors import unknown_name
from tar_vis_core.models.class_sets import CLASS_SETS

# How a stream's objects keep their identity, the choices of the segmenter's ``tracker``:
#   motion           slots of query matching as one hint among motion, overlap and colours (``tracking/identity.py``)
#   matching         query matching from frame to frame (MinVIS)
#   referring        the referring tracker network (DVIS++)
#   referring_2023   that of its predecessor (DVIS)
#   dynamic_anchors  the network of tracks that open and close (DVIS-DAQ)
#   memory_bank      detections against remembered embeddings (CTVIS)
TRACKERS = ('motion', 'matching', 'referring', 'referring_2023', 'dynamic_anchors', 'memory_bank')

# How a decoder decides which layers run: by its routers (TAR), all of them, or the first few.
ROUTINGS = ('adaptive', 'full', 'fixed')

# How a frame's queries come into the slots of the frame before (the paper's Table 3): by cross-attention from the
# previous queries (Eq. 2-3), by a permutation from one-to-one matching, or not at all.
SYNCHRONIZERS = ('attention', 'bipartite', 'none')
# The paper's Routers, one for each layer, or those that look at the picture (models/seeing_routers.py).
ROUTERS = ('separate', 'seeing')

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model; the defaults are those of MinVIS on ResNet-50."""

    family: str                             # the first word of a preset's name, as 'minvis', 'dvis_daq' or 'nano'
    backbone: str                           # a key of ``backbones.BACKBONES``
    class_set: str = 'youtube_vis_2019'     # a key of ``CLASS_SETS``, or 'custom' with names of a weights file
    class_names: tuple[str, ...] = ()       # what users see; empty: those of the class set
    classes: int = 0                        # decoder classes, without no-object; 0: as many as names
    dim: int = 256
    mask_dim: int = 0                       # channels of mask features; 0: ``dim``
    queries: int = 100
    heads: int = 8
    decoder_ffn: int = 2048
    decoder_layers: int = 9
    warmup_layers: int = 1                  # M^s of the paper
    synchronizer: str = 'attention'         # one of ``SYNCHRONIZERS``
    routers: str = 'separate'               # one of ``ROUTERS``
    encoder_layers: int = 6
    encoder_heads: int = 8
    encoder_ffn: int = 1024
    separable: bool = False                 # depthwise-separable FPN convolution
    short_side: int = 480                   # test-time size of the shorter edge, pixels
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN   # RGB, 0..255
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    reid: bool = False                      # the decoder has a re-identification head (CTVIS, DVIS++, DVIS-DAQ)
    tracker_layers: int = 0               # layers of the network that ``tracker`` names; 0: it names none
    tracker_ffn: int = 2048
    tracker: str = 'matching'               # one of ``TRACKERS``
    match_threshold: float = 0.2            # of the tracker 'memory_bank'
    routing: bool = True                    # Synchronizer and Routers present
    # what scores of persons and of other classes are multiplied by, so that one threshold fits both
    score_gains: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not self.class_names:
            object.__setattr__(self, 'class_names', CLASS_SETS[self.class_set])
        if not self.classes:
            object.__setattr__(self, 'classes', len(self.class_names))

    @property
    def class_gains(self) -> np.ndarray:
        """Return the gain of each class that users see, ``(classes,)``."""
        person, other = self.score_gains
        return np.array([person if name == 'person' else other for name in self.class_names])


PRESETS = {
    # queries start from a detector's boxes
    'nano': ModelConfig(
        'nano', 'nanodet', 'coco', dim=128, mask_dim=64, queries=64, decoder_ffn=512, decoder_layers=2, short_side=384,
        tracker='motion', synchronizer='bipartite', routers='seeing', score_gains=(1.5, 0.86)),
    'minvis_r50': ModelConfig('minvis', 'r50', short_side=360),
    'minvis_swin_l': ModelConfig('minvis', 'swin_l', queries=200),
    'ctvis_r50': ModelConfig('ctvis', 'r50', reid=True, match_threshold=0.3),
    'dvis_r50': ModelConfig('dvis', 'r50', short_side=360, tracker_layers=6, tracker='referring_2023'),
    'dvis_swin_l': ModelConfig('dvis', 'swin_l', queries=200, tracker_layers=6, tracker='referring_2023'),
    'dvispp_r50': ModelConfig('dvispp', 'r50', reid=True, tracker_layers=6, tracker='referring'),
    'dvispp_vit_adapter_l': ModelConfig(
        'dvispp', 'vit_adapter_l', queries=200, reid=True, tracker_layers=6, tracker='referring'),
    'dvis_daq_r50': ModelConfig('dvis_daq', 'r50', reid=True, tracker_layers=6, tracker='dynamic_anchors'),
    'dvis_daq_swin_l': ModelConfig(
        'dvis_daq', 'swin_l', queries=200, reid=True, tracker_layers=6, tracker='dynamic_anchors'),
    'dvis_daq_vit_adapter_l': ModelConfig(
        'dvis_daq', 'vit_adapter_l', queries=200, reid=True, tracker_layers=6, tracker='dynamic_anchors'),
}

# Models of other people, which find objects in single images, and what ``weights`` is for them.
FOREIGN = {
    'onnx': 'an ONNX file with an instance segmenter',
    'python': "module:factory, such as 'my_models.seg:make'",
}

# Models for studies of routing alone: no node offers them, no package holds their weights.
STUDIED = {
    # nano's size, for the made-up videos of data/synth.py
    'crowd': ModelConfig(
        'crowd', 'mobilenet_v2', 'crowd', dim=128, queries=30, decoder_ffn=512, encoder_layers=1, encoder_ffn=512,
        encoder_heads=4, short_side=192, separable=True, pixel_mean=(127.5,) * 3, pixel_std=(127.5,) * 3),
}


def find_preset(name: str) -> ModelConfig:
    """Return the configuration of that name. Raise ValueError with the nearest name if there is none.

    ``crowd:synchronizer=none,warmup_layers=2`` is a preset with another form of TAR, as the studies compare them.
    """
    name, _, changes = name.partition(':')
    known = PRESETS | STUDIED
    if name not in known:
        raise ValueError(unknown_name('preset', name, known))
    config = known[name]
    for change in filter(None, changes.split(',')):
        key, _, value = change.partition('=')
        if key == 'synchronizer' and value in SYNCHRONIZERS:
            config = replace(config, synchronizer=value)
        elif key == 'routers' and value in ROUTERS:
            config = replace(config, routers=value)
        elif key == 'warmup_layers' and value.isdigit() and 0 < int(value) < config.decoder_layers:
            config = replace(config, warmup_layers=int(value))
        else:
            raise ValueError(f'preset {name}: {change!r}, expected synchronizer={"|".join(SYNCHRONIZERS)}, '
                             f'routers={"|".join(ROUTERS)} or '
                             f'warmup_layers=1..{config.decoder_layers - 1}')
    return config


def preset_of(family: str, backbone: str = '') -> str:
    """Return the preset's name of a model family on a backbone; '' takes the family's first.

    A foreign model is its own preset. Raise ValueError that lists the combinations.
    """
    if family in FOREIGN and not backbone:
        return family
    for name, config in PRESETS.items():
        if config.family == family and backbone in ('', config.backbone):
            return name
    there = '; '.join(f'{f}: {", ".join(c.backbone for c in PRESETS.values() if c.family == f)}'
                      for f in dict.fromkeys(c.family for c in PRESETS.values()))
    raise ValueError(f'there is no model {family!r} on backbone {backbone!r}; there are {there}')
