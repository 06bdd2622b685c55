"""A real node process and a ROS client of it, which the process tests share. Every wait has a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from tar_vis_core.instances import FrameResult
from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.conversions.messages import decode_result
from tar_vis_ros.msg import InstanceMaskArray, SkipDiagnostics

PATIENCE_S = 120.0   # a deadline for what takes a second on an idle machine


class NodeProcess:
    """``tar-vis-node`` as a child process; its output goes to a file."""

    def __init__(self, folder: Path, name: str, *arguments: str, **values: object) -> None:
        """``values`` are parameters, written as YAML on the command line; logs go to ``folder``."""
        self.name = name
        self._output = folder / f'{name}.log'
        ros = ['--ros-args', '-r', f'__node:={name}', '-r', f'image:=/{name}/image']
        for key, value in values.items():
            ros += ['-p', f'{key}:={value}']
        env = dict(os.environ, ROS_LOG_DIR=str(folder / 'ros_log'), PYTHONUNBUFFERED='1')
        if '_ROS_WHEELS_BOOTSTRAP_COMPLETE' not in env or 'LD_LIBRARY_PATH' not in env:
            env.pop('_ROS_WHEELS_BOOTSTRAP_COMPLETE', None)   # the ROS wheels want both or neither
        with self._output.open('w') as out:
            self._process = subprocess.Popen([sys.executable, '-m', 'tar_vis_ros.node', *ros, *arguments],
                                             env=env, stdout=out, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        return self._output.read_text()

    def lines(self, word: str, since: str = '') -> list[str]:
        """The lines with ``word`` that were written after the output was ``since``."""
        return [line for line in self.output[len(since):].splitlines() if word in line]

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def mapped_files(self) -> str:
        """What the process has mapped into its memory, libraries among it (Linux)."""
        return Path(f'/proc/{self._process.pid}/maps').read_text()

    @property
    def resident_mb(self) -> float:
        """Memory that the process holds now, MB (Linux)."""
        return resident_mb(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for_line(self, word: str, since: str = '') -> str:
        """The first line with ``word``, once it is there."""
        wait_until(lambda: self.lines(word, since) or not self.running, f'{word!r} in the log', self)
        assert self.lines(word, since), f'the node ended without {word!r}:\n{self.output}'
        return self.lines(word, since)[0]

    def end(self, number: int = signal.SIGINT) -> int:
        """Sends a signal and gives the exit code."""
        if self.running:
            self._process.send_signal(number)
        try:
            return self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()


def resident_mb(pid: int) -> float:
    """Memory that a process holds now, MB (Linux)."""
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def wait_until(done: Callable[[], object], what: str, node: NodeProcess | None = None,
               turn: Callable[[], object] = lambda: time.sleep(0.05), seconds: float = PATIENCE_S) -> None:
    """Repeats ``turn`` until ``done()``; fails with ``what`` and the node's output at the deadline."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f'no {what} in {seconds:.0f} s:\n{node.output if node else ""}'
        turn()


