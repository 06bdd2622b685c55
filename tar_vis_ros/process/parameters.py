"""The parameters of a node from one table, which declares, checks and documents them.

The table is a dataclass whose fields :func:`tar_vis_core.options.option` makes. An object of it holds all values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from tar_vis_core.errors import TarVisError, near, one_line
from tar_vis_core.options import Option, Value, options_of

AT_CONFIGURE, AT_START = 'needs a configure', 'read at start'


class ParameterError(TarVisError, ValueError):
    """A parameter's value is refused; the message is one line: name, value, what is expected."""


@dataclass(frozen=True)
class Table:
    """The parameters of a node. Those neither in ``at_configure`` nor in ``at_start`` may change at any time."""

    settings: type                                  # the dataclass
    at_configure: frozenset[str] = frozenset()      # names of what takes effect at the next configure
    at_start: frozenset[str] = frozenset()          # names of what is read at start

    @cached_property
    def options(self) -> dict[str, Option]:
        """Return the options by name: those of the dataclass itself, then those of its bases in their order."""
        known = options_of(self.settings)
        return {name: known[name] for table in self.settings.__mro__
                for name in vars(table).get('__annotations__', ()) if name in known}

    def check(self, name: str, value: Any) -> Value:
        """Return the value of a known parameter in its own type. Raise ParameterError if it is not allowed.

        A text is accepted for a list of one, and a whole number for a text, as in ``source:=0``.
        """
        default = self.options[name].default
        if value is None and not isinstance(default, tuple):
            raise ParameterError(f"parameter '{name}' is empty, expected {self.options[name].expected}")
        if isinstance(default, tuple):
            value = [value] if isinstance(value, str) else [] if value is None else value
            value = [text for text in value if text != ''] if hasattr(value, '__iter__') else value
        elif isinstance(default, str) and type(value) is int:
            value = str(value)
        try:
            return self.options[name].check(f"parameter '{name}'", value)
        except ValueError as error:
            raise ParameterError(str(error)) from None

    def read(self, values: Mapping[str, Any]) -> Any:
        """Return the settings of values that are all there. Raise ParameterError for the first that is not allowed."""
        return self.settings(**{name: self.check(name, values[name]) for name in self.options})

    def unknown(self, name: str) -> str:
        """Return the message about a parameter that does not exist."""
        return f"there is no parameter '{name}'{near(name, self.options)}"

    def declare(self, node: Node) -> tuple[dict[str, str], list[str]]:
        """Declare every parameter on ``node`` with its start-up value from YAML or the command line.

        Return ``(mistakes, remarks)``: one line for each parameter whose start-up value is wrong, by its name (its
        default stands meanwhile), and one line for each start-up parameter that does not exist.
        """
        # rclpy has no public way to see start-up values before they are declared, and raises at the first wrong one.
        given = node._parameter_overrides
        mistakes: dict[str, str] = {}
        for name, option in self.options.items():
            value = option.default
            if name in given:
                try:
                    value = self.check(name, given[name].value)
                except ParameterError as error:
                    mistakes[name] = str(error)
            ros = to_ros(name, value)
            # by type, then by value: rclpy cannot tell the type of an empty list
            node.declare_parameter(name, ros.type_ if isinstance(value, tuple) else value, self.descriptor(name),
                                   ignore_override=True)
            if isinstance(value, tuple):
                node.set_parameters([ros])
        foreign = [name for name in given if not node.has_parameter(name) and not name.startswith('qos_overrides.')]
        return mistakes, [f'{self.unknown(name)}: ignored' for name in foreign]

    def descriptor(self, name: str) -> ParameterDescriptor:
        """Return the descriptor that tools show: meaning, range, choices."""
        option = self.options[name]
        message = ParameterDescriptor(
            name=name, description=option.description, read_only=name in self.at_start,
            additional_constraints='; '.join([f'expected {option.expected}', *self._when(name)]))
        if type(option.default) is int:
            low = 0 if option.or_zero else int(option.low)
            message.integer_range = [IntegerRange(from_value=low, to_value=int(option.high))]
        if isinstance(option.default, float):
            low, high = float(option.low), float(option.high)
            message.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        return message

    # Documents

    def text(self) -> str:
        """Return the parameters as lines of text for ``--help``."""
        width = max(map(len, self.options))
        return '\n'.join(
            f'  {name:<{width}} {_shown(option.default):<13} {option.description}\n'
            f'  {"":<{width}} {"":<13}   {"; ".join([option.expected, *self._when(name)])}'
            for name, option in self.options.items())

    def markdown(self) -> str:
        """Return the table of the node's page; a star marks what may not change at any time."""
        return '\n'.join(['| parameter | default | values | meaning |', '|---|---|---|---|', *(
            f'| `{name}`{" *" if self._when(name) else ""} | `{_shown(option.default)}` | {option.expected} '
            f'| {option.description} |' for name, option in self.options.items())]).replace('*', '\\*')

    def yaml(self) -> str:
        """Return the lines of a parameter file: every value that may change, with its meaning above it."""
        return ''.join(
            f'    # {option.description}\n'
            f'    #   {"; ".join([option.expected, *self._when(name)])}\n'
            f'    {name}: {_yaml(option.default)}\n'
            for name, option in self.options.items() if name not in self.at_start)

    def _when(self, name: str) -> list[str]:
        return [AT_CONFIGURE] * (name in self.at_configure) + [AT_START] * (name in self.at_start)


