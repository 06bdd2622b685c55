"""The text of `tar-vis-node --help`."""

from __future__ import annotations

import textwrap

from tar_vis_ros.conversions.images import ENCODINGS
from tar_vis_ros.node.settings import TABLE

# Topics that the node publishes for each camera, below its name: type and meaning.
PUBLISHED = {
    'instances': ('tar_vis_ros/InstanceMaskArray', 'masks, classes, scores, track ids'),
    'skip_diagnostics': ('tar_vis_ros/SkipDiagnostics', 'decoder layers run, stage times, drops, resets'),
    'label_image': ('sensor_msgs/Image', 'mono16 track ids; only while somebody listens'),
    'semantic_mask': ('sensor_msgs/Image', 'mono8 class ids, 255 is background; only while somebody listens'),
    'semantic_confidence': ('sensor_msgs/Image', 'mono8 scores times 255; only while somebody listens'),
    'static_mask': ('sensor_msgs/Image', 'mono8, 0 on what moves by itself; only while somebody listens'),
    'overlay': ('sensor_msgs/Image', 'rgb8 picture; only while somebody listens'),
    'detections': ('vision_msgs/Detection2DArray', 'boxes; only while somebody listens, and with vision_msgs'),
    'label_info': ('vision_msgs/LabelInfo', 'names of the classes, latched; with vision_msgs'),
}


def description() -> str:
    """Return the help: how to start the node, its topics, services and parameters."""
    indent = ' ' * 23
    encodings = textwrap.fill(' '.join(ENCODINGS), 100, initial_indent=indent, subsequent_indent=indent)
    published = '\n'.join(f'  ~/{name:<19} {kind:<29} {meaning}' for name, (kind, meaning) in PUBLISHED.items())
    return f"""Tracked instance masks from a camera topic, as a lifecycle node named 'tar_vis'.

  tar-vis-node --ros-args -p autostart:=true -r image:=/camera/image_raw
  tar-vis-node --ros-args --params-file my.yaml      and then configure and activate it

subscribed, best effort, the newest only:
  image                sensor_msgs/Image
{encodings}
  image/compressed     sensor_msgs/CompressedImage   in place of it with image_transport: compressed; JPEG or PNG
published, with the image's own header:
{published}
with image_topics, each camera has its own: /front/image_raw gives ~/front/instances, ~/front/reset and so on
published once a second:
  /diagnostics         diagnostic_msgs/DiagnosticArray
services:
  ~/reset              std_srvs/Trigger    new tracks from the next image on
  ~/change_state ...   lifecycle_msgs      configure, activate, deactivate, cleanup, shutdown

parameters (name, default, meaning):
{TABLE.text()}
"""
