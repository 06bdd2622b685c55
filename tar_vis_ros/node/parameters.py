"""The node's parameters: one table, which declares, checks and documents them.

The table is the dataclass :class:`Settings`: a line is a parameter with its default, its meaning, what
values it takes, and whether a change needs a configure. Nothing else knows a parameter's limits.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from tar_vis_core.models.presets import PRESETS, TRACKERS

Value = bool | int | float | str | tuple[str, ...]


class ParameterError(ValueError):
    """A parameter's value is refused; the message is one line: name, value, what is expected."""


@dataclasses.dataclass(frozen=True)
class Specification:
    """What is known of a parameter apart from its name and default."""

    description: str
    low: float = -math.inf
    high: float = math.inf
    or_zero: bool = False         # 0 is taken although it lies below ``low``
    choices: tuple[str, ...] = ()
    pattern: str = ''             # a regular expression that the whole text matches
    example: str = ''             # the pattern in words
    needs_configure: bool = False
    read_only: bool = False


def _parameter(default: Value, description: str, **rest: Any) -> Any:
    return dataclasses.field(default=default, metadata={'specification': Specification(description, **rest)})


@dataclasses.dataclass(frozen=True)
class Settings:
    """All parameters, checked. ``needs_configure`` ones take effect at the next configure, the others at once."""

    model: str = _parameter(
        'nano', 'model family to run', choices=tuple(dict.fromkeys(p.family for p in PRESETS.values())),
        needs_configure=True)
    backbone: str = _parameter(
        '', "the model's image backbone; empty: its first", needs_configure=True,
        choices=('', *dict.fromkeys(p.backbone for p in PRESETS.values())))
    weights: str = _parameter(
        '', 'safetensors file of that model; empty: the weights in this package', needs_configure=True)
    adapter: str = _parameter(
        '', 'safetensors file with Synchronizer and Routers for weights without them; empty: none',
        needs_configure=True)
    tracker: str = _parameter(
        'auto', "how objects keep their ids; auto: the model's own way", choices=('auto', *TRACKERS),
        needs_configure=True)
    device: str = _parameter(
        'auto', 'where the model runs; auto: the first GPU, else the CPU', pattern=r'auto|cpu|cuda(:\d{1,3})?',
        example='auto, cpu, cuda or cuda:N', needs_configure=True)
    precision: str = _parameter(
        'float32', 'arithmetic of the model', choices=('float32', 'float16', 'bfloat16'), needs_configure=True)
    threads: int = _parameter(0, 'CPU threads of the model; 0: as many as torch takes', low=0, high=1024,
                              needs_configure=True)
    input_short_side: int = _parameter(
        0, "shorter edge of the model's input, pixels; 0: the model's own", low=32, high=1333, or_zero=True,
        needs_configure=True)
    image_topics: tuple[str, ...] = _parameter(
        (), 'topics of several cameras for the one model; empty: one camera, on topic image',
        example="a list of topics such as ['/front/image_raw', '/rear/image_raw']", needs_configure=True)
    image_transport: str = _parameter(
        'raw', 'raw: Image on the topic itself; compressed: CompressedImage on topic/compressed',
        choices=('raw', 'compressed'), needs_configure=True)
    image_reliability: str = _parameter(
        'best_effort', 'what is asked of the publishers of images; qos_overrides can say more',
        choices=('best_effort', 'reliable'), needs_configure=True)
    image_timeout_s: float = _parameter(
        5.0, 'seconds without an image after which /diagnostics warns', low=0.1, high=86400)
    routing: str = _parameter(
        'auto', 'which decoder layers run; auto: adaptive where there are routers, else full',
        choices=('auto', 'adaptive', 'full', 'fixed'))
    fixed_layers: int = _parameter(3, 'decoder layers that run when routing is fixed', low=1,
                                   high=max(preset.decoder_layers for preset in PRESETS.values()))
    latency_budget_ms: float = _parameter(
        0.0, 'with adaptive, skip_bias is moved so that 95 % of the steps take no longer; 0: off', low=0,
        high=100000)
    skip_bias: float = _parameter(
        0.0, "added to the routers' skip score: above 0 skips more layers, below 0 fewer", low=-100, high=100)
    refresh_frames: int = _parameter(
        10, 'with adaptive, every so many frames a plain pass of all layers; 0: only at first',
        low=0, high=100000)
    encoder_reuse: float = _parameter(
        0.0, 'grey levels: an image that differs less reuses the features of an earlier one; 0: off', low=0, high=255)
    score_threshold: float = _parameter(
        0.6, 'score that a new track needs; a known one goes on with half of it', low=0, high=1)
    max_instances: int = _parameter(20, 'instances reported per image at most', low=1, high=1000)
    class_filter: tuple[str, ...] = _parameter((), 'class names to report; empty: all')
    grace_frames: int = _parameter(
        15, 'images that a track may be out of sight and still keep its id', low=0, high=10000)
    reset_gap_s: float = _parameter(
        2.0, 'seconds between two image stamps after which tracks start anew; 0: never', low=0, high=86400)
    autostart: bool = _parameter(False, 'configure and activate at start, without a lifecycle manager', read_only=True)


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def specification(name: str) -> Specification:
    """What is known of the parameter ``name``."""
    return FIELDS[name].metadata['specification']


