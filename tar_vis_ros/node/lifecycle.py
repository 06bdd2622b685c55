"""A lifecycle node that survives what rclpy's does not, with parameters from one table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import rclpy
from lifecycle_msgs.msg import Transition
from rclpy._rclpy_pybind11 import RCLError
from rclpy.lifecycle import Node, State, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.parameter import Parameter

from tar_vis_core.errors import one_line
from tar_vis_ros.node.settings import TABLE, Settings
from tar_vis_ros.process.parameters import ParameterError, TableParameters

SUCCESS, FAILURE, ERROR = (getattr(TransitionCallbackReturn, name) for name in ('SUCCESS', 'FAILURE', 'ERROR'))
TRANSITIONS = {value: name.removeprefix('TRANSITION_').lower()
               for name, value in sorted(vars(Transition).items()) if name.startswith('TRANSITION_')}


def logs_exceptions(transition: Callable) -> Callable:
    """Log an exception in a transition: rclpy turns it into ERROR silently."""

    @functools.wraps(transition)
    def run(self: ManagedNode, state: State) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            if rclpy.ok():   # else the process is ending
                self.get_logger().error(f'{transition.__name__} failed: {type(error).__name__}: {one_line(error)}')
            return ERROR

    return run


class ManagedNode(TableParameters, Node):
    """A node whose transitions cannot end the process, with the parameters of :data:`tar_vis_ros.node.settings.TABLE`.

    ``mistakes`` has a line for each parameter whose start-up value was wrong, until it is set.
    """

    TABLE = TABLE

    def __init__(self, name: str, **kwargs) -> None:
        super().__init__(name, **kwargs)
        self.mistakes = self.declare_table()
        for line in self.mistakes.values():
            self.get_logger().error(line)

    @property
    def state(self) -> str:
        """Return the lifecycle state's label: unconfigured, inactive, active, finalized, or a transition's."""
        return self._state_machine.current_state[1]

    def _LifecycleNodeMixin__change_state(self, transition_id: int) -> TransitionCallbackReturn:
        # A transition that is not allowed ends the process in Jazzy (ros2/rclpy#1209). Kilted logs its number.
        try:
            possible = transition_id in [number for number, *_ in self._state_machine.available_transitions]
            if possible:
                return LifecycleNodeMixin._LifecycleNodeMixin__change_state(self, transition_id)
        except RCLError:
            possible = False
        if not possible and rclpy.ok():   # else the process is ending
            name = TRANSITIONS.get(transition_id, transition_id)
            self.get_logger().error(f"transition '{name}' is not possible while {self.state}")
        return FAILURE

    def apply(self, settings: Settings) -> None:
        """Take over settings of which the live ones have changed.

        Raise ValueError if they do not fit together; then nothing has changed."""

    def accept(self, changed: Sequence[Parameter], settings: Settings) -> None:
        for name in TABLE.at_configure.intersection(parameter.name for parameter in changed):
            if self.state == 'active' and getattr(settings, name) != getattr(self.settings(), name):
                raise ParameterError(f"parameter '{name}' needs a configure: deactivate the node, clean it up, set the "
                                     'parameter, configure again')
        self.apply(settings)
        for parameter in changed:
            self.mistakes.pop(parameter.name, None)
