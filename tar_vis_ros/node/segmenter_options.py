"""From the node's settings to a segmenter: the one place where the ROS side asks for the model."""

from __future__ import annotations

from dataclasses import replace

from tar_vis_core.models.presets import preset_of
from tar_vis_ros.node import parameters
from tar_vis_ros.node.parameters import FIELDS, Settings

WARM_UP_SIZE = (480, 640)


def load_segmenter(settings: Settings):
    """The warm VideoSegmenter that the settings ask for. Raises TarVisError or ValueError, each of one line."""
    from tar_vis_core.segmenter import VideoSegmenter  # takes torch along: only a configure waits for it

    segmenter = VideoSegmenter(
        preset=preset_of(settings.model, settings.backbone), weights=settings.weights or None,
        adapter=settings.adapter or None, tracker=settings.tracker, device=settings.device,
        precision=settings.precision, threads=settings.threads)
    segmenter.options = live_options(settings, settings)
    segmenter.warm_up(*WARM_UP_SIZE)
    return segmenter


def live_options(configured: Settings, current: Settings):
    """SegmenterOptions of the current settings, with those that need a configure as they were configured.

    Raises ValueError for a value that is out of range.
    """
    from tar_vis_core.segmenter import SegmenterOptions

    kept = {name: getattr(configured, name) for name in FIELDS if parameters.specification(name).needs_configure}
    settings = replace(current, **kept)
    return SegmenterOptions(
        routing=settings.routing, fixed_layers=settings.fixed_layers, skip_bias=settings.skip_bias,
        score_threshold=settings.score_threshold, max_instances=settings.max_instances,
        class_filter=settings.class_filter, input_short_side=settings.input_short_side,
        grace_frames=settings.grace_frames, reset_gap_s=settings.reset_gap_s, refresh_frames=settings.refresh_frames,
        encoder_reuse=settings.encoder_reuse)
