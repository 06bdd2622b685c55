"""Image backbones: each returns maps of strides 4, 8, 16 and 32 and names their ``channels``."""

from tar_vis_core.models.backbones.mobilenet import MobileNetV2
from tar_vis_core.models.backbones.nanodet import NanoDet
from tar_vis_core.models.backbones.resnet import ResNet50
from tar_vis_core.models.backbones.swin import SwinL
from tar_vis_core.models.backbones.vit_adapter import ViTAdapterL

BACKBONES = {'mobilenet_v2': MobileNetV2, 'nanodet': NanoDet, 'r50': ResNet50, 'swin_l': SwinL,
             'vit_adapter_l': ViTAdapterL}
