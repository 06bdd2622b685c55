"""Flags that several commands share: which model, and the options of the segmenter."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from tar_vis_core.io.paths import user_path
from tar_vis_core.models.presets import PRESETS, TRACKERS
from tar_vis_core.options import OPTIONS, Option, SegmenterOptions


def add_model_options(parser: argparse.ArgumentParser, foreign: Mapping[str, str] | None = None) -> None:
    """Add the flags that choose a model and how it runs; the words are those of the node's parameters.

    ``foreign`` says what ``--weights`` is for foreign models, where they are taken.
    """
    also = ''.join(f'; {name}: your own, --weights is {what}' for name, what in (foreign or {}).items())
    parser.add_argument('--preset', default='nano', help=f'{", ".join(PRESETS)} (default: nano){also}')
    parser.add_argument('--weights', type=user_path, help="safetensors file (default: the preset's packaged weights)")
    parser.add_argument('--adapter', type=user_path, help='safetensors file with TAR for weights without it')
    parser.add_argument('--tracker', default='auto', help=f"auto (the model's own), {', '.join(TRACKERS)}")
    parser.add_argument('--device', default='auto', help='auto, cpu or cuda:N')
    parser.add_argument('--precision', default='float32', help='float32, float16 or bfloat16')
    parser.add_argument('--threads', type=int, default=0, help="CPU threads (default: torch's own)")


def add_flags(parser: argparse.ArgumentParser, options: Mapping[str, Option] = OPTIONS) -> None:
    """Add a flag for each option. A flag that is not given stays None."""
    for name, option in options.items():
        many = isinstance(option.default, tuple)
        default = ' '.join(map(str, option.default)) if many else option.default
        limits = '' if option.expected == 'a text' else f'; {option.expected}'
        words = option.description + limits + (f' (default: {default})' if default != '' else '')
        parser.add_argument('--' + name.replace('_', '-'), help=words.replace('%', '%%'), type=option.kind,
                            metavar='NAME' if many and option.kind is str else option.kind.__name__.upper(),
                            **(dict(nargs='*', action='extend') if many else {}))


def given(args: argparse.Namespace, options: Mapping[str, Option]) -> dict[str, object]:
    """Return the values of the flags that were given, by the options' names."""
    return {name: getattr(args, name) for name in options if getattr(args, name) is not None}


def segmenter_options(args: argparse.Namespace) -> SegmenterOptions:
    """Return the options that :func:`add_flags` read. Raise ValueError for a value that is not allowed."""
    return SegmenterOptions(**given(args, OPTIONS))
