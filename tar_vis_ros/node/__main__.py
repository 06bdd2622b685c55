"""The command tar-vis-node: starts the lifecycle node and ends it quietly."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from tar_vis_core.runtime.allocator import keep_freed_memory


def main(args: Sequence[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM. Gives the exit code: 0, or 2 after one line about wrong arguments.

    ``args`` is the whole command line, program name included.
    """
    # rclpy answers both signals from its init on. What follows until then takes a second, so answer them here too.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(list(sys.argv if args is None else args))
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)   # launch repeats the signal
        # CPython remembers an interrupt that went through an exec of text, as making a dataclass is one, and ends
        # with the signal's code although the interrupt was caught. The next exec of text makes it forget.
        exec('')


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(arguments: list[str]) -> int:
    keep_freed_memory()   # whatever the device: memory that is given back at will makes the node's swing
    import rclpy
    from rclpy._rclpy_pybind11 import RCLError, RCLInvalidROSArgsError, UnknownROSArgsError
    from rclpy.executors import ExternalShutdownException
    from rclpy.utilities import remove_ros_args

    from tar_vis_ros.node.node import TarVisNode
    from tar_vis_ros.node.usage import parse_arguments
    from tar_vis_ros.process.dds import use_shared_memory_profile
    from tar_vis_ros.process.shutdown import shut_down

    try:
        parse_arguments(remove_ros_args(arguments)[1:])
        use_shared_memory_profile()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        rclpy.init(args=arguments)
    except (RCLError, RCLInvalidROSArgsError, UnknownROSArgsError) as error:   # a YAML file that is none, for example
        text = re.sub(r', at [^ ]+:[0-9]+', '', ' '.join(str(error).split()))   # without lines of rcl's source
        print(f'tar-vis-node: ROS arguments: {text}', file=sys.stderr)
        return 2
    node = None
    try:
        node = TarVisNode()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RCLError:
        if rclpy.ok():   # else SIGTERM took the context away under a call
            raise
    finally:
        shut_down(node)
    return 0


if __name__ == '__main__':
    sys.exit(main())
