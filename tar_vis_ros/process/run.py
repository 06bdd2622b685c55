"""Start and end a node of this package: one line for a mistake, a quiet end for SIGINT and SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from tar_vis_core.errors import DeviceLostError, TarVisError, one_line

GPU_LOST = os.EX_TEMPFAIL   # exit code 75: what failed may go in a new process
TURN_S = 0.2    # a signal is answered at the end of a turn
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def spin(node: Any) -> None:
    """Answer the node's callbacks for ever."""
    from rclpy.executors import SingleThreadedExecutor

    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while True:
        turn(executor, TURN_S)


def turn(executor: Any, timeout_s: float) -> None:
    """Answer what is ready, or wait ``timeout_s`` for it. Raise KeyboardInterrupt if SIGINT or SIGTERM has come."""
    executor.spin_once(timeout_sec=timeout_s)
    if _interrupted():      # it was raised where nothing can go on, such as in a destructor: Python prints and forgets
        raise KeyboardInterrupt


def run_node(command: str, parse: Callable[[list[str]], Any], make: Callable[[Any], Any],
             args: Sequence[str] | None = None, *, run: Callable[[Any], object] = spin, bad_input: int = 2) -> int:
    """Run one node until it ends, or SIGINT or SIGTERM comes. Return the exit code.

    The signals are answered from the first line on: ``parse`` and ``make`` are the place for imports that take long.
    If the GPU is lost, the process ends with code ``GPU_LOST``. If a signal comes, the node's ``finish()`` is called,
    if it has one, while ROS still works.

    Args:
        command: name of the program, for its errors.
        parse: reads the arguments that are not ROS's; it exits after ``--help`` and for wrong ones.
        make: makes the node from what ``parse`` returned.
        args: the whole command line, program name included; None: that of the process.
        run: what the node does.
        bad_input: exit code after one line about a wrong argument or input.
    """
    # Not rclpy's handlers: they end the context at once, and a node that has to say stop could not. Not Python's for
    # SIGINT either: what a shell starts in the background has none.
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        return _run(command, parse, make, list(sys.argv if args is None else args), run, bad_input)
    except KeyboardInterrupt:
        return 0
    finally:
        _ignore_signals()
        # CPython remembers an interrupt that went through an exec of text, as making a dataclass is one, and ends
        # with the signal's code although the interrupt was caught. The next exec of text makes it forget.
        exec('')


def no_arguments(command: str, description: str) -> Callable[[list[str]], None]:
    """Return a ``parse`` for :func:`run_node` that takes nothing but ``--help``, which prints ``description``."""
    def parse(arguments: list[str]) -> None:
        usage = f'usage: {command} [--help] [--ros-args ...]'
        if arguments:
            asked = not {'-h', '--help'}.isdisjoint(arguments)
            print(f'{usage}\n\n{description}' if asked else
                  f'{usage}\n{command}: error: unrecognized arguments: {" ".join(arguments)}',
                  file=sys.stdout if asked else sys.stderr)
            sys.exit(0 if asked else 2)
    return parse


def _run(command: str, parse: Callable, make: Callable, arguments: list[str], run: Callable, bad_input: int) -> int:
    import rclpy
    from rclpy._rclpy_pybind11 import RCLError, RCLInvalidROSArgsError, UnknownROSArgsError
    from rclpy.signals import SignalHandlerOptions
    from rclpy.utilities import remove_ros_args

    from tar_vis_ros.process.dds import use_shared_memory_profile
    from tar_vis_ros.process.parameter_files import check_files, ignored_files

    # what rclpy adds to the error of a node that could not be made
    warnings.filterwarnings('ignore', 'Failed to fini', RuntimeWarning)
    node, lost = None, False
    try:
        try:
            check_files(arguments)      # before ROS looks at them
            parsed = parse(remove_ros_args(arguments)[1:])
            use_shared_memory_profile()
            rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
            node = make(parsed)
            for line in ignored_files(arguments, node.get_fully_qualified_name()):
                node.get_logger().warning(line)
        except (RCLError, RCLInvalidROSArgsError, UnknownROSArgsError) as error:
            # A YAML file that is none, for example.
            text = re.sub(r', at [^ ]+:[0-9]+', '', str(error))     # without lines of rcl's source
            if 'security libraries' in text:
                raise TarVisError('ROS_SECURITY_ENABLE is set, and the DDS of this installation has no security (that '
                                  'of the ROS wheels never has): use ROS from apt, or unset it') from error
            raise TarVisError(f'ROS arguments: {" ".join(text.split())}') from error
        run(node)
    except BaseException as error:
        # Whatever came after a signal came from it: ROS's C++ makes a RuntimeError of a KeyboardInterrupt that is
        # raised while a message is converted.
        if _interrupted() or isinstance(error, KeyboardInterrupt):
            if hasattr(node, 'finish'):
                node.finish()
            raise KeyboardInterrupt from error
        if not isinstance(error, TarVisError):
            raise
        print(f'{command}: {one_line(error)}', file=sys.stderr)
        lost = isinstance(error, DeviceLostError)
        return bad_input
    finally:
        # Undisturbed: launch repeats SIGINT and soon sends SIGTERM.
        _ignore_signals()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        if lost:    # at once: what gives back memory of such a GPU may abort the process, and with another code
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(GPU_LOST)
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    # launch repeats the signal. One that has come meanwhile still wants a handler: Python complains if there is none.
    for each in SIGNALS:
        signal.signal(each, _pass_over)
    raise KeyboardInterrupt


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Do nothing about a signal that repeats one."""


def _interrupted() -> bool:
    return signal.getsignal(signal.SIGINT) is _pass_over


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
