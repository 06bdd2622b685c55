"""The lifecycle node: transitions, parameters and services; the frames themselves go through the pipeline."""

from __future__ import annotations

import functools
import gc
import sys
import time
from collections.abc import Callable, Sequence

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from rcl_interfaces.msg import SetParametersResult
from rclpy._rclpy_pybind11 import RCLError
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import Node, State, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from tar_vis_core.errors import TarVisError
from tar_vis_core.models.presets import preset_of
from tar_vis_ros import parameters
from tar_vis_ros.arrivals import Arrivals
from tar_vis_ros.health import Health
from tar_vis_ros.msg import InstanceMaskArray, SkipDiagnostics
from tar_vis_ros.parameters import FIELDS, ParameterError, Settings
from tar_vis_ros.pipeline import Outputs, Pipeline, one_line
from tar_vis_ros.segmenter_options import live_options, load_segmenter

SUCCESS, FAILURE, ERROR = (getattr(TransitionCallbackReturn, name) for name in ('SUCCESS', 'FAILURE', 'ERROR'))
IMAGE_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
OUTPUT_QOS = QoSProfile(depth=5)   # reliable
TRANSITIONS = {value: name.removeprefix('TRANSITION_').lower()
               for name, value in sorted(vars(Transition).items()) if name.startswith('TRANSITION_')}


def logged(transition: Callable) -> Callable:
    """rclpy turns an exception in a transition into ERROR without a word: say it."""

    @functools.wraps(transition)
    def run(self: TarVisNode, state: State) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            if rclpy.ok():   # else the process is ending
                self.get_logger().error(f'{transition.__name__} failed: {type(error).__name__}: {one_line(error)}')
            return ERROR

    return run


class TarVisNode(Node):
    """Camera images in, tracked instance masks out, while active."""

    def __init__(self, **kwargs) -> None:
        super().__init__('tar_vis', **kwargs)
        self._pipeline: Pipeline | None = None
        self._configured = Settings()      # what the pipeline was built with
        self._images = None
        self._arrivals = Arrivals()
        self._health = Health()
        self._mistakes, remarks = parameters.declare(self)
        for line in self._mistakes.values():
            self.get_logger().error(line)
        for line in remarks:
            self.get_logger().warning(line)
        self.add_on_set_parameters_callback(self._check_change)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_timer(1.0, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if self.get_parameter('autostart').value:
            self._starter = self.create_timer(0.0, self._autostart, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # Transitions

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

    def _autostart(self) -> None:
        self._starter.cancel()
        if self.state == 'unconfigured' and self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    @logged
    def on_configure(self, state: State) -> TransitionCallbackReturn:
        """Loads the model and warms it up. What is wrong is said in one line, and the node stays unconfigured."""
        began = time.monotonic()
        try:
            if self._mistakes:
                raise ParameterError(f'set {", ".join(self._mistakes)} first: the start-up value is wrong')
            settings = self._settings()
            segmenter = load_segmenter(settings)
        except Exception as error:   # whatever the model's loading raises, for example for want of memory
            kind = '' if isinstance(error, TarVisError | ValueError) else f'{type(error).__name__}: '
            self._health.blocked = f'cannot configure: {kind}{one_line(error)}'
            self.get_logger().error(self._health.blocked)
            return FAILURE
        self._configured, self._health.blocked = settings, ''
        self._pipeline = Pipeline(segmenter, self._create_outputs(), self._health, self.get_logger())
        self.get_logger().info(f'{preset_of(settings.model, settings.backbone)} is ready on {self._pipeline.device}, '
                               f'loaded and warmed up in {time.monotonic() - began:.1f} s')
        return super().on_configure(state)

    @logged
    def on_activate(self, state: State) -> TransitionCallbackReturn:
        self._health.activated()
        self._pipeline.start()
        self._arrivals = Arrivals()
        told = hasattr(Subscription, 'CallbackType')   # rclpy of Humble tells nothing of a message but its contents
        self._images = self.create_subscription(
            Image, 'image', self._on_image if told else lambda image: self._on_image(image, {}), IMAGE_QOS)
        self.get_logger().info(f'waiting for images on {self._images.topic_name}')
        return super().on_activate(state)

    @logged
    def on_deactivate(self, state: State) -> TransitionCallbackReturn:
        """Stops listening; the model and the tracks stay."""
        self._stop()
        return super().on_deactivate(state)

    @logged
    def on_cleanup(self, state: State) -> TransitionCallbackReturn:
        self._release()
        return SUCCESS

    @logged
    def on_shutdown(self, state: State) -> TransitionCallbackReturn:
        self._release()
        return SUCCESS

    @logged
    def on_error(self, state: State) -> TransitionCallbackReturn:
        """Back to unconfigured, from where the node can be configured again."""
        self._release()
        return SUCCESS

    def _create_outputs(self) -> Outputs:
        def publisher(message, topic):
            return self.create_lifecycle_publisher(message, topic, OUTPUT_QOS)
        return Outputs(publisher(InstanceMaskArray, '~/instances'), publisher(SkipDiagnostics, '~/skip_diagnostics'),
                       publisher(Image, '~/label_image'), publisher(Image, '~/overlay'))

    def _stop(self) -> None:
        if self._images is not None:
            self.destroy_subscription(self._images)
            self._images = None
        if self._pipeline is not None:
            self._pipeline.stop()

    def _release(self) -> None:
        self._stop()
        if self._pipeline is not None:
            for publisher in self._pipeline.outputs.all():
                self.destroy_lifecycle_publisher(publisher)
            self._pipeline = None
            gc.collect()   # the model's memory, now rather than some time
            if (torch := sys.modules.get('torch')) is not None and torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def destroy_node(self) -> None:
        self._stop()
        super().destroy_node()

    # Parameters

    def _settings(self, changed: Sequence[Parameter] = ()) -> Settings:
        """All parameters as they are, or as they would be with ``changed``. Raises ParameterError."""
        values = {name: self.get_parameter(name).value for name in FIELDS}
        values.update((p.name, p.value) for p in changed if p.name in FIELDS)
        return parameters.from_ros(values)

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
            settings = self._settings(changed)
            for parameter in changed:
                name = parameter.name
                if name in FIELDS and parameters.specification(name).needs_configure and self.state == 'active' \
                        and getattr(settings, name) != self.get_parameter(name).value:
                    raise ParameterError(f"parameter '{name}' needs a configure: deactivate the node, clean it up, "
                                         'set the parameter, configure again')
            if self._pipeline is not None:
                self._pipeline.set_options(live_options(self._configured, settings))
        except ValueError as error:   # ParameterError is one
            return SetParametersResult(successful=False, reason=one_line(error))
        for parameter in changed:
            self._mistakes.pop(parameter.name, None)
        return SetParametersResult(successful=True)

    # Images, services and diagnostics

    def _on_image(self, image: Image, info: dict) -> None:
        missed = self._arrivals.missed(info, self._images.get_publisher_count()) if info else 0
        self._pipeline.put(image, self._arrivals.arrived(info), missed)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._pipeline is not None
        if self._pipeline is not None:
            self._pipeline.reset('reset service')
            response.message = 'tracks start anew with the next image'
        else:
            response.message = f'nothing to reset: the node is {self.state}'
        return response

    def _publish_diagnostics(self) -> None:
        self._diagnostics.publish(self._health.message(
            self.get_clock().now().to_msg(), self.get_fully_qualified_name().lstrip('/'), self.state,
            self.resolve_topic_name('image'), self._pipeline.device if self._pipeline else ''))
