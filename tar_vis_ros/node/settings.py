"""The parameters of the node tar_vis, and the segmenter that they ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tar_vis_core.models.presets import FOREIGN, PRESETS, preset_of
from tar_vis_core.options import OPTIONS, EngineOptions, SegmenterOptions, option
from tar_vis_ros.conversions.label_images import Moving
from tar_vis_ros.process.parameters import Table

if TYPE_CHECKING:
    from tar_vis_core.segmenter import VideoSegmenter


@dataclass(frozen=True)
class Settings(EngineOptions, SegmenterOptions):
    """All parameters of the node: its own, those of the model, and the options of the segmenter."""

    model: str = option('nano', 'model family; onnx, python: your own model',
                        choices=tuple(dict.fromkeys([*(p.family for p in PRESETS.values()), *FOREIGN])))
    backbone: str = option('', "the model's image backbone; empty: the first of its family",
                           choices=('', *dict.fromkeys(p.backbone for p in PRESETS.values())))
    weights: str = option('', 'safetensors file of that model; empty: the weights in this package; for onnx '
                          'the .onnx file, for python module:factory')
    warm_up_sizes: tuple[str, ...] = option(
        ('640x480',), 'image sizes to prepare at configure; others are prepared at their first image, which takes '
        'seconds on a GPU', example="a list of WIDTHxHEIGHT such as ['1280x720']")
    image_topics: tuple[str, ...] = option(
        (), 'topics of several cameras; empty: one camera, on topic image',
        example="a list of topics such as ['/front/image_raw', '/rear/image_raw']")
    image_transport: str = option(
        'raw', 'raw: Image on the topic itself; compressed: CompressedImage on topic/compressed',
        choices=('raw', 'compressed'))
    image_reliability: str = option(
        'best_effort', 'QoS reliability of the image subscriptions; qos_overrides can set more',
        choices=('best_effort', 'reliable'))
    image_timeout_s: float = option(5.0, 'seconds without an image after which /diagnostics warns', low=0.1, high=86400)
    moving_classes: tuple[str, ...] = option(
        (), 'classes that static_mask leaves out; empty: all but furniture and other things that keep still',
        example="a list of class names such as ['person', 'dog']")
    moving_margin_px: int = option(8, 'margin around them that static_mask leaves out, pixels', low=0, high=500)
    autostart: bool = option(False, 'configure and activate at start, without a lifecycle manager')


TABLE = Table(Settings, at_start=frozenset({'autostart'}), at_configure=frozenset({
    'model', 'backbone', 'weights', 'adapter', 'tracker', 'device', 'precision', 'engine', 'threads',
    'input_short_side',
    'image_topics', 'image_transport', 'image_reliability', 'warm_up_sizes'}))


def load_segmenter(settings: Settings) -> VideoSegmenter:
    """Return the segmenter of the settings, warmed up. Raise TarVisError or ValueError, each of one line."""
    from tar_vis_core.foreign.foreign_segmenter import open_segmenter  # takes torch along: only a configure waits

    sizes = warm_up_sizes(settings)
    segmenter = open_segmenter(
        preset=preset_of(settings.model, settings.backbone), weights=settings.weights or None,
        adapter=settings.adapter or None, tracker=settings.tracker, device=settings.device,
        precision=settings.precision, threads=settings.threads, engine=settings.engine)
    segmenter.options = live_options(settings, settings)
    moving_objects(settings).check(segmenter.class_names)
    for size in sizes:
        segmenter.warm_up(*size)
    return segmenter


def moving_objects(settings: Settings) -> Moving:
    """Return what the static mask leaves out."""
    return Moving(settings.moving_classes, settings.moving_margin_px)


def warm_up_sizes(settings: Settings) -> list[tuple[int, int]]:
    """Return heights and widths to warm up. Raise ValueError that names an entry that is no size."""
    found = []
    for text in settings.warm_up_sizes:
        size = re.fullmatch(r'([1-9]\d{0,4})x([1-9]\d{0,4})', text)
        if size is None:
            raise ValueError(f"parameter 'warm_up_sizes' has {text!r}: expected WIDTHxHEIGHT such as 1280x720")
        found.append((int(size[2]), int(size[1])))
    return found


def live_options(configured: Settings, current: Settings) -> SegmenterOptions:
    """Return the current options of the segmenter; options that need a configure are as they were configured."""
    settings = replace(current, **{name: getattr(configured, name) for name in TABLE.at_configure})
    return SegmenterOptions(**{name: getattr(settings, name) for name in OPTIONS})


def parameter_file() -> str:
    """Return the text of ``config/tar_vis.yaml``."""
    return f'''\
# Parameters of the node tar_vis with their defaults. Copy this file, change what you need, and start with
#   ros2 launch tar_vis_ros camera.launch.py params_file:=/path/to/yours.yaml
#   tar-vis-node --ros-args --params-file /path/to/yours.yaml
# What does not need a configure may change while the node is active.
# Made by `python -m tar_vis_ros.node.settings`.
/**:
  ros__parameters:
{TABLE.yaml()}'''


if __name__ == '__main__':
    print(parameter_file(), end='')
