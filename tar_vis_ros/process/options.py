"""Settings of the small nodes: one table per node, which declares, checks and documents its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from tar_vis_core.errors import TarVisError


class OptionError(TarVisError):
    """A value is refused; the message is one line: name, what is expected, value."""


@dataclass(frozen=True)
class Option:
    """One setting: a parameter of the node, and a flag where its command has flags."""

    name: str
    default: str | bool | int | float
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False       # may change while the node runs

    def checked(self, value: Any) -> Any:
        """``value`` in the type of the default; raises OptionError with one line where it does not fit."""
        kind = type(self.default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, kind) and (whole or kind is not int):
            good = value
        elif kind in (float, str) and whole:     # rate:=10 and source:=0 say what they mean
            good = kind(value)
        else:
            names = {float: 'a number', int: 'a whole number', bool: 'true or false', str: 'text'}
            raise OptionError(f'{self.name}: expected {names[kind]}, got {value!r}')
        if self.choices and good not in self.choices:
            raise OptionError(f'{self.name}: expected one of {", ".join(self.choices)}, got {good!r}')
        if self.low is not None and not (self.low <= good <= self.high):
            raise OptionError(f'{self.name}: expected {self.low} to {self.high}, got {good}')
        return good

    def descriptor(self) -> ParameterDescriptor:
        """What ``ros2 param describe`` shows."""
        out = ParameterDescriptor(description=self.help, read_only=not self.live, dynamic_typing=True)
        if self.choices:
            out.additional_constraints = f'one of {", ".join(self.choices)}'
        if self.low is not None and isinstance(self.default, float):
            out.floating_point_range = [FloatingPointRange(from_value=float(self.low), to_value=float(self.high))]
        elif self.low is not None:
            out.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high))]
        return out


def declare(node: Node, options: Sequence[Option]) -> None:
    """Declares the options as parameters of ``node`` and keeps their values as its attributes of the same names.

    Live ones follow every change; a wrong change is refused with one line. Raises OptionError for a wrong start-up
    value.
    """
    for option in options:
        setattr(node, option.name, _declared(node, option))
    live = {option.name: option for option in options if option.live}

    def change(parameters: list[Parameter]) -> SetParametersResult:
        try:
            values = {p.name: live[p.name].checked(p.value) for p in parameters if p.name in live}
        except OptionError as error:
            return SetParametersResult(successful=False, reason=str(error))
        for name, value in values.items():
            setattr(node, name, value)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(change)


def _declared(node: Node, option: Option) -> Any:
    try:
        return option.checked(node.declare_parameter(option.name, option.default, option.descriptor()).value)
    except InvalidParameterValueException as error:
        got = str(error).partition('(')[2].partition(')')[0]
        raise OptionError(f'{option.name}: expected {option.low} to {option.high}, got {got}') from None


def table(options: Sequence[Option]) -> str:
    """The options as lines of text for ``--help``."""
    width = max(len(option.name) for option in options)
    return '\n'.join(f'  {option.name:<{width}} {_shown(option):<10} {option.help}; {_values(option)}'
                     for option in options)


def markdown(options: Sequence[Option]) -> str:
    """The options as the rows of a table of docs/nodes: those marked with a star are read at start only."""
    star = {True: '', False: ' \\*'}
    return '\n'.join(f'| `{option.name}`{star[option.live]} | `{_shown(option)}` | {_values(option)} | {option.help} |'
                     for option in options)


def _shown(option: Option) -> str:
    return str(option.default).lower() if isinstance(option.default, bool) else repr(option.default)


def _values(option: Option) -> str:
    if option.choices:
        return f'one of {", ".join(option.choices)}'
    if option.low is not None:
        digits = 'd' if isinstance(option.default, int) else 'g'
        return f'{option.low:{digits}} to {option.high:{digits}}'
    return 'true or false' if isinstance(option.default, bool) else 'a text'
