"""Read the images of a recorded topic as they were recorded: their CDR is passed on, once it is known to be whole.

Formats: rosbag2 folders and single .db3 and .mcap files, read by the library rosbags. Messages lie in a bag as ROS
sends them, OMG CDR behind a header of four bytes, the second of which has the byte order.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from tar_vis_core.errors import one_line
from tar_vis_ros.bags.compression import plain_message
from tar_vis_ros.bags.stored import BagError, open_bag

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
SHOWN_TOPICS = 8


@dataclass(frozen=True)
class RecordedMessage:
    """One message of a bag."""

    index: int          # on its topic, from 0
    stamp_ns: int       # of its header
    recorded_ns: int    # when the bag received it
    cdr: bytes


class ImageBag:
    """One image topic of a bag; a context manager. Raise BagError, now and while reading.

    ``topic`` may be empty if only one image topic of the bag has messages. A bag without metadata or without an index,
    or one that breaks off, is read as far as possible; :meth:`images` raises at its end if images are missing.
    """

    def __init__(self, path: str | Path, topic: str = '') -> None:
        self.path = Path(path)
        self.name = self.path.stem if self.path.is_file() else self.path.absolute().name
        self._stored = open_bag(self.path)
        try:
            try:
                chosen = _choose(self._stored.connections, self.path, topic)
            except BagError:    # an index that knows of nothing may be wrong
                if not self._stored.look_inside():
                    raise
                chosen = _choose(self._stored.connections, self.path, topic)
        except BagError as error:
            damage = self._stored.damage
            self.close()
            raise BagError(f'{error}; {damage}' if damage else str(error)) from None
        self.topic, self._kind = chosen[0].topic, chosen[0].msgtype
        self.compressed = self._kind == COMPRESSED
        self.count = sum(connection.msgcount for connection in chosen)

    @property
    def files(self) -> list[Path]:
        """Return the files that the bag is made of."""
        return sorted(path for path in self.path.iterdir() if path.is_file()) if self.path.is_dir() else [self.path]

    @property
    def storage(self) -> str:
        """Return ``sqlite3`` or ``mcap``."""
        return 'mcap' if any('.mcap' in path.suffixes for path in self._stored.files) else 'sqlite3'

    def images(self) -> Iterator[RecordedMessage]:
        """Yield the topic's messages in the order of the bag's time. Raise BagError at the end if some are missing."""
        index = 0
        for recorded_ns, cdr in self._stored.messages(self.topic, self._kind, self.count):
            try:
                cdr = bytes(plain_message(cdr))
                stamp_ns = header_stamp_ns(cdr)
                whole = data_end(cdr, self._kind) <= len(cdr)
            except (struct.error, IndexError, TypeError):       # too short for its fields, or a text: missing
                continue
            if not whole or not isinstance(recorded_ns, int):   # a column of sqlite may hold anything
                continue
            yield RecordedMessage(index, stamp_ns, recorded_ns, cdr)
            index += 1
        if index < self.count or self._stored.broken:
            missing = f'{self.count - index} of {self.count} images are missing' if index < self.count else \
                'it is not known how many images are missing'
            raise BagError(f'{self.path}: cannot be read to its end: {index} images are there, {missing}'
                           + (f' ({self._stored.broken})' if self._stored.broken else ''))

    def close(self) -> None:
        self._stored.close()

    def __enter__(self) -> ImageBag:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_topics(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield topic and CDR of every message of a bag that was closed in order. Raise BagError."""
    try:
        with Reader(path) as reader:
            for connection, _, cdr in reader.messages():
                yield connection.topic, bytes(cdr)
    except Exception as error:      # whatever rosbags raises
        raise BagError(f'{path}: cannot be read: {one_line(error)}') from error


def header_stamp_ns(cdr: bytes) -> int:
    """Return the stamp of a message that begins with a header, nanoseconds. Raise struct.error if this one does not."""
    seconds, nanoseconds = struct.unpack_from('<iI' if cdr[1] & 1 else '>iI', cdr, 4)
    if cdr[0] or nanoseconds >= 10**9:
        raise struct.error('no CDR that begins with a stamp')
    return seconds * 10**9 + nanoseconds


def data_end(cdr: bytes, kind: str) -> int:
    """Return where the last field of an image message ends, its data, as the lengths in the message have it.

    Raise struct.error if the fields before are not there. A subscriber would find it out, too, but copies the data.
    """
    number = struct.Struct('<I' if cdr[1] & 1 else '>I')

    def end(place: int) -> int:     # of a text or data, which lie behind their length
        return place + 4 + number.unpack_from(cdr, place)[0]

    def aligned(place: int) -> int:
        return place + 3 & ~3
    place = aligned(end(12))        # behind header.frame_id
    if kind == COMPRESSED:
        return end(aligned(end(place)))                     # format
    return end(aligned(end(place + 8) + 1) + 4)             # height, width, encoding, is_bigendian, step


def _choose(connections: list[Connection], path: Path, topic: str) -> list[Connection]:
    """Return the connections of the given image topic, or of the only one that has messages."""
    held = [f'{c.topic} ({c.msgtype}, {c.msgcount} messages)' for c in connections]
    listed = ', '.join(held[:SHOWN_TOPICS]) + (', ...' if len(held) > SHOWN_TOPICS else '') or 'nothing'
    chosen = [c for c in connections if c.topic.strip('/') == topic.strip('/')] if topic else [
        c for c in connections if c.msgtype in (IMAGE, COMPRESSED)]
    if not chosen:
        wanted = f'topic {topic}' if topic else 'topic with images'
        raise BagError(f'{path}: no {wanted} in it; it holds {listed}')
    kinds = {c.msgtype for c in chosen}
    if topic and (len(kinds) > 1 or not kinds <= {IMAGE, COMPRESSED}):
        raise BagError(f'{path}: {topic} is of type {" and ".join(sorted(kinds))}; expected {IMAGE} or {COMPRESSED}')
    counts = Counter()
    for connection in chosen:
        counts[connection.topic] += connection.msgcount
    full = sorted(name for name, count in counts.items() if count)
    if len(full) > 1:
        images = ', '.join(f'{name}: {counts[name]} images' for name in full)
        raise BagError(f'{path}: {len(full)} topics with images in it ({images}); choose one with --topic')
    if not full:
        raise BagError(f'{path}: it is empty: no message on {" or ".join(sorted(counts))}')
    return [c for c in chosen if c.topic == full[0]]
