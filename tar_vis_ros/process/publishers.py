"""Find the publishers of a topic, and why a subscription gets no messages of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible

NAMELESS_S = 1.0     # so long a publisher may be in the graph without its node


@dataclass(frozen=True)
class Publisher:
    """One publisher of a topic."""

    node: str        # its full name; '' if the graph does not have it
    type: str        # of its messages, package/msg/Name
    mismatch: str    # why its QoS is incompatible; '' if it is compatible

    def __str__(self) -> str:
        return self.node or 'a publisher without a known node'


class Publishers:
    """The publishers of one topic, as a subscription with a type and a QoS profile sees them."""

    def __init__(self, node: Node, topic: str, type_name: str, qos: QoSProfile) -> None:
        """Look at ``topic``, its full name; ``type_name`` is package/msg/Name of the expected messages."""
        self.topic, self.type = topic, type_name
        self._node, self._qos = node, qos
        self._known: dict[tuple, tuple[float, str]] = {}          # publisher's id -> (first seen, node)

    def now(self) -> Iterator[Publisher]:
        """Yield those that there are. The name of a node comes a little after its publishers, and goes before them."""
        now, before, self._known = time.monotonic(), self._known, {}
        for info in self._node.get_publishers_info_by_topic(self.topic):
            gid = tuple(info.endpoint_gid)
            since, node = before.get(gid, (now, ''))
            if not info.node_name.startswith('_'):   # _NODE_NAME_UNKNOWN_, _CREATED_BY_BARE_DDS_APP_
                node = f'{info.node_namespace.rstrip("/")}/{info.node_name}'
            self._known[gid] = since, node
            if node or now - since >= NAMELESS_S:
                compatible, reason = qos_check_compatible(info.qos_profile, self._qos)
                yield Publisher(node, info.topic_type, _words(reason) if compatible == QoSCompatibility.ERROR else '')

    def problem_of(self, publisher: Publisher, type_hint: str = '', qos_hint: str = '') -> tuple[str, str]:
        """Return kind and text of the reason why no messages of a publisher come; both '' if there is none.

        Kinds are 'wrong type' and 'incompatible QoS'; the hints say what to do.
        """
        if publisher.type != self.type:
            return 'wrong type', (f'{publisher} publishes {publisher.type} on {self.topic}, expected {self.type}'
                                  f'{type_hint}')
        if publisher.mismatch:
            return 'incompatible QoS', (f'no message comes from {publisher} on {self.topic}, its QoS is incompatible '
                                        f'({publisher.mismatch}){qos_hint}')
        return '', ''

    def why_none_can_come(self) -> str:
        """Return why no messages come, '' if those of some publisher can come, or if nobody publishes."""
        problems = [self.problem_of(publisher)[1] for publisher in self.now()]
        return '; '.join(problems) if all(problems) else ''

    def why_silent(self) -> str:
        """Return why no messages come, '' if no reason is known."""
        problems = [self.problem_of(publisher)[1] for publisher in self.now()]
        return '; '.join(filter(None, problems)) if problems else f'nobody publishes {self.topic}'


def type_name(message: type) -> str:
    """Return the full name of a message class, such as sensor_msgs/msg/Image."""
    return f'{message.__module__.partition(".")[0]}/msg/{message.__name__}'


def _words(reason: str) -> str:
    """Return the text of ``qos_check_compatible`` without its decoration."""
    return reason.replace('ERROR: ', '').strip(' ;').lower()
