"""Parameter files of ROS: for which nodes they are. One that is for none is ignored by ROS without a word."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tar_vis_core.errors import TarVisError
from tar_vis_core.io.input_files import problem_of
from tar_vis_core.io.json_files import read_text
from tar_vis_core.io.yaml_files import parse_yaml

PARAMETERS = 'ros__parameters'
SHOWN = 5


def sections(path: Path) -> dict[str, Mapping]:
    """Return the parameters of a file by the names of their nodes, in which ``*`` and ``**`` may stand.

    Raise TarVisError if it is no parameter file.
    """
    try:
        content = parse_yaml(read_text(path), str(path))
    except OSError as error:
        raise TarVisError(f'{path}: cannot be read: {error.strerror or error}') from error
    found = dict(_walk('', content)) if isinstance(content, Mapping) else {}
    if not found:
        raise TarVisError(f'{path}: no parameters in it; expected NODE: {PARAMETERS}: NAME: VALUE')
    return found


def _walk(prefix: str, content: Mapping) -> Iterator[tuple[str, Mapping]]:
    for key, inner in content.items():
        name = f'{prefix}/{str(key).strip("/")}'
        if isinstance(inner, Mapping):
            if isinstance(inner.get(PARAMETERS), Mapping):
                yield name, inner[PARAMETERS]
            yield from _walk(name, {k: v for k, v in inner.items() if k != PARAMETERS})


def is_for(section: str, node: str) -> bool:
    """Return whether the section of a file is for the node of that full name."""
    parts = {'*': '/[^/]+', '**': '(/[^/]+)*'}
    return re.fullmatch(''.join(parts.get(part, f'/{re.escape(part)}') for part in section.split('/')[1:]),
                        node) is not None


def check_files(arguments: Sequence[str]) -> None:
    """Raise TarVisError if a ``--params-file`` of a command line is no file: for a pipe ROS would wait for ever."""
    for option, value in itertools.pairwise(arguments):
        if option == '--params-file' and (problem := problem_of(value)):
            raise TarVisError(f'--params-file {value}: {problem}')


def ignored_files(arguments: Sequence[str], node: str) -> Iterator[str]:
    """Yield one line for each ``--params-file`` of a command line that has nothing for the node."""
    for option, value in itertools.pairwise(arguments):
        if option == '--params-file':
            try:
                held = sections(Path(value))
            except TarVisError as error:
                yield str(error)
                continue
            if not any(is_for(section, node) for section in held):
                yield f'{value} is ignored: none of its parameters are for {node}, it has those of {listed(held)}'


def listed(names: Mapping[str, object]) -> str:
    """Return the names of some sections."""
    return ', '.join(list(names)[:SHOWN]) + (', ...' if len(names) > SHOWN else '')
