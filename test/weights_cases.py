"""What the tests of weights files share."""

from dataclasses import replace

from tar_vis_core.models import video_model
from tar_vis_core.models.backbones.resnet import ResNet50
from tar_vis_core.models.presets import PRESETS, find_preset

TINY = replace(find_preset('minvis_r50'), name='tiny', dim=32, queries=4, decoder_ffn=16, encoder_layers=1,
               encoder_ffn=16, decoder_layers=2, heads=2)


class NarrowResNet(ResNet50):
    channels = (16, 32, 48, 80)


def add_tiny_preset(monkeypatch):
    """A preset of the MinVIS family whose weights are a megabyte."""
    monkeypatch.setattr(video_model, 'ResNet50', NarrowResNet)
    monkeypatch.setitem(PRESETS, 'tiny', TINY)
    return TINY


def one_line(error) -> str:
    text = str(error.value)
    assert '\n' not in text and 10 < len(text) < 600
    return text
