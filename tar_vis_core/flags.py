"""Flags of a command line, made from a table of options; they are checked as those of a node are."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tar_vis_core.models.presets import PRESETS
from tar_vis_core.options import InferenceOptions, Option, options_of


def add_flags(parser: argparse.ArgumentParser, options: Mapping[str, Option]) -> None:
    """Add a flag for each option. A flag that is not given stays None."""
    for name, option in options.items():
        many = isinstance(option.default, tuple)
        default = ' '.join(map(str, option.default)) if many else option.default
        limits = '' if option.expected == 'a text' or option.kind is bool else f'; {option.expected}'
        words = option.description + limits + (
            '' if default == '' or option.kind is bool else f' (default: {default})')
        how: dict[str, Any] = {'action': argparse.BooleanOptionalAction} if option.kind is bool else {
            'type': option.kind,
            'metavar': 'NAME' if many and option.kind is str else option.kind.__name__.upper(),
            **({'nargs': '*', 'action': 'extend'} if many else {})}
        parser.add_argument(flag(name), default=None, help=words.replace('%', '%%'), **how)


def add_model_flags(parser: argparse.ArgumentParser, foreign: Mapping[str, str] | None = None) -> None:
    """Add the flags that choose a model and how it runs.

    ``foreign`` says what ``--weights`` is for foreign models, if they are taken.
    """
    also = ''.join(f'; {name}: your own, --weights is {what}' for name, what in (foreign or {}).items())
    parser.add_argument('--preset', default='nano', help=f'{", ".join(PRESETS)} (default: nano){also}')
    add_flags(parser, options_of(InferenceOptions))


def flag(name: str) -> str:
    """Return the flag of an option."""
    return '--' + name.replace('_', '-')


def chosen(args: argparse.Namespace, table: type, **others: Any) -> Any:
    """Return the table with the values of the flags that were given; ``others`` are further fields of it.

    Raise ValueError that names the flag if a value is not allowed.
    """
    return table(**others, **{name: option.check(flag(name), getattr(args, name))
                              for name, option in options_of(table).items() if getattr(args, name) is not None})
