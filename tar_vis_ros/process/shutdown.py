"""The end of a ROS process, the same for every command."""

from __future__ import annotations

import signal

import rclpy
from rclpy.node import Node


def shut_down(node: Node | None) -> None:
    """Destroys the node and its context, undisturbed: launch repeats SIGINT and soon sends SIGTERM.

    Neither may meet a context that goes down: rclpy's own SIGTERM handler ends the process with a segmentation fault.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if node is not None:
        node.destroy_node()
    rclpy.try_shutdown()
