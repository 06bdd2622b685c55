"""Child processes and a lifecycle node driven from outside, for commands that start a whole ROS graph."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import Executor
from rclpy.node import Node

from tar_vis_core.errors import TarVisError

LAST_LINES = 12


class ProcessError(TarVisError):
    """A child process failed; the message carries its last lines."""

    __str__ = Exception.__str__     # the process's last words have lines of their own


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)    # the last one: the terminal was closed
PR_SET_PDEATHSIG = 1        # of Linux's prctl


class StopRequest:
    """The first Ctrl-C, SIGTERM or SIGHUP asks for an orderly end, a second one raises KeyboardInterrupt."""

    def __init__(self):
        self.asked = False
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def __call__(self) -> bool:
        return self.asked

    @contextlib.contextmanager
    def ignored(self) -> Iterator[None]:
        """Ignore signals inside the block, so that no child is left behind."""
        before = [(number, signal.signal(number, signal.SIG_IGN)) for number in SIGNALS]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def _on_signal(self, *_) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _with_parent(parent: int) -> Callable[[], None]:
    """Return the function that a new process calls first. It makes the process end with a killed parent (Linux)."""
    library = ctypes.CDLL(None)     # loaded here: after the fork there is no room for it

    def follow() -> None:
        if hasattr(library, 'prctl'):
            library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:      # it was quicker
                os._exit(1)
    return follow


class ChildProcess:
    """A module of this package as a child process. Its output is kept and shown only if needed."""

    def __init__(self, name: str, module: str, arguments: list[str], environment: Mapping[str, str] | None = None):
        self.name = name
        self.lines: deque[str] = deque(maxlen=200)
        # A session of its own: Ctrl-C reaches the parent only, which then ends its children in order.
        self._process = subprocess.Popen(
            [sys.executable, '-m', module, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True,
            preexec_fn=_with_parent(os.getpid()),
            env={**os.environ, 'PYTHONUNBUFFERED': '1', 'RCUTILS_COLORIZED_OUTPUT': '0', **(environment or {})})
        self._reader = threading.Thread(target=self._read, name=f'output of {name}', daemon=True)
        self._reader.start()

    @property
    def code(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.poll()

    def check(self) -> None:
        """Raise ProcessError if the process has ended with another exit code than 0."""
        if self.code:
            ended = f'signal {-self.code}' if self.code < 0 else f'exit code {self.code}'
            raise self.error(f'ended with {ended}')

    def error(self, what: str) -> ProcessError:
        """Return an error that says what went wrong and what the process printed last."""
        if self.code is not None:
            self._reader.join(timeout=1)
        said = list(self.lines)[-LAST_LINES:]
        return ProcessError('\n'.join([f'{self.name} {what}' + (', it said:' if said else ''), *said]))

    @property
    def complaints(self) -> list[str]:
        """Return its latest warnings and errors."""
        return [line for line in self.lines if line.startswith(('[WARN]', '[ERROR]', '[FATAL]'))]

    def interrupt(self) -> None:
        """Ask the process to end, as Ctrl-C does."""
        if self.code is None:
            self._process.send_signal(signal.SIGINT)

    def end(self, patience_s: float = 3.0) -> None:
        """End the process: SIGINT, then SIGTERM, then SIGKILL, each when the one before has not helped for a while."""
        for ask in (self.interrupt, self._process.terminate, self._process.kill):
            if self.code is None:
                ask()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience_s)
        self._reader.join(timeout=1)

    def _read(self) -> None:
        for line in self._process.stdout:
            self.lines.append(line.rstrip())


class ServiceCaller:
    """Calls services while it looks after the children and an interruption."""

    def __init__(self, node: Node, executor: Executor, children: Sequence[ChildProcess],
                 interrupted: Callable[[], bool]):
        self._node, self._executor, self._children, self._interrupted = node, executor, children, interrupted

    def check(self) -> None:
        """Raise ProcessError if a child has ended, KeyboardInterrupt if ``interrupted()`` is true."""
        for child in self._children:
            child.check()
            if child.code is not None:
                raise child.error('ended too early')
        if self._interrupted():
            raise KeyboardInterrupt

    def wait(self, done: Callable[[], object], what: str, timeout_s: float) -> None:
        """Spin until ``done()``.

        Raise ProcessError after ``timeout_s`` (``what`` says what did not happen), and as :meth:`check` does.
        """
        until = time.monotonic() + timeout_s
        while not done():
            self.check()
            if time.monotonic() > until:
                text = f'{what} within {timeout_s:g} s'
                raise self._children[0].error(text) if self._children else ProcessError(text)
            self._executor.spin_once(timeout_sec=0.1)

    def call(self, kind: type, name: str, request: object, timeout_s: float, what: str = '') -> Any:
        """Return the answer of a service. Raise as :meth:`wait` does."""
        client = self._node.create_client(kind, name)
        try:
            what = what or f'{name} did not answer'
            self.wait(client.service_is_ready, what, timeout_s)
            future = client.call_async(request)
            self.wait(future.done, what, timeout_s)
            return future.result()
        finally:
            self._node.destroy_client(client)

    def bring_up(self, node_name: str, timeout_s: float) -> None:
        """Configure and activate a lifecycle node, the first of the children.

        Raise ProcessError also if it refuses.
        """
        for transition, label in ((Transition.TRANSITION_CONFIGURE, 'configure'),
                                  (Transition.TRANSITION_ACTIVATE, 'activate')):
            request = ChangeState.Request(transition=Transition(id=transition))
            if not self.call(ChangeState, f'{node_name}/change_state', request, timeout_s, f'did not {label}').success:
                time.sleep(0.2)     # its last line may still be on the way
                raise self._children[0].error(f'could not {label}')
