"""The lifecycle node: transitions and services; parameters are ManagedNode's, frames go through the pipeline."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import State, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from tar_vis_core.errors import DeviceLostError, TarVisError, one_line
from tar_vis_core.models.presets import preset_of
from tar_vis_core.runtime.allocator import give_back_free_memory
from tar_vis_ros.conversions import detections
from tar_vis_ros.conversions.label_images import IMAGES
from tar_vis_ros.msg import InstanceMaskArray, SkipDiagnostics
from tar_vis_ros.node.cameras import Camera, Outputs, camera_topics
from tar_vis_ros.node.health import Health
from tar_vis_ros.node.image_input import ImageInput
from tar_vis_ros.node.lifecycle import FAILURE, SUCCESS, ManagedNode, logs_exceptions
from tar_vis_ros.node.pipeline import Pipeline
from tar_vis_ros.node.settings import Settings, live_options, load_segmenter, moving_objects
from tar_vis_ros.process.namesakes import Namesakes
from tar_vis_ros.process.parameters import ParameterError

OUTPUT_QOS = QoSProfile(depth=5)   # reliable
STEADY = Clock(clock_type=ClockType.STEADY_TIME)
GIVE_BACK_S = 60.0   # memory that only some frames needed goes back to the system so often


class TarVisNode(ManagedNode):
    """Camera images in, tracked instance masks out, while active."""

    def __init__(self, **kwargs) -> None:
        super().__init__('tar_vis', **kwargs)
        self._pipeline: Pipeline | None = None
        self._configured = Settings()      # what the pipeline was built with
        self._inputs: list[ImageInput] = []
        self._resets: list = []            # services of single cameras
        self._lost = ''                    # why the GPU cannot be used any more
        self._blocked = ''                 # why the node cannot be configured; empty when nothing is known
        self._last_epoch = 0               # of the cameras that were
        self._namesakes = Namesakes(self)
        self._idle = Health()              # the status before there are cameras
        self.create_service(Trigger, '~/reset', lambda request, response: self._on_reset(response))
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_timer(1.0, self._publish_diagnostics, clock=STEADY)
        self.create_timer(GIVE_BACK_S, give_back_free_memory, clock=STEADY)
        if self.get_parameter('autostart').value:
            self._starter = self.create_timer(0.0, self._autostart, clock=STEADY)

    # Transitions

    def _autostart(self) -> None:
        self._starter.cancel()
        if self.state == 'unconfigured' and self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    @logs_exceptions
    def on_configure(self, state: State) -> TransitionCallbackReturn:
        """Load the model and warm it up. If that fails, log one line and stay unconfigured."""
        began = time.monotonic()
        try:
            if self.mistakes:
                raise ParameterError(f'set {", ".join(self.mistakes)} first: the start-up value is wrong')
            settings = self.settings()
            topics = camera_topics(settings.image_topics, self.resolve_topic_name)
            segmenter = load_segmenter(settings)
        except Exception as error:   # whatever the model's loading raises, for example for want of memory
            kind = '' if isinstance(error, TarVisError | ValueError) else f'{type(error).__name__}: '
            self._blocked = f'cannot configure: {kind}{one_line(error)}'
            self._lost = str(error) if isinstance(error, DeviceLostError) else ''
            self.get_logger().error(self._blocked)
            segmenter = None
        if segmenter is None:       # the error is gone, and what it held with it
            give_back_memory()
            return FAILURE
        self._configured, self._blocked = settings, ''
        cameras = [Camera(name, topic, self._create_outputs(name), segmenter.new_state(self._new_epoch()))
                   for name, topic in topics.items()]
        self._pipeline = Pipeline(segmenter, cameras, self.get_logger())
        self.apply(settings)
        self._resets = [self._create_reset(camera) for camera in cameras if camera.name]
        self.get_logger().info(f'{preset_of(settings.model, settings.backbone)} is ready on {segmenter.device} '
                               f'({segmenter.arithmetic}), loaded and warmed up in {time.monotonic() - began:.1f} s')
        self._pipeline.remarks()
        return super().on_configure(state)

    @logs_exceptions
    def on_activate(self, state: State) -> TransitionCallbackReturn:
        self._pipeline.start()
        try:
            for number, camera in enumerate(self._pipeline.cameras):
                camera.health.activated()
                self._inputs.append(self._listen(number, camera))
        except ParameterError as error:     # of a qos_overrides parameter
            self.get_logger().error(f'cannot activate: {error}')
            self._stop()
            return FAILURE
        for name in self._parameter_overrides:
            if name.startswith('qos_overrides.') and not self.has_parameter(name):
                self.get_logger().warning(f"parameter '{name}' is ignored: there is no such subscription")
        self.get_logger().info(f'waiting for images on {", ".join(source.topic for source in self._inputs)}')
        result = super().on_activate(state)
        self._pipeline.announce_labels()
        return result

    @logs_exceptions
    def on_deactivate(self, state: State) -> TransitionCallbackReturn:
        """Stop listening; the model and the tracks stay."""
        self._stop()
        return super().on_deactivate(state)

    @logs_exceptions
    def on_cleanup(self, state: State) -> TransitionCallbackReturn:
        self._release()
        return SUCCESS

    @logs_exceptions
    def on_shutdown(self, state: State) -> TransitionCallbackReturn:
        self._release()
        return SUCCESS

    @logs_exceptions
    def on_error(self, state: State) -> TransitionCallbackReturn:
        """Go back to unconfigured, from where the node can be configured again."""
        self._release()
        return SUCCESS

    def _create_outputs(self, camera: str) -> Outputs:
        place = f'~/{camera}' if camera else '~'

        def publisher(message: type, topic: str, qos: QoSProfile = OUTPUT_QOS):
            return self.create_lifecycle_publisher(message, f'{place}/{topic}', qos)

        standard = ()
        if detections.available:
            standard = (publisher(detections.Detection2DArray, 'detections'),
                        publisher(detections.LabelInfo, 'label_info', detections.LABELS_QOS))
        return Outputs(publisher(InstanceMaskArray, 'instances'), publisher(SkipDiagnostics, 'skip_diagnostics'),
                       publisher(Image, 'overlay'), {name: publisher(Image, name) for name in IMAGES}, *standard)

    def _create_reset(self, camera: Camera):
        return self.create_service(Trigger, f'~/{camera.name}/reset',
                                   lambda request, response: self._on_reset(response, [camera]))

    def _new_epoch(self) -> int:
        """Return an epoch that no track of this node's name ever had: the clock's seconds go on over restarts."""
        return max(int(time.time()) % 2**32, self._last_epoch + 1)

    def _listen(self, number: int, camera: Camera) -> ImageInput:
        def on_image(image, arrived: float, missed: int) -> None:
            self._pipeline.put(number, image, arrived, missed)

        def on_problem(kind: str, text: str) -> None:
            self.get_logger().warning(camera.prefix + text)

        return ImageInput(self, camera.topic, self._configured.image_transport, self._configured.image_reliability,
                          on_image, on_problem)

    def _stop(self) -> None:
        while self._inputs:
            self._inputs.pop().close()
        if self._pipeline is not None:
            self._pipeline.stop()

    def _release(self) -> None:
        self._stop()
        while self._resets:
            self.destroy_service(self._resets.pop())
        if self._pipeline is not None:
            self._last_epoch = max(camera.state.epoch for camera in self._pipeline.cameras)
            for camera in self._pipeline.cameras:
                for publisher in camera.outputs.all():
                    self.destroy_lifecycle_publisher(publisher)
            self._pipeline = None
            give_back_memory()

    def destroy_node(self) -> None:
        self._stop()
        super().destroy_node()

    # Parameters, services and diagnostics

    def apply(self, settings: Settings) -> None:
        if self._pipeline is not None:
            self._pipeline.set_options(live_options(self._configured, settings), moving_objects(settings))

    def _on_reset(self, response: Trigger.Response, cameras: Sequence[Camera] | None = None) -> Trigger.Response:
        response.success = self._pipeline is not None
        if self._pipeline is not None:
            self._pipeline.reset(self._pipeline.cameras if cameras is None else cameras, 'reset service')
            response.message = 'tracks start anew with the next image'
        else:
            response.message = f'nothing to reset: the node is {self.state}'
        return response

    def _publish_diagnostics(self) -> None:
        node, timeout_s = self.get_fully_qualified_name().lstrip('/'), self.get_parameter('image_timeout_s').value
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        twins = self._namesakes.look()
        if self._pipeline is None:
            message.status.append(self._idle.status(
                f'{node}: segmentation', self.state, self.resolve_topic_name('image'), '',
                blocked=self._blocked or twins))
        else:
            slower = [*filter(None, [self._pipeline.recording]), *self._pipeline.remarks()]
            for number, camera in enumerate(self._pipeline.cameras):
                source = self._inputs[number] if self._inputs else None
                problems = [*filter(None, [twins, camera.stamp_problem]), *(source.problems() if source else [])]
                if camera.state.budget and camera.state.budget.report:
                    problems.append(camera.state.budget.report)
                problems += slower
                message.status.append(camera.health.status(
                    f'{node}: {camera.name or "segmentation"}', self.state,
                    source.topic if source else self.resolve_topic_name(camera.topic), self._pipeline.device,
                    problems=problems, timeout_s=timeout_s))
        self._diagnostics.publish(message)
        if lost := self._lost or (self._pipeline and self._pipeline.lost):
            self._diagnostics.wait_for_all_acked(Duration(seconds=1))
            raise DeviceLostError(lost)     # ends the process


def give_back_memory() -> None:
    """Give freed memory of the host and of a GPU back to the system now."""
    gc.collect()
    give_back_free_memory()
    if (torch := sys.modules.get('torch')) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
