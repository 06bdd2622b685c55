"""Options in tables, which declare, check and document them. Needs no torch.

A table is a dataclass whose fields :func:`option` makes. Flags of commands and parameters of nodes are made from it, so
no other place knows an option's default, meaning or limits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from tar_vis_core.errors import near
from tar_vis_core.models.presets import PRESETS, ROUTINGS, TRACKERS

Value = bool | int | float | str | tuple[str, ...] | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Option:
    """A value that a user may choose. Its type is the default's; a tuple is of texts if the default is empty."""

    default: Value
    description: str
    low: float = -math.inf
    high: float = math.inf
    or_zero: bool = False           # 0 is allowed although it lies below ``low``
    choices: tuple[str, ...] = ()
    pattern: str = ''               # a regular expression that the whole text matches
    example: str = ''               # what is expected, in words

    @property
    def kind(self) -> type:
        """Return the type of the value, or of the values in a tuple."""
        if isinstance(self.default, tuple):
            return type(self.default[0]) if self.default else str
        return type(self.default)

    @property
    def expected(self) -> str:
        """Return the allowed values, in words that follow 'expected'."""
        if self.choices:
            return f'one of {", ".join(choice or "(empty)" for choice in self.choices)}'
        if self.example:
            return self.example
        if isinstance(self.default, bool):
            return 'true or false'
        if isinstance(self.default, tuple) and self.kind is str:
            return "a list of texts such as ['person', 'dog']"
        if isinstance(self.default, str):
            return 'a text'
        kind = 'whole number' if self.kind is int else 'number'
        kind = f'{kind}s' if isinstance(self.default, tuple) else f'a {kind}'
        limits = [f'{word} {bound:{"d" if isinstance(bound, int) else "g"}}'
                  for word, bound in (('from', self.low), ('to', self.high)) if math.isfinite(bound)]
        return ('0 or ' if self.or_zero else '') + ' '.join([kind, *limits])

    def check(self, name: str, value: Any) -> Value:
        """Return the value in the option's type.

        Raise ValueError that names the value, the nearest choice, and what is expected, if it is not allowed.
        """
        many = isinstance(self.default, tuple)
        fits = not many or (not isinstance(value, str) and hasattr(value, '__iter__'))
        if fits:
            value = tuple(value) if many else value
            fits = all(map(self._fits, value if many else (value,)))
        if fits and self.kind in (int, float):
            value = tuple(map(self.kind, value)) if many else self.kind(value)
        fits = fits and (not self.choices or value in self.choices)
        if not fits or (self.pattern and not re.fullmatch(self.pattern, value)):
            hint = near(value, self.choices) if isinstance(value, str) else ''
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f'{name} is {shown!r}{hint}, expected {self.expected}')
        return value

    def _fits(self, value: Any) -> bool:
        """Return whether a value, or one of those in a tuple, is of the type and within the limits."""
        if self.kind not in (int, float):
            return isinstance(value, self.kind)
        return isinstance(value, Integral if self.kind is int else Real) and not isinstance(value, bool) and (
            math.isfinite(value) and (self.low <= value <= self.high or (self.or_zero and value == 0)))


def option(default: Value, description: str, **limits: Any) -> Any:
    """Return the field of a dataclass for an option; ``limits`` are further fields of :class:`Option`."""
    return field(default=default, metadata={'option': Option(default, description, **limits)})


def same_option(table: type, name: str) -> Any:
    """Return the field of an option that another table has, too."""
    known = options_of(table)[name]
    return field(default=known.default, metadata={'option': known})


def options_of(table: type) -> dict[str, Option]:
    """Return the options of a dataclass by name: those of its fields that :func:`option` made."""
    return {made.name: made.metadata['option'] for made in fields(table) if 'option' in made.metadata}


@dataclass(frozen=True)
class Options:
    """A table. Raise ValueError that says which value is wrong and what is expected."""

    def __post_init__(self) -> None:
        for name, known in options_of(type(self)).items():
            object.__setattr__(self, name, known.check(name, getattr(self, name)))


@dataclass(frozen=True)
class ModelOptions(Options):
    """Options that a model is loaded with."""

    weights: str = option('', 'safetensors file of that model; empty: the weights in this package')
    adapter: str = option('', 'safetensors file with Synchronizer and Routers for weights without them; empty: none')
    tracker: str = option('auto', "how objects keep their ids; auto: the model's own way", choices=('auto', *TRACKERS))
    device: str = option('auto', 'where the model runs; auto: the first GPU, else the CPU',
                         pattern=r'auto|cpu|cuda(:\d{1,3})?', example='auto, cpu, cuda or cuda:N')
    threads: int = option(0, 'CPU threads of the model at most; 0: as many as torch takes', low=0, high=1024)


@dataclass(frozen=True)
class InferenceOptions(ModelOptions):
    """The same, and the arithmetic."""

    precision: str = option('auto', 'arithmetic of the model; auto: float32, but products of the default model in '
                            'bfloat16 on a CPU that is faster so', choices=('auto', 'float32', 'float16', 'bfloat16'))


@dataclass(frozen=True)
class EngineOptions(InferenceOptions):
    """The same, and what runs the image encoder."""

    engine: str = option('torch', 'what runs the image encoder; all but torch are optional packages, for a CPU',
                         pattern=r'torch|onnxruntime|openvino(:[A-Z]+(\.\d+)?)?',
                         example='torch, onnxruntime, openvino or openvino:DEVICE such as openvino:GPU')


@dataclass(frozen=True)
class SegmenterOptions(Options):
    """Options that may change between frames."""

    routing: str = option(
        'auto', 'which decoder layers run; auto: adaptive if there are routers, else full',
        choices=('auto', *ROUTINGS))
    fixed_layers: int = option(3, 'decoder layers that run when routing is fixed', low=1,
                               high=max(preset.decoder_layers for preset in PRESETS.values()))
    score_threshold: float = option(0.6, 'score that a new track needs; a known track needs half of it',
                                    low=0, high=1)
    max_instances: int = option(20, 'most instances that are reported per image', low=1, high=1000)
    class_filter: tuple[str, ...] = option((), 'class names to report; empty: all')
    input_short_side: int = option(0, "shorter edge of the model's input, pixels; 0: the model's own",
                                   low=32, high=1333, or_zero=True)
    skip_bias: float = option(0.0, "added to the routers' skip score: above 0 skips more layers, below 0 fewer",
                              low=-100, high=100)
    latency_budget_ms: float = option(
        0.0, 'with adaptive: the time that 95 % of the steps keep, by a moving skip_bias; 0: off', low=0, high=100000)
    refresh_frames: int = option(
        10, 'with adaptive: frames from one plain pass of all layers to the next; 0: only the first',
        low=0, high=100000)
    encoder_reuse: float = option(
        0.0, 'grey levels: an image that differs by less takes over earlier masks; 0: off', low=0, high=255)
    reset_gap_s: float = option(2.0, 'gap of image stamps after which tracks start anew, seconds; 0: never',
                                low=0, high=86400)
    grace_frames: int = option(75, 'images that a track may be out of sight before its id ends', low=0, high=10000)


MODEL_OPTIONS, OPTIONS = options_of(ModelOptions), options_of(SegmenterOptions)
