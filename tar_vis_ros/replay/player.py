"""Publish recorded images as they are and record the answers, one image at a time or at the recording's pace.

Discovery without waiting for luck: publisher and subscriptions are made before any service of the node is called. DDS
announces endpoints in the order of their making, so a node that has answered a call knows all of them, and neither
the first image nor the first answer is lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from tar_vis_core.media.recording import finite_or_none
from tar_vis_ros.bags.reader import BagError, RecordedMessage, header_stamp_ns
from tar_vis_ros.bags.writer import BagWriter
from tar_vis_ros.msg import InstanceMaskArray, SkipDiagnostics
from tar_vis_ros.process.children import ProcessError, ServiceCaller
from tar_vis_ros.replay.outcome import ImageOutcome

KINDS = {'instances': InstanceMaskArray, 'skip_diagnostics': SkipDiagnostics}
GIVE_UP = 3          # images in a row without an answer
LONGEST_GAP_S = 3600.0    # in real time, between two images; more is a clock that was set while the bag was recorded
QUIET_S = 3.0        # in real time, after the last image, without an answer for so long: no more will come


class Player:
    """The images of one bag through one node; ``frames`` grows with every image."""

    def __init__(self, node: Node, executor: Executor, topic: str, compressed: bool, prefix: str) -> None:
        """Publish for a node; ``prefix`` comes before /instances and /skip_diagnostics in its topics."""
        self.frames: list[ImageOutcome] = []
        self.order: list[int] = []      # answered images, in the order of their answers
        self.topics = {f'{prefix}/{name}': message for name, message in KINDS.items()}
        self._node, self._executor = node, executor
        self._writer: BagWriter | None = None
        self._published: dict[int, tuple[int, float]] = {}      # stamp: image, when
        self._halves: dict[int, dict[str, bytes]] = {}          # stamp: what has come of its answer
        self._publisher = node.create_publisher(CompressedImage if compressed else Image, topic, QoSProfile(depth=5))
        for name, message in self.topics.items():
            node.create_subscription(message, name, partial(self._on_answer, name), QoSProfile(depth=100), raw=True)

    def lossless(self, images: Iterable[RecordedMessage], writer: BagWriter, caller: ServiceCaller,
                 patience_s: float) -> None:
        """Publish every image when the previous one is answered.

        A node that listens with best effort may miss one: it is published again after a third of ``patience_s``.
        Raise ProcessError if several in a row stay without an answer.
        """
        self._writer = writer
        again_s = patience_s / 3 if self._best_effort else patience_s
        missing = 0
        for image in images:
            outcome = self._publish(image)
            end = time.monotonic() + patience_s
            while not outcome.answered and time.monotonic() < end:
                self._spin(caller, outcome, min(end, time.monotonic() + again_s))
                if not outcome.answered and time.monotonic() < end:
                    self._publisher.publish(image.cdr)
                    outcome.sent += 1
            missing = 0 if outcome.answered else missing + 1
            if missing == GIVE_UP:
                raise ProcessError(f'images {image.index - GIVE_UP + 1} to {image.index} were not answered within '
                                   f'{patience_s:g} s each')

    def real_time(self, images: Iterable[RecordedMessage], writer: BagWriter, caller: ServiceCaller,
                  rate: float) -> None:
        """Publish every image at its recorded time, ``rate`` times as fast, answered or not.

        Raise BagError for a stamp that comes twice, because answers are matched by stamp, and for a time that nobody
        would wait for.
        """
        self._writer = writer
        began = first_ns = last_ns = None
        for image in images:
            if began is None:
                began, first_ns, last_ns = time.monotonic(), image.recorded_ns, image.recorded_ns
            due = began + (image.recorded_ns - first_ns) * 1e-9 / rate
            if (gap_s := (image.recorded_ns - last_ns) * 1e-9 / rate) > LONGEST_GAP_S:
                raise BagError(f'image {image.index} comes {gap_s:.0f} s after the one before; was a clock set while '
                               'the bag was recorded? use --mode lossless, or a higher --rate')
            last_ns = image.recorded_ns
            self._spin(caller, None, due)
            if (before := self._published.get(image.stamp_ns)) is not None:
                raise BagError(f'images {before[0]} and {image.index} have one stamp, {image.stamp_ns * 1e-9:.9f}: '
                               'their answers cannot be told apart in real time; use --mode lossless')
            outcome = self._publish(image)
            now = time.monotonic()
            outcome.late_ms, outcome.published_ms = (finite_or_none((now - since) * 1e3) for since in (due, began))
        self._wait_for_the_rest(caller)

    def _wait_for_the_rest(self, caller: ServiceCaller) -> None:
        slowest_s = max((outcome.round_trip_ms or 0.0 for outcome in self.frames), default=0.0) / 1e3
        news = time.monotonic()
        while self.frames and not self.frames[-1].answered and time.monotonic() - news < max(QUIET_S, 3 * slowest_s):
            before = len(self.order)
            self._spin(caller, self.frames[-1], time.monotonic() + 0.2)
            news = time.monotonic() if len(self.order) > before else news

    @property
    def listeners(self) -> int:
        return self._publisher.get_subscription_count()

    @property
    def _best_effort(self) -> bool:
        return any(info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
                   for info in self._node.get_subscriptions_info_by_topic(self._publisher.topic_name))

    def _publish(self, image: RecordedMessage) -> ImageOutcome:
        outcome = ImageOutcome(image.index, image.stamp_ns, image.recorded_ns)
        self.frames.append(outcome)
        self._published[image.stamp_ns] = image.index, time.monotonic()
        self._publisher.publish(image.cdr)
        return outcome

    def _spin(self, caller: ServiceCaller, outcome: ImageOutcome | None, until: float) -> None:
        """Spin until that time, or until the answer of ``outcome``. Raise as :meth:`ServiceCaller.check` does."""
        while (left := until - time.monotonic()) > 0 and not (outcome and outcome.answered):
            caller.check()
            self._executor.spin_once(timeout_sec=min(left, 0.1))

    def _on_answer(self, topic: str, cdr: bytes) -> None:
        stamp_ns = header_stamp_ns(cdr)
        index, published = self._published.get(stamp_ns, (None, 0.0))
        if index is None or self.frames[index].answered:     # somebody else's image, or one that was sent twice
            return
        halves = self._halves.setdefault(stamp_ns, {})
        halves[topic] = cdr
        if len(halves) == len(self.topics):
            outcome = self.frames[index]
            outcome.round_trip_ms = finite_or_none((time.monotonic() - published) * 1e3)
            for name, half in self._halves.pop(stamp_ns).items():
                self._writer.write(name, outcome.recorded_ns, half)
            self.order.append(index)
