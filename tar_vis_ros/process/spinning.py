"""How the small nodes start and end: one line for a mistake, a quiet end for SIGINT and SIGTERM."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import rclpy
from rclpy._rclpy_pybind11 import RCLError, RCLInvalidROSArgsError, UnknownROSArgsError
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from tar_vis_ros.process.dds import use_shared_memory_profile
from tar_vis_ros.process.options import OptionError
from tar_vis_ros.process.shutdown import shut_down

TURN_S = 0.2    # a signal is answered at the end of a turn


def run_node(command: str, usage: str, make: Callable[[], Node], args: Sequence[str] | None = None) -> int:
    """Runs the node that ``make`` gives until SIGINT or SIGTERM; its ``finish()``, where it has one, is called last.

    ``usage`` is what ``--help`` says, ``args`` the whole command line, program name included. Gives the exit code: 0,
    or 2 after one line about wrong arguments.
    """
    arguments = list(sys.argv if args is None else args)
    # Not rclpy's handlers: they end the context at once, and a node that has to say stop could not. Not Python's for
    # SIGINT either: what a shell starts in the background has none.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    node = None
    try:
        try:
            argparse.ArgumentParser(command, usage=f'{command} [--help] [--ros-args ...]', description=usage,
                                    formatter_class=argparse.RawDescriptionHelpFormatter,
                                    ).parse_args(remove_ros_args(arguments)[1:])
            use_shared_memory_profile()
            rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
            node = make()
        except (OptionError, RCLError, RCLInvalidROSArgsError, UnknownROSArgsError) as error:
            text = re.sub(r', at [^ ]+:[0-9]+', '', ' '.join(str(error).split()))   # without lines of rcl's source
            print(f'{command}: {text}', file=sys.stderr)
            return 2
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while True:
            executor.spin_once(timeout_sec=TURN_S)
    except KeyboardInterrupt:
        if hasattr(node, 'finish'):
            node.finish()
        return 0
    finally:
        shut_down(node)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)    # launch repeats the signal
    raise KeyboardInterrupt
