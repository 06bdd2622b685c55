"""The whole network, as the paper's Figure 3 draws it.

It has the image encoder (backbone, pixel decoder), the masked decoder with temporal routing, and for DVIS, DVIS++ and
DVIS-DAQ the tracker's network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.backbones import BACKBONES, NanoDet
from tar_vis_core.models.dynamic_anchors import DynamicAnchorNetwork
from tar_vis_core.models.mask_branch import MaskBranch
from tar_vis_core.models.masked_decoder import DecoderOutput, Gate, MaskedDecoder, SupervisedOutput
from tar_vis_core.models.pixel_decoder import PixelDecoder
from tar_vis_core.models.presets import ModelConfig, find_preset
from tar_vis_core.models.proposals import Proposals, propose
from tar_vis_core.models.referring import ReferringTracker
from tar_vis_core.models.referring_2023 import ReferringTracker2023
from tar_vis_core.models.seeing_routers import Past
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.kernels.maps import normalized

MAX_LONG_SIDE = 1333
SIZE_DIVISIBILITY = 32
TRACKER_NETWORKS = {'referring': ReferringTracker, 'referring_2023': ReferringTracker2023,
                    'dynamic_anchors': DynamicAnchorNetwork}


@dataclass
class Features:
    """The image encoder's output for a batch of frames."""

    mask_features: Tensor      # (N, D, h, w) at stride 4
    levels: list[Tensor]       # (N, D, ., .) at strides 32, 16, 8
    proposals: Proposals | None = None      # if the backbone is a detector

    def frame(self, n: int) -> Features:
        """Return those of one frame, as a batch of one."""
        return Features(self.mask_features[n:n + 1], [level[n:n + 1] for level in self.levels],
                        None if self.proposals is None else self.proposals.frame(n))


class VideoInstanceModel(nn.Module):
    """Image encoder, masked decoder, routing. Frames are a batch; time enters through ``previous`` queries only."""

    channels_last = False       # of inputs; PyTorch's group norm, which the plain form may have, loses digits then
    mixes = False               # its units round what they multiply; automatic mixed precision would round more

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.backbone = BACKBONES[config.backbone]()
        detects = isinstance(self.backbone, NanoDet)
        self.pixel_decoder = MaskBranch(
            self.backbone.channels, config.dim, config.mask_dim) if detects else PixelDecoder(
            self.backbone.channels, config.dim, config.encoder_layers, config.encoder_heads, ffn=config.encoder_ffn,
            separable=config.separable)
        self.decoder = MaskedDecoder(
            config.dim, config.heads, config.decoder_ffn, config.queries, config.classes, config.decoder_layers,
            config.warmup_layers, config.routing, config.reid, config.synchronizer,
            self.backbone.channels[-1] if detects else 0, config.mask_dim, config.routers)
        self.tracker = None
        if config.tracker_layers:
            self.tracker = TRACKER_NETWORKS[config.tracker](
                config.dim, config.heads, config.tracker_ffn, config.tracker_layers, config.classes)
        for name in ('pixel_mean', 'pixel_std'):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(3, 1, 1), persistent=False)

    def prepare(self, pixels: Tensor, short_side: int) -> Tensor:
        """Return an image, uint8 RGB ``(H, W, 3)`` on the model's device, as its input: resized, normalised, padded.

        The shorter edge becomes ``short_side``, the longer at most 1333.
        """
        return self.normalize(resized(pixels, short_side, self.channels_last))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise RGB ``(N, 3, H, W)`` in 0..255, zero-padded right and bottom to multiples of 32."""
        h, w = images.shape[-2:]
        right, below = -w % SIZE_DIVISIBILITY, -h % SIZE_DIVISIBILITY
        if not self.channels_last:
            x = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
            return F.pad(x, (0, right, 0, below))
        if images.dtype == torch.uint8 and images.device.type == 'cpu' and kernels.compiled() is not None:
            return normalized(images, self.pixel_mean, self.pixel_std, (h + below, w + right))
        # whole rows at a time
        mean, std = (channel.flatten().repeat(w) for channel in (self.pixel_mean, self.pixel_std))
        x = images.permute(0, 2, 3, 1).flatten(2).to(mean.dtype, copy=True).sub_(mean).div_(std)
        return F.pad(x, (0, 3 * right, 0, below)).unflatten(2, (-1, 3)).permute(0, 3, 1, 2)

    def encode(self, images: Tensor) -> Features:
        """Normalised, padded images ``(N, 3, H, W)`` to features."""
        maps = self.backbone(images)
        if isinstance(self.backbone, NanoDet):
            proposals = propose(maps, self.backbone.classes, self.config.queries)
            return Features(*self.pixel_decoder(maps.stem, *maps.levels[:3]), proposals)
        return Features(*self.pixel_decoder(*maps))

    def decode(self, features: Features, previous: Past | Tensor | None = None, routing: str = 'full',
               fixed_layers: int = 9, skip_bias: float = 0.0, gate: Gate | None = None) -> DecoderOutput:
        """Inference form of the decoder; see :meth:`MaskedDecoder.forward`."""
        return self.decoder(features.mask_features, features.levels, previous, routing, fixed_layers, skip_bias, gate,
                            features.proposals)

    def supervised(self, features: Features, previous: Past | Tensor | None = None, counts: Tensor | int | None = None
                   ) -> SupervisedOutput:
        """Training form of the decoder; see :meth:`MaskedDecoder.supervised`."""
        return self.decoder.supervised(features.mask_features, features.levels, previous, counts, features.proposals)


def input_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return the size (height, width) of an image with a shorter edge of ``short_side``, the longer at most 1333."""
    scale = short_side / min(height, width)
    if max(height, width) * scale > MAX_LONG_SIDE:
        scale = MAX_LONG_SIDE / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized(pixels: Tensor, short_side: int, channels_last: bool = False) -> Tensor:
    """Resize uint8 RGB ``(H, W, 3)`` to whole grey levels ``(1, 3, h, w)`` of the input's size; not uint8 on a GPU."""
    # PyTorch sees only in the first that channels lie last
    x = pixels[None].permute(0, 3, 1, 2) if channels_last else pixels.permute(2, 0, 1)[None]
    size = input_size(*pixels.shape[:2], short_side)
    if size == tuple(pixels.shape[:2]):
        return x
    # antialiased as the models' training images are; only a CPU can do that with bytes
    whole = pixels.device.type == 'cpu'
    x = F.interpolate(x if whole else x.float(), size, mode='bilinear', align_corners=False, antialias=True)
    return x if whole else x.round()


def build_model(preset: str, routing: bool | None = None) -> VideoInstanceModel:
    """Return a freshly initialised model; ``routing`` False leaves the Synchronizer and the Routers out."""
    config = find_preset(preset)
    return VideoInstanceModel(config if routing is None else replace(config, routing=routing))
