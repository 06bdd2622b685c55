"""Flags of a command line, made from a table of options; they are checked as those of a node are."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tar_vis_core.options import Option, options_of

METAVARS = {str: 'TEXT', int: 'N', float: 'X'}


def add_flags(parser: argparse.ArgumentParser, options: Mapping[str, Option]) -> None:
    """Add a flag for each option. A flag that is not given stays None."""
    for name, option in options.items():
        many = isinstance(option.default, tuple)
        default = ' '.join(f'{value:g}' if isinstance(value, float) else str(value)
                           for value in (option.default if many else [option.default]))
        words = option.description
        if option.kind in METAVARS and (option.kind is not str or option.choices or option.example):
            words += f'; {option.expected}'
        if option.kind is not bool and default != '':
            words += f' (default: {default})'
        how: dict[str, Any] = {'action': 'store_true'} if option.kind is bool else {
            'type': option.kind, 'metavar': METAVARS[option.kind]}
        if many:
            how |= {'nargs': '*', 'action': 'extend'}
        parser.add_argument(flag(name), default=None, help=words.replace('%', '%%'), **how)


def flag(name: str) -> str:
    """Return the flag of an option."""
    return '--' + name.replace('_', '-')


def chosen(args: argparse.Namespace, table: type, **others: Any) -> Any:
    """Return the table with the values of the flags that were given; ``others`` are further fields of it.

    Raise ValueError that names the flag if a value is not allowed.
    """
    return table(**others, **{name: option.check(flag(name), getattr(args, name))
                              for name, option in options_of(table).items() if getattr(args, name) is not None})
