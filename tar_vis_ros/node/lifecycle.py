"""A lifecycle node that survives what rclpy's does not, with parameters from one table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import rclpy
from lifecycle_msgs.msg import Transition
from rcl_interfaces.msg import SetParametersResult
from rclpy._rclpy_pybind11 import RCLError
from rclpy.lifecycle import Node, State, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.parameter import Parameter

from tar_vis_ros.node import parameters
from tar_vis_ros.node.parameters import FIELDS, ParameterError, Settings

SUCCESS, FAILURE, ERROR = (getattr(TransitionCallbackReturn, name) for name in ('SUCCESS', 'FAILURE', 'ERROR'))
TRANSITIONS = {value: name.removeprefix('TRANSITION_').lower()
               for name, value in sorted(vars(Transition).items()) if name.startswith('TRANSITION_')}


def one_line(error: BaseException) -> str:
    """The error's message without line breaks."""
    return ' '.join(str(error).split()) or type(error).__name__


def logged(transition: Callable) -> Callable:
    """rclpy turns an exception in a transition into ERROR without a word: say it."""

    @functools.wraps(transition)
    def run(self: ManagedNode, state: State) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            if rclpy.ok():   # else the process is ending
                self.get_logger().error(f'{transition.__name__} failed: {type(error).__name__}: {one_line(error)}')
            return ERROR

    return run


class ManagedNode(Node):
    """Transitions that cannot end the process, and parameters that are checked as one set, in our own words."""

    def __init__(self, name: str, **kwargs) -> None:
        super().__init__(name, **kwargs)
        self.mistakes, remarks = parameters.declare(self)     # parameters whose start-up value is wrong, and how
        for line in self.mistakes.values():
            self.get_logger().error(line)
        for line in remarks:
            self.get_logger().warning(line)
        self.add_on_set_parameters_callback(self._check_change)

    @property
    def state(self) -> str:
        """The lifecycle state's label: unconfigured, inactive, active, finalized, or a transition's."""
        return self._state_machine.current_state[1]

    def _LifecycleNodeMixin__change_state(self, transition_id: int) -> TransitionCallbackReturn:
        # In Jazzy a transition that the state does not allow ends the process (ros2/rclpy#1209).
        change = LifecycleNodeMixin._LifecycleNodeMixin__change_state
        try:
            return change(self, transition_id)
        except RCLError:
            if rclpy.ok():   # else the process is ending
                name = TRANSITIONS.get(transition_id, transition_id)
                self.get_logger().error(f"transition '{name}' is not possible while {self.state}")
            return FAILURE

    def settings(self, changed: Sequence[Parameter] = ()) -> Settings:
        """All parameters as they are, or as they would be with ``changed``. Raises ParameterError."""
        values = {name: self.get_parameter(name).value for name in FIELDS}
        values.update((p.name, p.value) for p in changed if p.name in FIELDS)
        return parameters.from_ros(values)

    def apply(self, settings: Settings) -> None:
        """Takes over settings of which the live ones have changed. Raises ValueError where they do not fit together;
        then nothing has changed."""

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """As rclpy's, with our own words for what is wrong and a whole number taken for a double."""
        try:
            for parameter in parameter_list:
                if not self.has_parameter(parameter.name):
                    raise ParameterError(parameters.unknown(parameter.name))
            checked = [parameters.to_ros(p.name, parameters.check(p.name, p.value)) if p.name in FIELDS else p
                       for p in parameter_list]
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return super().set_parameters_atomically(checked)

    def _check_change(self, changed: Sequence[Parameter]) -> SetParametersResult:
        try:
            settings = self.settings(changed)
            for parameter in changed:
                name = parameter.name
                if name in FIELDS and parameters.specification(name).needs_configure and self.state == 'active' \
                        and getattr(settings, name) != self.get_parameter(name).value:
                    raise ParameterError(f"parameter '{name}' needs a configure: deactivate the node, clean it up, "
                                         'set the parameter, configure again')
            self.apply(settings)
        except ValueError as error:   # ParameterError is one
            return SetParametersResult(successful=False, reason=one_line(error))
        for parameter in changed:
            self.mistakes.pop(parameter.name, None)
        return SetParametersResult(successful=True)
