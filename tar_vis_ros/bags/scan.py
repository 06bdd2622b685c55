"""Read the data files of a bag from their beginning on, without an index, a summary or metadata.

A recorder that is killed writes none of those, a disk that is full cuts them off, and converters leave them out. What
lies before the break is here. Formats: MCAP (mcap.dev/spec), and rosbag2's sqlite3 tables.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from tar_vis_ros.bags.compression import unpack_records

MCAP_MAGIC, SQLITE_MAGIC = b'\x89MCAP0\r\n', b'SQLite format 3\0'
SCHEMA, CHANNEL, MESSAGE, CHUNK, DATA_END, FOOTER = 0x03, 0x04, 0x05, 0x06, 0x0F, 0x02
RECORD = struct.Struct('<BQ')           # kind, length
MESSAGE_HEAD = struct.Struct('<HIQQ')   # channel, sequence, log time, publish time
CHUNK_HEAD = struct.Struct('<QQQI')     # first and last time, size and checksum of the records
MAX_CHUNK = 2**31                       # bytes of records: more is a damaged number
MAX_DATABASE = 2**40


@dataclass
class Channel:
    """A topic of a data file, by the names that rosbags has for a connection."""

    topic: str
    msgtype: str
    msgcount: int = 0


@dataclass(frozen=True)
class _Place:
    """Where a message lies."""

    time_ns: int
    channel: int
    chunk: int      # offset of its chunk in the file; -1: it lies in the file itself, or it is a row of a table
    start: int      # of its data in the chunk's records or in the file; or the row
    length: int


class Scan(ABC):
    """The messages of a data file in the order of their time."""

    def __init__(self, path: Path) -> None:
        self.path, self.broken = path, ''       # why it cannot be read to its end
        self._channels: dict[int, Channel] = {}
        self._places: list[_Place] = []

    @property
    def connections(self) -> list[Channel]:
        return list(self._channels.values())

    def messages(self, connections: Sequence[Channel]) -> Iterator[tuple[Channel, int, bytes]]:
        """Yield channel, time and data of the messages of these channels."""
        for place in self._places:
            channel = self._channels[place.channel]
            if any(channel is wanted for wanted in connections):
                yield channel, place.time_ns, self._read(place)

    @abstractmethod
    def _read(self, place: _Place) -> bytes:
        """Return the data of a message."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


