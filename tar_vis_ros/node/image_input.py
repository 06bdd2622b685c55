"""One camera's subscription. It says by name what keeps its images from coming."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from tar_vis_ros.process.parameters import ParameterError
from tar_vis_ros.process.publishers import Publisher, Publishers

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
PATIENCE_S = 3.0     # so long nobody may publish before it is said: discovery takes a second or two
SHOWN_TOPICS = 5
MAX_WAIT_S = 60.0    # a longer wait in the queue is a clock that was set


class ImageInput:
    """The images of one topic, from its creation until :meth:`close`.

    ``on_image(message, arrived, missed)`` is called for every image: ``arrived`` on the clock of
    ``time.perf_counter``, ``missed`` images before it were lost on the way. ``on_problem(kind, text)`` is called once
    when something begins to keep images from coming: 'incompatible QoS', 'wrong type', 'several publishers',
    'no publisher'. Both are called by the executor of ``node``.

    ``transport`` is 'raw' (the topic) or 'compressed' (the topic with ``/compressed`` at its end), ``reliability``
    'best_effort' or 'reliable'. Start-up parameters ``qos_overrides.TOPIC.subscription.POLICY`` go before it;
    ParameterError if one of them is wrong.
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
        told = hasattr(Subscription, 'CallbackType')   # rclpy of Humble passes the message alone
        self._subscription: Subscription | None = node.create_subscription(
            message_type, topic, self._take if told else lambda message: self._take(message, {}),
            QoSProfile(depth=1, reliability=ReliabilityPolicy[reliability.upper()]),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=lambda event: self._look()),
            qos_overriding_options=QoSOverridingOptions(_overridden(node, self.topic)))
        self._publishers = Publishers(node, self.topic, self._type, self._subscription.qos_profile)
        self._timer = node.create_timer(LOOK_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def problems(self) -> list[str]:
        """Return what keeps images from coming right now, one line each."""
        return list(self._found.values())

    def close(self) -> None:
        """End the subscription; no callback is called from now on."""
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
        before, self._found = self._found, dict(self._judge(list(self._publishers.now())))
        for key in sorted(self._found.keys() - before.keys(), key=str):
            self._on_problem(key[0], self._found[key])

    def _judge(self, publishers: list[Publisher]) -> Iterator[tuple[tuple[str, frozenset[str]], str]]:
        """Yield ((kind, whose), text) of each problem."""
        for publisher in publishers:
            kind, text = self._publishers.problem_of(
                publisher, ': set image_transport or the topic to fit it',
                f': set image_reliability or qos_overrides.{self.topic}.subscription.* to what it offers')
            if kind:
                yield (kind, frozenset([str(publisher)])), text
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
        """Return a hint at topics with images, because a topic is easily mistaken; '' if there are none."""
        own = self._node.get_fully_qualified_name() + '/'   # the node's own pictures
        types = {name for _, name, _ in TRANSPORTS.values()}
        topics = sorted(topic for topic, of in self._node.get_topic_names_and_types()
                        if types.intersection(of) and topic != self.topic and not topic.startswith(own))
        return f'; there are images on {", ".join(topics[:SHOWN_TOPICS])}' if topics else ''


class Arrivals:
    """Arrival times and numbers of lost images, from the infos that DDS has of one subscription's messages.

    With a queue of one, DDS replaces images that were not read.
    """

    def __init__(self) -> None:
        self._last: int | None = None

    def missed(self, info: Mapping[str, int | None], publishers: int) -> int:
        """Return the number of images that were published since the last call and did not come.

        It is 0 if that cannot be known: without sequence numbers, with several publishers, after one has started anew.
        """
        number = info.get('publication_sequence_number')
        last, self._last = self._last, number
        if not number or not last or publishers != 1 or number <= last:
            return 0
        return number - last - 1

    @staticmethod
    def arrived(info: Mapping[str, int | None]) -> float:
        """Return when the message arrived, on the clock of ``time.perf_counter``."""
        now, received = time.perf_counter(), info.get('received_timestamp')
        waited = (time.time_ns() - received) * 1e-9 if received else 0.0
        return now - waited if 0 < waited < MAX_WAIT_S else now


def _overridden(node: Node, topic: str) -> list[QoSPolicyKind]:
    """Return the policies that start-up parameters override. Raise ParameterError if they cannot.

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
