"""The cameras of a node: one topic, one temporal state and one set of outputs each, before one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rclpy.exceptions import InvalidTopicNameException
from rclpy.lifecycle import LifecyclePublisher
from rclpy.validate_full_topic_name import validate_full_topic_name

from tar_vis_core.latency_budget import LatencyBudget
from tar_vis_core.media.overlay import Trails
from tar_vis_ros.node.health import Health
from tar_vis_ros.process.parameters import ParameterError

DEFAULT_TOPIC = 'image'


@dataclass(frozen=True)
class Outputs:
    """The publishers of one camera."""

    instances: LifecyclePublisher
    diagnostics: LifecyclePublisher
    label_image: LifecyclePublisher
    overlay: LifecyclePublisher
    detections: LifecyclePublisher | None = None    # these two where vision_msgs is installed
    labels: LifecyclePublisher | None = None

    def all(self) -> list[LifecyclePublisher]:
        return [publisher for publisher in vars(self).values() if publisher is not None]


@dataclass
class Camera:
    """One stream of images; ``name`` is empty for a node's only camera on the default topic."""

    name: str
    topic: str
    outputs: Outputs
    state: object                                   # TemporalState
    health: Health = field(default_factory=Health)
    unreported: int = 0                             # images dropped since the last published frame
    budget: LatencyBudget | None = None             # where a step may take only so long
    trails: Trails = field(default_factory=Trails)  # of the frames whose overlay somebody saw

    @property
    def prefix(self) -> str:
        """What comes before its log lines."""
        return f'{self.name}: ' if self.name else ''


def camera_topics(topics: Sequence[str]) -> dict[str, str]:
    """Names and topics of the cameras: the default topic under the name '' where ``topics`` is empty.

    A name is the topic without its last part, where it has more than one: ``/front/image_raw`` is ``front``,
    ``/robot/left/image`` is ``robot_left``. Where two would be the same, the whole topics are the names.
    Raises ParameterError for a topic that ROS does not take, or that is named twice.
    """
    if not topics:
        return {'': DEFAULT_TOPIC}
    for topic in topics:
        try:
            validate_full_topic_name('/' + topic.removeprefix('~').removeprefix('/'))
        except InvalidTopicNameException as error:
            reason = str(error).partition(':\n')[0]
            raise ParameterError(f"parameter 'image_topics' has {topic!r}: {reason}") from error
    if len(set(topics)) < len(topics):
        twice = next(topic for topic in topics if topics.count(topic) > 1)
        raise ParameterError(f"parameter 'image_topics' has {twice!r} twice: expected every camera once")
    parts = [topic.strip('~/').split('/') for topic in topics]
    names = ['_'.join(p[:-1] or p) for p in parts]
    if len(set(names)) < len(names):
        names = ['_'.join(p) for p in parts]
    return dict(zip(names, topics, strict=True))
