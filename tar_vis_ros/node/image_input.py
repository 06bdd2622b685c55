"""One camera's subscription, and what keeps its images from coming: said with names, instead of silence."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSPolicyKind, QoSProfile, ReliabilityPolicy, qos_check_compatible
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from tar_vis_ros.node.arrivals import Arrivals
from tar_vis_ros.process.parameters import ParameterError

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ModuleNotFoundError:   # rclpy of Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

TRANSPORTS = {   # message, its name, what comes behind the topic
    'raw': (Image, 'sensor_msgs/msg/Image', ''),
    'compressed': (CompressedImage, 'sensor_msgs/msg/CompressedImage', '/compressed'),
}
OVERRIDABLE = {   # policy of qos_overrides: what it may be
    'history': ('keep_last', 'keep_all'),
    'depth': range(1, 10001),
    'reliability': ('best_effort', 'reliable'),
    'durability': ('volatile', 'transient_local'),
}
LOOK_S = 1.0         # how often the publishers of the topic are looked at
NAMELESS_S = 1.0     # so long a publisher may be in the graph without its node
PATIENCE_S = 3.0     # so long nobody may publish before it is said: discovery takes a second or two
SHOWN_TOPICS = 5


@dataclass(frozen=True)
class _Publisher:
    node: str        # its full name; '' where the graph does not tell it
    type: str        # of its messages, package/msg/Name
    mismatch: str    # why its QoS cannot be taken; '' where it can

    def __str__(self) -> str:
        return self.node or 'a publisher without a known node'


class ImageInput:
    """The images of one topic, from its creation until :meth:`close`.

    ``on_image(message, arrived, missed)`` is called for every image: ``arrived`` on the clock of
    ``time.perf_counter``, ``missed`` images before it were lost on the way. ``on_problem(kind, text)`` is called once
    when something begins to keep images from coming: 'incompatible QoS', 'wrong type', 'several publishers',
    'no publisher'. Both are called by the executor of ``node``.

    ``transport`` is 'raw' (the topic) or 'compressed' (the topic with ``/compressed`` at its end), ``reliability``
    'best_effort' or 'reliable'. Start-up parameters ``qos_overrides.TOPIC.subscription.POLICY`` go before it;
    ParameterError where one of them is wrong.
    """

    def __init__(self, node: Node, topic: str, transport: str, reliability: str,
                 on_image: Callable[[Image | CompressedImage, float, int], None],
                 on_problem: Callable[[str, str], None]) -> None:
        self._node, self._on_image, self._on_problem = node, on_image, on_problem
        message_type, self._type, ending = TRANSPORTS[transport]
        if ending:   # remap rules are for the topic itself
            topic = node.resolve_topic_name(topic) + ending
        self.topic = node.resolve_topic_name(topic)
        self._arrivals = Arrivals()
        self._found: dict[tuple[str, frozenset[str]], str] = {}   # (kind, whose) -> text
        self._published = time.monotonic()                        # when somebody last did
        self._sources: list[str] = []                             # and who that was
        self._known: dict[tuple, tuple[float, str]] = {}          # publisher's id -> (first seen, node)
        told = hasattr(Subscription, 'CallbackType')   # rclpy of Humble tells nothing of a message but its contents
        self._subscription: Subscription | None = node.create_subscription(
            message_type, topic, self._take if told else lambda message: self._take(message, {}),
            QoSProfile(depth=1, reliability=ReliabilityPolicy[reliability.upper()]),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=lambda event: self._look()),
            qos_overriding_options=QoSOverridingOptions(_overridden(node, self.topic)))
        self._timer = node.create_timer(LOOK_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def problems(self) -> list[str]:
        """What keeps images from coming right now, one line each."""
        return list(self._found.values())

    def close(self) -> None:
        """Ends the subscription; no callback is called from now on."""
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            self._node.destroy_timer(self._timer)
            self._node.destroy_subscription(subscription)
            self._found = {}

    def _take(self, message: Image | CompressedImage, info: dict) -> None:
        if self._subscription is not None:   # else it was taken just before the end
            missed = self._arrivals.missed(info, self._subscription.get_publisher_count()) if info else 0
            self._on_image(message, self._arrivals.arrived(info), missed)

    # What keeps images from coming

    def _look(self) -> None:
        if self._subscription is None:
            return
        before, self._found = self._found, dict(self._judge(list(self._publishers())))
        for key in sorted(self._found.keys() - before.keys(), key=str):
            self._on_problem(key[0], self._found[key])

    def _publishers(self) -> Iterator[_Publisher]:
        """Those of the topic. The name of a node comes a little after its publishers, and goes before them."""
        now, before, self._known = time.monotonic(), self._known, {}
        for info in self._node.get_publishers_info_by_topic(self.topic):
            gid = tuple(info.endpoint_gid)
            since, node = before.get(gid, (now, ''))
            if not info.node_name.startswith('_'):   # _NODE_NAME_UNKNOWN_, _CREATED_BY_BARE_DDS_APP_
                node = f'{info.node_namespace.rstrip("/")}/{info.node_name}'
            self._known[gid] = since, node
            if node or now - since >= NAMELESS_S:
                compatible, reason = qos_check_compatible(info.qos_profile, self._subscription.qos_profile)
                yield _Publisher(node, info.topic_type,
                                 _words(reason) if compatible == QoSCompatibility.ERROR else '')

    def _judge(self, publishers: list[_Publisher]) -> Iterator[tuple[tuple[str, frozenset[str]], str]]:
        """((kind, whose), text) of each problem."""
        for publisher in publishers:
            whose = frozenset([str(publisher)])
            if publisher.type != self._type:
                yield ('wrong type', whose), (f'{publisher} publishes {publisher.type} on {self.topic}, expected '
                                              f'{self._type}: set image_transport or the topic to fit it')
            elif publisher.mismatch:
                yield ('incompatible QoS', whose), (
                    f'no image comes from {publisher} on {self.topic}, its QoS is incompatible ({publisher.mismatch}): '
                    f'set image_reliability or qos_overrides.{self.topic}.subscription.* to what it offers')
        good = Counter(str(p) for p in publishers if p.type == self._type and not p.mismatch)
        if good.total() > 1:
            names = ', '.join(f'{name} ({count})' if count > 1 else name for name, count in sorted(good.items()))
            yield ('several publishers', frozenset(good)), (
                f'{good.total()} publishers on {self.topic}: {names}; their images are taken for those of one camera: '
                'leave one (one that was killed counts for 20 s still), or give each its own topic')
        if publishers:
            self._published, self._sources = time.monotonic(), sorted({str(p) for p in publishers})
        elif time.monotonic() - self._published > PATIENCE_S:
            since = f' any more, {" and ".join(self._sources)} did' if self._sources else ''
            yield ('no publisher', frozenset()), f'nobody publishes {self.topic}{since}{self._elsewhere()}'

    def _elsewhere(self) -> str:
        """Where there are images, for a topic is easily mistaken; '' where there are none."""
        own = self._node.get_fully_qualified_name() + '/'   # the node's own pictures
        types = {name for _, name, _ in TRANSPORTS.values()}
        topics = sorted(topic for topic, of in self._node.get_topic_names_and_types()
                        if types.intersection(of) and topic != self.topic and not topic.startswith(own))
        return f'; there are images on {", ".join(topics[:SHOWN_TOPICS])}' if topics else ''


def _overridden(node: Node, topic: str) -> list[QoSPolicyKind]:
    """The policies that start-up parameters override. Raises ParameterError where they cannot.

    The others are not declared: a declared one would hold its first value, whatever image_reliability becomes.
    """
    start = f'qos_overrides.{topic}.subscription.'
    kinds = []
    for name, parameter in node._parameter_overrides.items():   # rclpy has no public way
        if name.startswith(start):
            policy, value = name.removeprefix(start), parameter.value
            if policy not in OVERRIDABLE:
                raise ParameterError(f"parameter '{name}': there is no QoS policy '{policy}' to override, expected "
                                     f'one of {", ".join(OVERRIDABLE)}')
            allowed = OVERRIDABLE[policy]
            if type(value) not in (int, str) or value not in allowed:
                words = 'a whole number from 1 to 10000' if policy == 'depth' else f'one of {", ".join(allowed)}'
                raise ParameterError(f"parameter '{name}' is {value!r}: expected {words}")
            kinds.append(QoSPolicyKind[policy.upper()])
    return kinds


def _words(reason: str) -> str:
    """The text of ``qos_check_compatible`` without its decoration."""
    return reason.replace('ERROR: ', '').strip(' ;').lower()
