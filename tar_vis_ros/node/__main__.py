"""The command tar-vis-node: starts the lifecycle node and ends it quietly."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tar_vis_core.runtime.allocator import keep_freed_memory
from tar_vis_ros.process.run import no_arguments, run_node


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM. Return the exit code: 0, or 2 after one line about wrong arguments.

    ``args`` is the whole command line, program name included.
    """
    keep_freed_memory()   # whatever the device: memory that is given back at will makes the node's swing
    return run_node('tar-vis-node', _parse, _make, args)


def _parse(arguments: list[str]) -> None:
    from tar_vis_ros.node.usage import description
    no_arguments('tar-vis-node', description())(arguments)


def _make(_: None) -> object:
    from tar_vis_ros.node.node import TarVisNode
    return TarVisNode()


if __name__ == '__main__':
    sys.exit(main())