class McapScan(Scan):
    """The messages of an MCAP file. Raise ValueError if it is none."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._schemas: dict[int, str] = {}
        self._unpacked: tuple[int, bytes] = (-1, b'')
        self._file = path.open('rb')
        if self._file.read(8) != MCAP_MAGIC:
            raise ValueError('it is no MCAP file')
        self._size = path.stat().st_size
        self._walk()
        self._places.sort(key=lambda place: place.time_ns)

    def _read(self, place: _Place) -> bytes:
        if place.chunk < 0:
            self._file.seek(place.start)
            return self._file.read(place.length)
        if self._unpacked[0] != place.chunk:
            self._unpacked = place.chunk, self._records(place.chunk)[0]
        return self._unpacked[1][place.start:place.start + place.length]

    def close(self) -> None:
        self._file.close()

    def _walk(self) -> None:
        """Find all messages up to the end of the data or the first record that is not whole."""
        offset = 8
        while offset + RECORD.size <= self._size:
            self._file.seek(offset)
            kind, length = RECORD.unpack(self._file.read(RECORD.size))
            if kind in (DATA_END, FOOTER):
                return
            whole = offset + RECORD.size + length <= self._size
            if kind == CHUNK:
                records, complete = self._records(offset)
                whole &= self._walk_chunk(offset, records) and complete
            elif kind == MESSAGE and whole and length >= MESSAGE_HEAD.size:
                head = MESSAGE_HEAD.unpack(self._file.read(MESSAGE_HEAD.size))
                self._add(head, -1, offset + RECORD.size + MESSAGE_HEAD.size, length - MESSAGE_HEAD.size)
            elif kind in (SCHEMA, CHANNEL) and whole:
                self._define(kind, self._file.read(length))
            if not whole or not kind:
                break
            offset += RECORD.size + length
        self.broken = f'{self.path.name} breaks off at byte {offset} of {self._size}'

    def _walk_chunk(self, chunk: int, records: bytes) -> bool:
        """Find the messages of a chunk; return whether all its records are whole."""
        offset = 0
        while offset + RECORD.size <= len(records):
            kind, length = RECORD.unpack_from(records, offset)
            offset += RECORD.size
            if not kind or offset + length > len(records):
                return False
            if kind == MESSAGE and length >= MESSAGE_HEAD.size:
                self._add(MESSAGE_HEAD.unpack_from(records, offset), chunk, offset + MESSAGE_HEAD.size,
                          length - MESSAGE_HEAD.size)
            elif kind in (SCHEMA, CHANNEL):
                self._define(kind, records[offset:offset + length])
            offset += length
        return offset == len(records)

    def _add(self, head: tuple[int, int, int, int], chunk: int, start: int, length: int) -> None:
        if (channel := self._channels.get(head[0])) is not None:
            channel.msgcount += 1
            self._places.append(_Place(head[2], head[0], chunk, start, length))

    def _define(self, kind: int, content: bytes) -> None:
        with contextlib.suppress(struct.error, UnicodeDecodeError):     # of a damaged record: nobody's messages
            number, = struct.unpack_from('<H', content)
            if kind == SCHEMA:
                self._schemas[number] = _text(content, 2)[0]
            else:
                schema, = struct.unpack_from('<H', content, 2)
                self._channels.setdefault(number, Channel(_text(content, 4)[0], self._schemas.get(schema, '')))

    def _records(self, offset: int) -> tuple[bytes, bool]:
        """Return the records of the chunk at ``offset`` as far as they are there, and whether they are all of it."""
        self._file.seek(offset)
        _, length = RECORD.unpack(self._file.read(RECORD.size))
        content = self._file.read(min(length, self._size - offset))
        try:
            _, _, size, checksum = CHUNK_HEAD.unpack_from(content)
            compression, start = _text(content, CHUNK_HEAD.size)
            packed, = struct.unpack_from('<Q', content, start)
        except (struct.error, UnicodeDecodeError):
            return b'', False
        data = content[start + 8:start + 8 + packed]
        if size > MAX_CHUNK or compression not in ('', 'lz4', 'zstd'):
            return b'', False
        records = unpack_records(data, compression, size) if compression else data
        if len(records) == size and checksum and crc32(records) != checksum:
            return b'', False       # nobody knows which of its messages are damaged
        return records, len(records) == size


class SqliteScan(Scan):
    """The messages of a rosbag2 database. Raise sqlite3.Error if it is none."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._open_files = contextlib.ExitStack()
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self._places.sort(key=lambda place: (place.time_ns, place.start))

    def _open(self) -> None:
        path = self.path
        if missing := _missing_bytes(path):     # sqlite opens no database that is shorter than it says: fill up a copy
            self.broken = f'{path.name} is cut off, {missing} bytes are missing'
            copy = Path(self._open_files.enter_context(tempfile.TemporaryDirectory())) / path.name
            shutil.copyfile(path, copy)
            os.truncate(copy, path.stat().st_size + missing)
            path = copy
        address = f'{path.absolute().as_uri()}?mode=ro'
        # beside a database may lie a journal with its last messages: only a database without one is for itself
        self._database = sqlite3.connect(address if has_journal(path) else f'{address}&immutable=1', uri=True)
        self._open_files.callback(self._database.close)
        self._channels = {number: Channel(str(topic), str(kind)) for number, topic, kind in
                          self._database.execute('SELECT id, name, type FROM topics')}
        try:
            for row, channel, time_ns in self._database.execute('SELECT id, topic_id, timestamp FROM messages'):
                if channel in self._channels:
                    self._channels[channel].msgcount += 1
                    if isinstance(time_ns, int):    # a column may hold anything: missing
                        self._places.append(_Place(time_ns, channel, -1, row, 0))
        except sqlite3.DatabaseError as error:
            self.broken = self.broken or f'{path.name} breaks off after {len(self._places)} messages: {error}'

    def _read(self, place: _Place) -> bytes:
        data, = self._database.execute('SELECT data FROM messages WHERE id = ?', (place.start,)).fetchone()
        return data

    def close(self) -> None:
        self._open_files.close()


def _missing_bytes(path: Path) -> int:
    """Return how many bytes a database is shorter than its header says."""
    with path.open('rb') as file:
        head = file.read(100)
    if len(head) < 100:
        return 0
    page, changed, pages, known = (*struct.unpack_from('>H', head, 16), *struct.unpack_from('>I', head, 24),
                                   *struct.unpack_from('>I', head, 28), *struct.unpack_from('>I', head, 92))
    size = (65536 if page == 1 else page) * pages
    return max(0, size - path.stat().st_size) if changed == known and size < MAX_DATABASE else 0


def has_journal(path: Path) -> bool:
    """Return whether a killed recorder left messages beside its database."""
    journal = path.with_name(f'{path.name}-wal')
    return journal.is_file() and journal.stat().st_size > 0


def has_views(path: Path) -> bool:
    """Return whether a database has views: no recorder makes them, and a query of theirs may have no end."""
    # ValueError: words of sqlite about a damaged name, which are no UTF-8
    with contextlib.suppress(sqlite3.Error, ValueError), contextlib.closing(
            sqlite3.connect(f'{path.absolute().as_uri()}?mode=ro&immutable=1', uri=True)) as database:
        return database.execute("SELECT 1 FROM sqlite_master WHERE type = 'view'").fetchone() is not None
    return False


def storage_of(path: Path) -> str:
    """Return 'mcap' or 'sqlite3' by the first bytes of a file, '' if it is neither."""
    with path.open('rb') as file:
        start = file.read(16)
    return 'mcap' if start.startswith(MCAP_MAGIC) else 'sqlite3' if start == SQLITE_MAGIC else ''


def _text(content: bytes, start: int) -> tuple[str, int]:
    """Return the text at ``start`` and where it ends."""
    length, = struct.unpack_from('<I', content, start)
    end = start + 4 + length
    if end > len(content):
        raise struct.error('cut')
    return content[start + 4:end].decode(), end
