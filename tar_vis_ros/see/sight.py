"""What is in sight, as one JSON document: who is where, since when, how sure. No ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from tar_vis_core.instances import Instance, TrackStatus

SCHEMA = 'tar_vis.see/1'    # the number rises if a field changes its meaning or goes
THIRDS = 'left', 'middle', 'right'


@dataclass(frozen=True)
class Seen:
    """One object. Fields of positions in metres are None if no depth is known."""

    id: int                             # holds while the object is followed, within one track_epoch
    class_name: str
    score: float                        # 0..1, how sure
    status: str                         # new, tracked, or lost: out of sight for a moment, at its last box
    where: str                          # left, middle or right third of the image, by the middle of the box
    box: tuple[int, int, int, int]      # x, y, width, height, pixels; x to the right, y down
    area_share: float                   # of the image that the mask covers, 0..1
    age_frames: int                     # answered images since it was first seen
    since_s: float | None               # seconds since then, estimated from the rate of answers
    distance_m: float | None = None     # from the camera
    position_m: tuple[float, float, float] | None = None    # of the camera's optical frame: x right, y down, z ahead


@dataclass(frozen=True)
class Sight:
    """One image."""

    schema: str
    text: str                   # the whole in one sentence
    stamp: str | None           # of the image, seconds; None for a picture
    age_s: float | None         # seconds from the stamp to now
    frame_id: str               # of the camera's optical frame
    width: int
    height: int
    track_epoch: int            # ids of different epochs are unrelated
    objects: list[Seen]         # those in sight by falling score, then those lost

    def as_dict(self) -> dict:
        """Return what is printed as JSON."""
        return asdict(self)


def sight(instances: Sequence[Instance], height: int, width: int, track_epoch: int, *, stamp: str | None = None,
          age_s: float | None = None, frame_id: str = '', interval_s: float | None = None,
          positions: Mapping[int, tuple[float, float, float]] | None = None) -> Sight:
    """Return what is in sight.

    ``interval_s`` is the time between two answers, ``positions`` are metres by track id; both if they are known.
    """
    objects = []
    for one in instances:
        x, _, w, _ = one.box
        seen = Seen(one.track_id, one.class_name, round(float(one.score), 3), one.status.name.lower(),
                    THIRDS[min(2, int(3 * (x + w / 2) / width))], tuple(map(int, one.box)),
                    round(one.area / (height * width), 4), one.age,
                    None if interval_s is None else round(one.age * interval_s, 2))
        if place := (positions or {}).get(one.track_id):
            distance = round(sum(side ** 2 for side in place) ** 0.5, 2)
            seen = replace(seen, distance_m=distance, position_m=tuple(round(side, 2) for side in place))
        objects.append(seen)
    age_s = None if age_s is None else round(age_s, 3)
    return Sight(SCHEMA, sentence(objects), stamp, age_s, frame_id, width, height, track_epoch, objects)


def sentence(objects: Sequence[Seen]) -> str:
    """Return the objects in words, such as '2 person: #3 on the left, 2.1 m away; #5 in the middle'."""
    there = [one for one in objects if one.status != TrackStatus.LOST.name.lower()]
    if not there:
        return 'nothing in sight'
    parts = []
    for name, count in Counter(one.class_name for one in there).items():
        places = [f'#{one.id} {"in the middle" if one.where == "middle" else f"on the {one.where}"}'
                  + (f', {one.distance_m:.1f} m away' if one.distance_m is not None else '')
                  for one in there if one.class_name == name]
        parts.append(f'{count} {name}: {"; ".join(places)}')
    return '. '.join(parts)
