"""The segmenter's options in one table, which declares, checks and documents them. Needs no torch.

The table is the dataclass :class:`SegmenterOptions`. Flags of commands and parameters of nodes are made from it
(``OPTIONS``), so no other place knows an option's default, meaning or limits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from tar_vis_core.errors import near
from tar_vis_core.models.presets import PRESETS, ROUTINGS

Value = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True)
class Option:
    """A value that a user may choose. Its type is the default's; texts in a tuple may be empty or of any number."""

    default: Value
    description: str
    low: float = -math.inf
    high: float = math.inf
    or_zero: bool = False           # 0 is allowed although it lies below ``low``
    choices: tuple[str, ...] = ()
    pattern: str = ''               # a regular expression that the whole text matches
    example: str = ''               # what is expected, in words

    @property
    def expected(self) -> str:
        """Return the allowed values, in words that follow 'expected'."""
        if self.choices:
            return f'one of {", ".join(choice or "(empty)" for choice in self.choices)}'
        if self.example:
            return self.example
        if isinstance(self.default, bool):
            return 'true or false'
        if isinstance(self.default, tuple):
            return "a list of texts such as ['person', 'dog']"
        if isinstance(self.default, str):
            return 'a text'
        kind = 'a whole number' if isinstance(self.default, int) else 'a number'
        limits = [f'{word} {bound:{"d" if isinstance(bound, int) else "g"}}'
                  for word, bound in (('from', self.low), ('to', self.high)) if math.isfinite(bound)]
        return ('0 or ' if self.or_zero else '') + ' '.join([kind, *(limits or ['that is finite'])])

    def check(self, name: str, value: Any) -> Value:
        """Return the value in the option's type.

        Raise ValueError that names the value, the nearest choice, and what is expected, if it is not allowed.
        """
        kind = type(self.default)
        if kind is tuple:
            fits = not isinstance(value, str) and hasattr(value, '__iter__')
            value = tuple(value) if fits else value
            fits = fits and all(isinstance(text, str) for text in value)
        elif kind in (int, float):
            number = Integral if kind is int else Real
            fits = isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value) and (
                self.low <= value <= self.high or (self.or_zero and value == 0))
            value = kind(value) if fits else value
        else:
            fits = isinstance(value, kind)
        fits = fits and (not self.choices or value in self.choices)
        if not fits or (self.pattern and not re.fullmatch(self.pattern, value)):
            hint = near(value, self.choices) if isinstance(value, str) else ''
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f'{name} is {shown!r}{hint}, expected {self.expected}')
        return value


def option(default: Value, description: str, **limits: Any) -> Any:
    """Return the field of a dataclass for an option; ``limits`` are further fields of :class:`Option`."""
    return field(default=default, metadata={'option': Option(default, description, **limits)})


def options_of(table: type) -> dict[str, Option]:
    """Return the options of a dataclass whose fields :func:`option` made, by name."""
    return {made.name: made.metadata['option'] for made in fields(table)}


@dataclass(frozen=True)
class SegmenterOptions:
    """Options that may change between frames. Raise ValueError that says which value is wrong and what is expected."""

    routing: str = option(
        'auto', 'which decoder layers run; auto: adaptive where there are routers, else full',
        choices=('auto', *ROUTINGS))
    fixed_layers: int = option(3, 'decoder layers that run when routing is fixed', low=1,
                               high=max(preset.decoder_layers for preset in PRESETS.values()))
    score_threshold: float = option(0.6, 'score that a new track needs; a known one goes on with half of it',
                                    low=0, high=1)
    max_instances: int = option(20, 'instances reported per image at most', low=1, high=1000)
    class_filter: tuple[str, ...] = option((), 'class names to report; empty: all')
    input_short_side: int = option(0, "shorter edge of the model's input, pixels; 0: the model's own",
                                   low=32, high=1333, or_zero=True)
    skip_bias: float = option(0.0, "added to the routers' skip score: above 0 skips more layers, below 0 fewer",
                              low=-100, high=100)
    latency_budget_ms: float = option(
        0.0, 'with adaptive, skip_bias is moved so that 95 % of the steps take no longer; 0: off', low=0, high=100000)
    refresh_frames: int = option(
        10, 'with adaptive, every so many frames a plain pass of all layers; 0: only at first', low=0, high=100000)
    encoder_reuse: float = option(
        0.0, 'grey levels: an image that differs less reuses the features of an earlier one; 0: off', low=0, high=255)
    reset_gap_s: float = option(2.0, 'seconds between two image stamps after which tracks start anew; 0: never',
                                low=0, high=86400)
    grace_frames: int = option(15, 'images that a track may be out of sight and still keep its id', low=0, high=10000)

    def __post_init__(self) -> None:
        for name, known in OPTIONS.items():
            object.__setattr__(self, name, known.check(name, getattr(self, name)))


OPTIONS = options_of(SegmenterOptions)
