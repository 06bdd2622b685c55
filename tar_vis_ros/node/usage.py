"""What `tar-vis-node --help` says."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tar_vis_ros.node import parameters

USAGE = """Tracked instance masks from a camera topic, as a lifecycle node named 'tar_vis'.

  tar-vis-node --ros-args -p autostart:=true -r image:=/camera/image_raw
  tar-vis-node --ros-args --params-file my.yaml      and then configure and activate it
"""
INTERFACES = """subscribed:
  image                sensor_msgs/Image   best effort, newest only; rgb8 bgr8 rgba8 bgra8 mono8 mono16
published, with the image's own header:
  ~/instances          tar_vis_ros/InstanceMaskArray   masks, classes, scores, track ids
  ~/skip_diagnostics   tar_vis_ros/SkipDiagnostics     decoder layers run, stage times, drops, resets
  ~/label_image        sensor_msgs/Image   mono16 track ids; only while somebody listens
  ~/overlay            sensor_msgs/Image   rgb8 picture; only while somebody listens
published once a second:
  /diagnostics         diagnostic_msgs/DiagnosticArray
services:
  ~/reset              std_srvs/Trigger    new tracks from the next image on
  ~/change_state ...   lifecycle_msgs      configure, activate, deactivate, cleanup, shutdown

parameters (name, default, meaning):
"""


def parse_arguments(arguments: Sequence[str]) -> None:
    """Answers --help; ends the process with code 2 for anything else that is not for ROS."""
    argparse.ArgumentParser(
        'tar-vis-node', usage='tar-vis-node [--help] [--ros-args ...]', description=USAGE,
        epilog=INTERFACES + parameters.table(), formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
