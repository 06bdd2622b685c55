"""ROS domains of their own, for commands and tests that start a whole ROS graph."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

from tar_vis_core.errors import TarVisError

DOMAINS = range(1, 102)     # with ports below Linux's ephemeral ones; 0 is where everybody else is


class DomainError(TarVisError):
    """Every ROS domain of this machine is in use."""


class ClaimedDomain:
    """A ROS domain that no other process of this user claims, until it is released or the process ends.

    Its ``number`` is from 1 to 101. A lock on a file says that it is claimed, before anything runs on it. Domains of
    processes that claim nothing are known by their first discovery port. Raise DomainError if all are in use.
    """

    def __init__(self) -> None:
        folder = Path(tempfile.gettempdir()) / f'tar_vis_ros_domains_{os.getuid()}'
        folder.mkdir(exist_ok=True)
        for number in random.sample(DOMAINS, len(DOMAINS)):
            lock = open(folder / str(number), 'w')  # noqa: SIM115
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.bind(('', 7400 + 250 * number + 10))
            except OSError:
                lock.close()
                continue
            self.number, self._lock = number, lock
            return
        raise DomainError('all ROS domains from 1 to 101 are in use on this machine: end some ROS processes')

    def release(self) -> None:
        """Let others claim the domain."""
        self._lock.close()