class Client:
    """Publishes images for one node process, collects its answers, and calls its services."""

    def __init__(self, process: NodeProcess, camera: str = '') -> None:
        """``camera`` is one of several, whose image topic is ``/CAMERA/image_raw``."""
        self.process, self.camera = process, camera
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node(f'tester_of_{process.name}{camera}', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.images = self.node.create_publisher(Image, f'/{camera or process.name}/image{"_raw" if camera else ""}', 1)
        self.instances: dict[tuple[int, int], InstanceMaskArray] = {}
        self.diagnostics: dict[tuple[int, int], SkipDiagnostics] = {}
        self.status: DiagnosticStatus | None = None
        place = f'/{process.name}/{camera}'.rstrip('/')
        self.node.create_subscription(InstanceMaskArray, f'{place}/instances', self._take(self.instances), 100)
        self.node.create_subscription(SkipDiagnostics, f'{place}/skip_diagnostics', self._take(self.diagnostics), 100)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self.sent = 0
        self._clock_ns = 1_000_000_000_000   # of the images; any time will do

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()

    def until(self, done: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
        """Spins until ``done()``."""
        wait_until(done, what, self.process, lambda: self._executor.spin_once(timeout_sec=0.05), seconds)

    def spin(self, seconds: float) -> None:
        """Spins for a while: only to show that something does not happen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.05)

    def _take(self, store: dict) -> Callable:
        return lambda message: store.__setitem__(key(message.header.stamp), message)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f'{self.process.name}: {self.camera or "segmentation"}':
                self.status = status

    def status_where(self, done: Callable[[dict[str, str]], object], what: str) -> dict[str, str]:
        """The values of the first /diagnostics from now on for which ``done(values)``."""
        self.status = None
        self.until(lambda: self.status is not None and done(self.values), what)
        return self.values

    @property
    def values(self) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.status.values}

    # Services

    def call(self, kind: type, name: str, request: object, tries: int = 1) -> object:
        """The answer of a service. It is lost if the node has not found this client yet: ask again what may be asked
        twice.
        """
        client = self.node.create_client(kind, f'/{self.process.name}/{name}')
        try:
            self.until(client.service_is_ready, f'service {name}')
            for _ in range(tries):
                future, deadline = client.call_async(request), time.monotonic() + PATIENCE_S / tries
                self.until(lambda f=future, d=deadline: f.done() or time.monotonic() > d, f'answer of {name}')
                if future.done():
                    return future.result()
            raise AssertionError(f'no answer of {name}:\n{self.process.output}')
        finally:
            self.node.destroy_client(client)

    def transition(self, label: str) -> bool:
        number = getattr(Transition, f'TRANSITION_{label.upper()}')
        return self.call(ChangeState, 'change_state', ChangeState.Request(transition=Transition(id=number))).success

    @property
    def state(self) -> str:
        return self.call(GetState, 'get_state', GetState.Request(), tries=6).current_state.label

    def set(self, **values: object) -> str:
        """Sets parameters together; gives the reason of a refusal, '' when they are taken."""
        request = SetParametersAtomically.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        result = self.call(SetParametersAtomically, 'set_parameters_atomically', request, tries=6).result
        assert result.successful != bool(result.reason)
        return result.reason

    # Images

    def image(self, pixels: np.ndarray, encoding: str = 'rgb8', step_s: float = 0.1) -> Image:
        """A message whose stamp lies ``step_s`` after the last one's."""
        self._clock_ns += round(step_s * 1e9)
        stamp = Time(sec=self._clock_ns // 10**9, nanosec=self._clock_ns % 10**9)
        return array_to_image(pixels, encoding, Header(stamp=stamp, frame_id='camera_optical'))

    def send(self, image: Image) -> None:
        """Publishes an image for a node that listens."""
        self.until(lambda: self.images.get_subscription_count() == 1, 'subscriber of the image topic')
        self.images.publish(image)
        self.sent += 1

    def ask(self, image: Image) -> FrameResult:
        """Publishes an image until it is answered, for best effort may lose it; gives the answer."""
        stamp = key(image.header.stamp)
        self.instances.pop(stamp, None)     # of a time that comes again
        self.diagnostics.pop(stamp, None)

        def answered() -> bool:
            return stamp in self.instances and stamp in self.diagnostics

        for _ in range(6):
            self.send(image)
            deadline = time.monotonic() + PATIENCE_S / 6
            self.until(lambda d=deadline: answered() or time.monotonic() > d, 'answer')
            if answered():
                return decode_result(self.instances[stamp], self.diagnostics[stamp])
        raise AssertionError(f'no answer to the image of {stamp}:\n{self.process.output}')


@contextmanager
def client_of(process: NodeProcess) -> Iterator[Client]:
    """A client of a node process, which must end in order with it."""
    client = Client(process)
    try:
        yield client
    finally:
        client.close()
        assert process.end() == 0


def key(stamp: Time) -> tuple[int, int]:
    return stamp.sec, stamp.nanosec


def picture(height: int = 120, width: int = 160, shift: int = 0) -> np.ndarray:
    """A small photograph of a person, moved by ``shift`` pixels."""
    from skimage import data
    return np.roll(cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_AREA), shift, axis=1)


def nano_weights(folder: Path) -> str:
    """The value of ``weights`` for preset nano: '' where the package has them, else an untrained model's file."""
    from tar_vis_core.errors import WeightsError
    from tar_vis_core.weights.manifest import packaged_weights
    try:
        packaged_weights('nano')
        return ''
    except WeightsError:
        import torch
        from saved_weights import save_weights

        from tar_vis_core.models.presets import PRESETS
        from tar_vis_core.models.video_model import VideoInstanceModel

        torch.manual_seed(2)   # an untrained model that reports something
        path = folder / 'untrained.safetensors'
        save_weights(VideoInstanceModel(PRESETS['nano']), path)
        return str(path)
