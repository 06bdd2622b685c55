"""Join messages of several topics whose stamps are equal to the nanosecond, with bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tar_vis_core.stamp_watch import StampWatch

Stamp = tuple[int, int]     # seconds, nanoseconds
NO_STAMP = (0, 0)


def stamp_of(message: Any) -> Stamp:
    """Return the stamp of a message with a header."""
    return message.header.stamp.sec, message.header.stamp.nanosec


def seconds_of(message: Any) -> float:
    """Return the stamp of a message with a header in seconds."""
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9


def stamp_text(stamp: Stamp) -> str:
    """Return a stamp as text, in seconds with all nanoseconds."""
    return f'{stamp[0]}.{stamp[1]:09d}'


class ExactStamps:
    """Hold the last messages of each topic until every topic has one of the same stamp.

    Topics may run ahead of each other. A stamp that goes back on a topic is a clock that was set or a bag that loops:
    messages held of that topic are forgotten, so that messages of different rounds do not meet. Two neighbours in the
    wrong order are neither. A stamp of 0, or one that two different messages of a topic have, is not a stamp:
    such messages are not joined.
    """

    def __init__(self, keep: Mapping[str, int]) -> None:
        """Join the topics of ``keep``: topic to the number of messages held at most; the oldest goes first."""
        self._keep = dict(keep)
        self._held: dict[str, dict[Stamp, Any]] = {name: {} for name in keep}
        self._watches = {name: StampWatch() for name in keep}
        self.newest: dict[str, Stamp | None] = dict.fromkeys(keep)
        self.received = dict.fromkeys(keep, 0)
        self.matched = 0

    def add(self, name: str, message: Any) -> dict[str, Any] | None:
        """Take a message of topic ``name``. Return the message of every topic once all have this stamp."""
        stamp, newest, held = stamp_of(message), self.newest[name], self._held[name]
        self.received[name] += 1
        self.newest[name] = stamp
        if self._watches[name].add(stamp[0] + stamp[1] * 1e-9, 0):
            held.clear()
        if stamp == newest or stamp in held:
            if held.get(stamp) != message:      # else it was sent twice
                held.pop(stamp, None)
            return None
        if stamp == NO_STAMP:
            return None
        held[stamp] = message
        if all(stamp in messages for messages in self._held.values()):
            return self._take(stamp)
        if len(held) > self._keep[name]:
            del held[next(iter(held))]
        return None

    def problem(self, name: str) -> str:
        """Return what is wrong with the stamps of a topic, '' if nothing is."""
        return self._watches[name].problem

    def oldest(self, name: str) -> Stamp | None:
        """Return the oldest stamp that is still held of a topic."""
        return next(iter(self._held[name]), None)

    def _take(self, stamp: Stamp) -> dict[str, Any]:
        self.matched += 1
        matched = {}
        for name, held in self._held.items():
            matched[name] = held[stamp]
            for older in [other for other in held if other <= stamp]:   # nothing that is older will be asked for
                del held[older]
        return matched
