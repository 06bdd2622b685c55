"""Child processes and a lifecycle node driven from outside, for commands that start a whole ROS graph."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from lifecycle_msgs.srv import ChangeState
from rclpy.executors import Executor
from rclpy.node import Node

from tar_vis_core.errors import TarVisError

LAST_LINES = 12


class ProcessError(TarVisError):
    """A child process failed; the message carries its last lines."""


class Child:
    """A module of this package as a process of its own, whose output is kept and shown only when it matters."""

    def __init__(self, name: str, module: str, arguments: list[str]):
        self.name = name
        self.lines: deque[str] = deque(maxlen=200)
        # A session of its own: Ctrl-C reaches the parent only, which then ends its children in order.
        self._process = subprocess.Popen(
            [sys.executable, '-m', module, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True,
            env=dict(os.environ, PYTHONUNBUFFERED='1', RCUTILS_COLORIZED_OUTPUT='0'))
        self._reader = threading.Thread(target=self._read, name=f'output of {name}', daemon=True)
        self._reader.start()

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    def check(self) -> None:
        """Raises ProcessError where the process has ended, other than with exit code 0."""
        if self.code:
            ended = f'signal {-self.code}' if self.code < 0 else f'exit code {self.code}'
            raise self.error(f'ended with {ended}')

    def error(self, what: str) -> ProcessError:
        """An error that tells what went wrong and what the process said last."""
        if self.code is not None:
            self._reader.join(timeout=1)
        said = list(self.lines)[-LAST_LINES:]
        return ProcessError('\n'.join([f'{self.name} {what}' + (', it said:' if said else ''), *said]))

    @property
    def complaints(self) -> list[str]:
        """Its latest warnings and errors."""
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


def change_state(driver: Node, executor: Executor, node_name: str, transition: int, label: str,
                 children: Sequence[Child], timeout_s: float, interrupted: Callable[[], bool]) -> None:
    """Ask a lifecycle node, the first of ``children``, for a transition and wait until it is done.

    Raises ProcessError where the node refuses or takes longer than ``timeout_s`` or a child ends, KeyboardInterrupt
    where ``interrupted()`` becomes true.
    """
    client = driver.create_client(ChangeState, f'{node_name}/change_state')
    until = time.monotonic() + timeout_s

    def wait(done: Callable[[], bool]) -> None:
        while not done():
            for child in children:
                child.check()
                if child.code is not None:
                    raise child.error('ended too early')
            if interrupted():
                raise KeyboardInterrupt
            if time.monotonic() > until:
                raise children[0].error(f'did not {label} within {timeout_s:g} s')
            executor.spin_once(timeout_sec=0.1)

    wait(client.service_is_ready)
    request = ChangeState.Request()
    request.transition.id = transition
    future = client.call_async(request)
    wait(future.done)
    driver.destroy_client(client)
    if not future.result().success:
        time.sleep(0.2)     # its last line may still be on the way
        raise children[0].error(f'could not {label}')


def free_domain() -> int:
    """A ROS domain between 1 and 101 that no process of this machine uses now: its first discovery port is free."""
    domains = list(range(1, 102))
    random.shuffle(domains)
    for domain in domains:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(('', 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    raise ProcessError('all ROS domains from 1 to 101 are in use on this machine: end some ROS processes')