def to_ros(name: str, value: Value) -> Parameter:
    """Return the parameter as rclpy holds it; an empty list keeps its type."""
    if isinstance(value, tuple):
        return Parameter(name, Parameter.Type.STRING_ARRAY, list(value))
    return Parameter(name, value=value)


def _shown(default: Value) -> str:
    return str(default).lower() if isinstance(default, bool) else repr(
        list(default) if isinstance(default, tuple) else default)


def _yaml(default: Value) -> str:
    # rcl has no empty list; an empty text in a list means none
    return "['']" if default == () else _shown(default)


class TableParameters(ABC):
    """For the bases of a node, before rclpy's: its parameters are those of ``TABLE``, checked as one set."""

    TABLE: ClassVar[Table]

    def declare_table(self) -> dict[str, str]:
        """Declare the parameters. Return the messages of :meth:`Table.declare` about wrong start-up values."""
        mistakes, remarks = self.TABLE.declare(self)
        for line in remarks:
            self.get_logger().warning(line)
        self.add_on_set_parameters_callback(self._check_change)
        return mistakes

    def settings(self, changed: Sequence[Parameter] = ()) -> Any:
        """Return all values as they are, or as they would be with ``changed``. Raise ParameterError."""
        values = {name: self.get_parameter(name).value for name in self.TABLE.options}
        values.update((p.name, p.value) for p in changed if p.name in values)
        return self.TABLE.read(values)

    @abstractmethod
    def accept(self, changed: Sequence[Parameter], settings: Any) -> None:
        """Take over parameters that may change at any time. Raise ValueError before any change if they do not fit."""

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """Set parameters as rclpy does, but with our own error messages, and accept a whole number for a double."""
        try:
            for parameter in parameter_list:
                if not self.has_parameter(parameter.name):
                    raise ParameterError(self.TABLE.unknown(parameter.name))
            checked = [to_ros(p.name, self.TABLE.check(p.name, p.value)) if p.name in self.TABLE.options else p
                       for p in parameter_list]
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return super().set_parameters_atomically(checked)

    def _check_change(self, changed: Sequence[Parameter]) -> SetParametersResult:
        try:
            self.accept(changed, self.settings(changed))
        except ValueError as error:   # ParameterError is one
            return SetParametersResult(successful=False, reason=one_line(error))
        return SetParametersResult(successful=True)


class ParameterNode(TableParameters, Node):
    """A node whose ``options`` are always the present values. Raise ParameterError for a wrong one at start."""

    def __init__(self, name: str, **kwargs) -> None:
        super().__init__(name, **kwargs)
        for mistake in self.declare_table().values():
            raise ParameterError(mistake)
        self.options = self.settings()

    def accept(self, changed: Sequence[Parameter], settings: Any) -> None:
        self.options = settings