def expected(name: str) -> str:
    """What values a parameter takes, in words that follow 'expected'."""
    spec, default = specification(name), FIELDS[name].default
    if spec.choices:
        return f'one of {", ".join(choice or "(empty)" for choice in spec.choices)}'
    if spec.example:
        return spec.example
    if isinstance(default, bool):
        return 'true or false'
    if isinstance(default, tuple):
        return "a list of texts such as ['person', 'dog']"
    if isinstance(default, str):
        return 'a text'
    zero = '0 or ' if spec.or_zero else ''
    return f'{zero}a {"whole " if isinstance(default, int) else ""}number from {spec.low:g} to {spec.high:g}'


def check(name: str, value: Any) -> Value:
    """The value of a known parameter in its own type; ParameterError where it is none.

    A whole number is taken where a number belongs, and one text where a list of texts belongs.
    """
    spec, default = specification(name), FIELDS[name].default
    if isinstance(default, tuple):
        texts = [value] if isinstance(value, str) else list(value) if _is_list(value) else [] if value is None else [0]
        if all(isinstance(text, str) for text in texts):
            return tuple(text for text in texts if text)
        raise _refusal(name, value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    fits = type(value) is type(default)
    if fits and isinstance(value, float | int) and not isinstance(value, bool):
        fits = spec.low <= value <= spec.high or (spec.or_zero and value == 0)   # False for NaN
    if fits and spec.choices:
        fits = value in spec.choices
    if fits and spec.pattern:
        fits = re.fullmatch(spec.pattern, value) is not None
    if not fits:
        raise _refusal(name, value)
    return value


def _refusal(name: str, value: Any) -> ParameterError:
    shown = 'empty' if value is None else repr(list(value) if _is_list(value) else value)
    choices = specification(name).choices
    hint = _near(value, choices) if isinstance(value, str) else ''
    return ParameterError(f"parameter '{name}' is {shown}{hint}: expected {expected(name)}")


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f' (did you mean {near[0]!r}?)' if near else ''


def _is_list(value: Any) -> bool:
    return hasattr(value, '__iter__') and not isinstance(value, str)


def unknown(name: str) -> str:
    """What to say of a parameter that does not exist."""
    return f"there is no parameter '{name}'{_near(name, list(FIELDS))}"


def to_ros(name: str, value: Value) -> Parameter:
    """The parameter as rclpy holds it; an empty list keeps its type."""
    if isinstance(value, tuple):
        return Parameter(name, Parameter.Type.STRING_ARRAY, list(value))
    return Parameter(name, value=value)


def from_ros(values: Mapping[str, Any]) -> Settings:
    """Settings of values that are all there. Raises ParameterError for the first that is wrong."""
    return Settings(**{name: check(name, values[name]) for name in FIELDS})


def descriptor(name: str) -> ParameterDescriptor:
    """The descriptor that tools show: meaning, range, choices."""
    spec, default = specification(name), FIELDS[name].default
    message = ParameterDescriptor(name=name, description=spec.description, read_only=spec.read_only)
    limits = [f'expected {expected(name)}']
    if spec.needs_configure:
        limits.append('takes effect at the next configure')
    message.additional_constraints = '; '.join(limits)
    if type(default) is int:
        message.integer_range = [IntegerRange(from_value=0 if spec.or_zero else int(spec.low), to_value=int(spec.high))]
    if isinstance(default, float):
        message.floating_point_range = [FloatingPointRange(from_value=float(spec.low), to_value=float(spec.high))]
    return message


def declare(node: Node) -> tuple[dict[str, str], list[str]]:
    """Declares every parameter on ``node`` with its start-up value from YAML or the command line.

    Gives ``(mistakes, remarks)``: for each parameter whose start-up value is wrong one line (its default
    stands meanwhile), and one line for each start-up parameter that does not exist. Never raises for a value.
    """
    # rclpy has no public way to see start-up values before they are declared, and raises at the first wrong one.
    given = node._parameter_overrides
    mistakes: dict[str, str] = {}
    for name, field in FIELDS.items():
        value = field.default
        if name in given:
            try:
                value = check(name, given[name].value)
            except ParameterError as error:
                mistakes[name] = str(error)
        ros = to_ros(name, value)
        # by type, then by value: rclpy cannot tell the type of an empty list
        node.declare_parameter(name, ros.type_ if isinstance(value, tuple) else value, descriptor(name),
                               ignore_override=True)
        if isinstance(value, tuple):
            node.set_parameters([ros])
    foreign = [name for name in given if not node.has_parameter(name) and not name.startswith('qos_overrides.')]
    return mistakes, [f'{unknown(name)}: ignored' for name in foreign]


def _shown(default: Value) -> str:
    return str(default).lower() if isinstance(default, bool) else repr(
        list(default) if isinstance(default, tuple) else default)


def table() -> str:
    """The parameters as lines of text for ``--help``."""
    lines = []
    for name, field in FIELDS.items():
        spec = specification(name)
        lines.append(f'  {name:<17} {_shown(field.default):<13} {spec.description}')
        lines.append(f'  {"":<17} {"":<13}   {expected(name)}{"; needs a configure" if spec.needs_configure else ""}')
    return '\n'.join(lines)


def markdown() -> str:
    """The same as a Markdown table, for the node's page."""
    lines = ['| parameter | default | values | meaning |', '|---|---|---|---|']
    for name, field in FIELDS.items():
        spec = specification(name)
        lines.append(f'| `{name}`{" *" if spec.needs_configure else ""} | `{_shown(field.default)}` '
                     f'| {expected(name)} | {spec.description} |')
    return '\n'.join(lines).replace('*', '\\*')


if __name__ == '__main__':
    print(markdown())
