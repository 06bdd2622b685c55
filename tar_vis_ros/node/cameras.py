"""The cameras of a node: one topic, one temporal state and one set of outputs each, before one model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rclpy.exceptions import InvalidTopicNameException
from rclpy.lifecycle import LifecyclePublisher
from rclpy.validate_full_topic_name import validate_full_topic_name

from tar_vis_core.media.overlay import Trails
from tar_vis_core.stamp_watch import StampWatch
from tar_vis_ros.node.health import Health
from tar_vis_ros.process.parameters import ParameterError

DEFAULT_TOPIC = 'image'


@dataclass(frozen=True)
class Outputs:
    """The publishers of one camera."""

    instances: LifecyclePublisher
    diagnostics: LifecyclePublisher
    overlay: LifecyclePublisher
    images: Mapping[str, LifecyclePublisher]        # of conversions.label_images.IMAGES
    detections: LifecyclePublisher | None = None    # these two where vision_msgs is installed
    labels: LifecyclePublisher | None = None

    def all(self) -> list[LifecyclePublisher]:
        single = (self.instances, self.diagnostics, self.overlay, self.detections, self.labels)
        return [*filter(None, single), *self.images.values()]


@dataclass
class Camera:
    """One stream of images; ``name`` is empty for a node's only camera on the default topic."""

    name: str
    topic: str
    outputs: Outputs
    state: object                                   # TemporalState
    health: Health = field(default_factory=Health)
    unreported: int = 0                             # images dropped since the last published frame
    trails: Trails = field(default_factory=Trails)  # of the frames whose overlay somebody saw
    images: int = 0                                 # that arrived, dropped ones included
    stamps: StampWatch = field(default_factory=StampWatch)      # of all of them
    breaks: deque[tuple[int, str]] = field(default_factory=deque)   # before which image, and why; not yet reported
    stamps_told: bool = False                       # what is wrong with the stamps has been logged
    colours_told: bool = False

    @property
    def prefix(self) -> str:
        """Return the beginning of its log lines."""
        return f'{self.name}: ' if self.name else ''

    def break_before(self, number: int) -> str:
        """Return why tracks begin anew at image ``number`` or at one that was dropped before it, '' if they go on."""
        reason = ''
        while self.breaks and self.breaks[0][0] <= number:
            reason = self.breaks.popleft()[1]
        return reason

    @property
    def stamp_problem(self) -> str:
        """Return what is wrong with the stamps of the images, '' if nothing is."""
        return self.stamps.problem and (
            f'{self.stamps.problem} on {self.topic}: nothing can be joined by them, and gaps are not noticed; let the '
            'driver fill header.stamp')


def camera_topics(topics: Sequence[str], resolve: Callable[[str], str] = str) -> dict[str, str]:
    """Return names and topics of the cameras: the default topic under the name '' if ``topics`` is empty.

    A name is the topic without its last part, if it has more than one: ``/front/image_raw`` is ``front``,
    ``/robot/left/image`` is ``robot_left``. If two names would be equal, the whole topics are the names, with a number
    if even those are equal (``/a_b/c`` and ``/a/b_c``). ``resolve`` returns a topic's full name.
    Raise ParameterError for a topic that ROS does not take, or that is named twice.
    """
    if not topics:
        return {'': DEFAULT_TOPIC}
    for topic in topics:
        try:
            validate_full_topic_name('/' + topic.removeprefix('~').removeprefix('/'))
        except InvalidTopicNameException as error:
            reason = str(error).partition(':\n')[0]
            raise ParameterError(f"parameter 'image_topics' has {topic!r}: {reason}") from error
    full = [resolve(topic) for topic in topics]
    if len(set(full)) < len(full):
        twice = next(topic for topic, name in zip(topics, full, strict=True) if full.count(name) > 1)
        raise ParameterError(f"parameter 'image_topics' has {twice!r} twice: expected every camera once")
    parts = [topic.strip('~/').split('/') for topic in topics]
    names = ['_'.join(p[:-1] or p) for p in parts]
    if len(set(names)) < len(names):
        names = ['_'.join(p) for p in parts]
    for number, name in enumerate(names):
        if name in names[:number]:
            names[number] = next(new for k in range(2, len(names) + 2) if (new := f'{name}_{k}') not in names)
    return dict(zip(names, topics, strict=True))
