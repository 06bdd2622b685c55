"""The images of a recorded topic as they were recorded: their CDR is passed on, not decoded.

Formats: rosbag2 folders and single .db3 and .mcap files, read by the library rosbags. Messages lie in a bag as ROS
sends them, OMG CDR behind a header of four bytes, the second of which tells the byte order.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from tar_vis_core.errors import TarVisError

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
SHOWN_TOPICS = 8


class BagError(TarVisError):
    """A bag cannot be read, or does not hold what is asked of it; the message is one line."""


@dataclass(frozen=True)
class RecordedMessage:
    """One message of a bag."""

    index: int          # on its topic, from 0
    stamp_ns: int       # of its header
    recorded_ns: int    # when the bag received it
    cdr: bytes


class ImageBag:
    """One image topic of a bag; a context manager. Raises BagError, now and while reading.

    ``topic`` may be empty where the bag holds one image topic only.
    """

    def __init__(self, path: str | Path, topic: str = '') -> None:
        self.path = Path(path)
        self.name = self.path.stem if self.path.is_file() else self.path.absolute().name
        self._reader = _open(self.path)
        try:
            self._connections = _choose(self._reader.connections, self.path, topic)
        except BagError:
            self.close()
            raise
        self.topic = self._connections[0].topic
        self.compressed = self._connections[0].msgtype == COMPRESSED
        self.count = sum(connection.msgcount for connection in self._connections)

    @property
    def files(self) -> list[Path]:
        """The files that the bag is made of."""
        return sorted(path for path in self.path.iterdir() if path.is_file()) if self.path.is_dir() else [self.path]

    @property
    def storage(self) -> str:
        """``sqlite3`` or ``mcap``."""
        return 'mcap' if any(path.suffix == '.mcap' for path in self.files) else 'sqlite3'

    def images(self) -> Iterator[RecordedMessage]:
        """The topic's messages in the order of the bag's time."""
        with _said_of(self.path):
            for index, (_, recorded_ns, cdr) in enumerate(self._reader.messages(self._connections)):
                yield RecordedMessage(index, header_stamp_ns(cdr), recorded_ns, bytes(cdr))

    def close(self) -> None:
        with contextlib.suppress(Exception):     # of a damaged file
            self._reader.close()

    def __enter__(self) -> ImageBag:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_topics(path: Path) -> Iterator[tuple[str, bytes]]:
    """Topic and CDR of every message of a bag, in its order. Raises BagError."""
    with contextlib.closing(_open(path)) as reader, _said_of(path):
        for connection, _, cdr in reader.messages():
            yield connection.topic, bytes(cdr)


def header_stamp_ns(cdr: bytes) -> int:
    """The stamp of a message that begins with a header, in nanoseconds. struct.error where it is too short."""
    seconds, nanoseconds = struct.unpack_from('<iI' if cdr[1] & 1 else '>iI', cdr, 4)
    return seconds * 10**9 + nanoseconds


def _open(path: Path) -> Reader:
    if not path.exists():
        raise BagError(f'{path}: no such bag; expected a rosbag2 folder, a .db3 or a .mcap file')
    if path.is_dir() and not (path / 'metadata.yaml').is_file():
        inside = next((p for p in sorted(path.iterdir()) if p.suffix in ('.db3', '.mcap')), None)
        raise BagError(f'{path}: no metadata.yaml in this folder; ' + (
            f'try the file itself: {inside}' if inside else 'expected a rosbag2 folder, a .db3 or a .mcap file'))
    if path.is_file() and path.suffix not in ('.db3', '.mcap'):
        raise BagError(f'{path}: not a rosbag2 bag; expected a folder, a .db3 or a .mcap file'
                       + (', which rosbags-convert makes of a ROS 1 bag' if path.suffix == '.bag' else ''))
    with _said_of(path):
        reader = Reader(path)
        reader.open()
    return reader


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """What rosbags raises for a damaged bag, which may be anything, in one line."""
    try:
        yield
    except BagError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise BagError(f'{path}: cannot be read: {reason.removesuffix(".")}; it may be cut off, damaged, or of another '
                       'storage than its name says') from error


def _choose(connections: list[Connection], path: Path, topic: str) -> list[Connection]:
    """The connections of the image topic that is asked for, or of the only one."""
    held = [f'{c.topic} ({c.msgtype})' for c in connections]
    listed = ', '.join(held[:SHOWN_TOPICS]) + (', ...' if len(held) > SHOWN_TOPICS else '') or 'nothing'
    chosen = [c for c in connections if c.topic.strip('/') == topic.strip('/')] if topic else [
        c for c in connections if c.msgtype in (IMAGE, COMPRESSED)]
    if not chosen:
        wanted = f'topic {topic}' if topic else 'topic with images'
        raise BagError(f'{path}: no {wanted} in it; it holds {listed}')
    kinds = {c.msgtype for c in chosen}
    if topic and (len(kinds) > 1 or not kinds <= {IMAGE, COMPRESSED}):
        raise BagError(f'{path}: {topic} is of type {" and ".join(sorted(kinds))}; expected {IMAGE} or {COMPRESSED}')
    topics = sorted({c.topic for c in chosen})
    if len(topics) > 1:
        raise BagError(f'{path}: {len(topics)} topics with images in it ({", ".join(topics)}); choose one with --topic')
    if not sum(c.msgcount for c in chosen):
        raise BagError(f'{path}: it is empty: no message on {topics[0]}')
    return chosen
