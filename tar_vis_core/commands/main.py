"""The command ``tar-vis``. Its subcommands need no ROS, except those of the other package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from tar_vis_core.errors import TarVisError
from tar_vis_core.io.terminal import line_about, say_anything

# A command: the module with its ``main(argv)``, one line of help.
COMMANDS = {
    'run': ('tar_vis_core.commands.run', 'a video, folder or camera to an overlay video and instances.jsonl'),
    'train': ('tar_vis_core.training.train', 'train a model by a recipe'),
    'eval': ('tar_vis_core.commands.evaluate', 'mask AP on stills or videos, by layers and by routing'),
    'data': ('tar_vis_core.commands.data', 'make, check and split labelled data'),
    'study': ('tar_vis_core.commands.study', "the paper's studies: table, plot, the paper's values beside ours"),
    'bench': ('tar_vis_core.commands.bench', 'time of the whole step and of its stages'),
    'export': ('tar_vis_core.commands.export', 'a part of a model as an ONNX file, compared with PyTorch'),
    'see': ('tar_vis_ros.see.command', 'objects in sight, as text or JSON, from a node or a picture'),
    'doctor': ('tar_vis_ros.doctor.command', 'problems of this machine, and their remedies'),
    'weights': ('tar_vis_core.commands.weights', 'list, get, verify and convert files of weights'),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the first word; each command has a parser of its own for the others."""
    made = argparse.ArgumentParser(prog='tar-vis', description='Online video instance segmentation with TAR.')
    commands = made.add_subparsers(required=True, metavar='COMMAND')
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=f'{text}; tar-vis {name} --help', add_help=False)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Return the exit code: 0, or 1 after one line about the error. Exit with 2 for wrong arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser().parse_known_args(words[:1])
    say_anything()
    try:
        return import_module(COMMANDS[words[0]][0]).main(words[1:])
    except (TarVisError, ValueError, OSError, MemoryError) as error:
        print(f'tar-vis: {line_about(error)}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
