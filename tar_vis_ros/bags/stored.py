"""Open a bag: by its index and metadata, or by looking into its files if those are missing or wrong."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath

import yaml
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from tar_vis_core.errors import TarVisError, one_line
from tar_vis_core.io.input_files import problem_of, what_it_is
from tar_vis_ros.bags.scan import Channel, McapScan, Scan, SqliteScan, has_journal, has_views, storage_of

SUFFIXES = ('.db3', '.mcap')
EXPECTED = 'expected a rosbag2 folder, a .db3 or a .mcap file'


class BagError(TarVisError):
    """A bag cannot be read, or does not hold what is asked of it; the message is one line."""


class StoredBag:
    """The messages of a bag: by its index as long as that serves, then by a scan of its files one by one."""

    def __init__(self, files: Sequence[Path], reader: Reader | None, counts: Mapping[str, int], lost: Sequence[str]
                 ) -> None:
        """Take the messages by topic as the metadata ``counts`` them, and ``lost``, the files that are missing."""
        self.files, self.broken = list(files), ''   # the latter: why not all could be read
        self._reader, self._counts, self._lost = reader, counts, lost
        self._scans: list[Scan] = []
        if reader is None:
            self.look_inside()

    @property
    def connections(self) -> list[Connection | Channel]:
        """Return the topics, with the number of messages in each as the metadata has it."""
        if self._reader:
            return self._reader.connections
        found: dict[tuple[str, str], Channel] = {}
        for channel in (channel for scan in self._scans for channel in scan.connections):
            known = found.setdefault((channel.topic, channel.msgtype), Channel(channel.topic, channel.msgtype))
            known.msgcount += channel.msgcount
        for channel in found.values():
            channel.msgcount = max(channel.msgcount, self._counts.get(channel.topic, 0))
        return list(found.values())

    def look_inside(self) -> bool:
        """Give up the index; return False if there was none any more. Raise BagError if no file can be read."""
        if self._scans:
            return False
        problems = []
        for file in self.files:
            try:
                self._scans.append(_scan(file))
            except BagError as error:
                problems.append(error)
        if not self._scans:
            raise problems[0]
        self._lost = [*self._lost, *map(str, problems)]
        self._close_reader()
        return True

    def messages(self, topic: str, kind: str, count: int) -> Iterator[tuple[int, bytes]]:
        """Yield time and CDR of a topic's messages, of which there should be ``count``; then see ``broken``."""
        seen, failed, self.broken = 0, '', ''
        if self._reader:
            try:
                for _, time_ns, cdr in self._reader.messages(_of(self._reader.connections, topic, kind)):
                    seen += 1
                    yield time_ns, cdr
            except Exception as error:      # whatever rosbags raises for a damaged bag
                failed = one_line(error)
            if not failed and seen >= count:
                return
            try:    # as before and further, for both go by time
                self.look_inside()
            except BagError as error:
                self.broken = failed or str(error)
                return
        passed, held = 0, {channel.topic for scan in self._scans for channel in scan.connections}
        if topic not in held:
            failed = f'the files have no {topic}, but {", ".join(sorted(held)) or "no topic"}'
        for scan in self._scans:
            try:
                for _, time_ns, cdr in scan.messages(_of(scan.connections, topic, kind)):
                    passed += 1
                    if passed > seen:
                        yield time_ns, cdr
            except Exception as error:
                failed = one_line(error)
        if passed < count or not count or not self._counts:
            self.broken = '; '.join(filter(None, [self.damage, failed]))

    @property
    def damage(self) -> str:
        """Return the known damage of the files, '' if there is none."""
        return '; '.join([*self._lost, *(scan.broken for scan in self._scans if scan.broken)])

    def close(self) -> None:
        """Close the files."""
        self._close_reader()
        for scan in self._scans:
            scan.close()

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        with contextlib.suppress(Exception):     # of a damaged file
            if reader:
                reader.close()


def open_bag(path: Path) -> StoredBag:
    """Open a rosbag2 folder or a single file of one. Raise BagError."""
    if not path.exists():
        raise BagError(f'{path}: no such bag; {EXPECTED}')
    if path.is_dir():
        return _open_folder(path)
    if path.suffix not in SUFFIXES:
        raise BagError(f'{path}: not a rosbag2 bag; expected a folder, a .db3 or a .mcap file'
                       + (', which rosbags-convert makes of a ROS 1 bag' if path.suffix == '.bag' else ''))
    if problem := problem_of(path):
        raise BagError(f'{path}: {problem}')
    return StoredBag([path], _indexed(path, [path])[0], {}, [])


def _open_folder(path: Path) -> StoredBag:
    # not the companion files that a Mac puts beside them, ._NAME
    present = sorted((file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file()
                      and not file.name.startswith('.')), key=_number)
    metadata, problem = _metadata(path)
    names = _named_files(metadata)
    files = [path / name for name in names if (path / name).is_file()]
    if metadata and not files:
        problem = f'its files are missing: metadata.yaml names {", ".join(names) or "none"}'
    if not files:   # no metadata, or the files were renamed
        if not present:
            packed = next((file.name for file in path.iterdir() if file.suffix == '.zstd'), None)
            raise BagError(f'{path}: {problem}, and no data; ' + (
                f'{packed} can be read once it is unpacked (zstd -d)' if packed else EXPECTED))
        return StoredBag(present, None, _counts(metadata), _gaps(path, present, problem))
    counts = _counts(metadata)
    reader, reason = _indexed(path, files) if counts else (None, '')
    compressed = str(metadata.get('compression_mode') or 'none').lower()
    if reader is None and compressed != 'none' and (compressed == 'message' or not all(map(storage_of, files))):
        raise BagError(f'{path}: cannot be read: {reason}')     # scans know nothing of rosbag2's own compression
    return StoredBag(files, reader, counts, [f'{name} is missing' for name in names if path / name not in files])


def _named_files(metadata: Mapping) -> list[str]:
    """Return the names of a bag's files. Its folder may have been moved, from Windows too."""
    named = metadata.get('relative_file_paths') or ()
    return [PureWindowsPath(str(name)).name for name in ([named] if isinstance(named, str) else named)
            ] if isinstance(named, str | Sequence) else []


def _counts(metadata: Mapping) -> dict[str, int]:
    """Return the messages by topic; {} if the metadata, which others write too, does not tell."""
    try:
        counts = {str(topic['topic_metadata']['name']): int(topic['message_count'])
                  for topic in metadata['topics_with_message_count']}
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return {}
    return counts if min(counts.values(), default=0) >= 0 else {}


def _metadata(path: Path) -> tuple[Mapping, str]:
    """Return what metadata.yaml says, or {} and what is wrong with it."""
    file = path / 'metadata.yaml'
    if not file.is_file():
        return {}, 'no metadata.yaml in this folder'
    try:
        content = yaml.safe_load(file.read_text(encoding='utf-8-sig'))['rosbag2_bagfile_information']
        return (content, '') if isinstance(content, Mapping) else ({}, 'metadata.yaml says nothing')
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return {}, 'metadata.yaml cannot be read'


def _gaps(path: Path, files: Sequence[Path], problem: str) -> list[str]:
    """Return which parts of a split recording are missing. Raise BagError if the files are not of one recording."""
    if len(files) > 1 and (len({_recording(file) for file in files}) > 1 or _number(files[0])[0] < 0):
        raise BagError(f'{path}: {problem}, and {len(files)} files that are not parts of one recording '
                       f'({", ".join(file.name for file in files)}): give them one by one, or run ros2 bag reindex')
    numbers = {_number(file)[0] for file in files} if len(files) > 1 else set()
    return [f'file {number} of the recording is missing' for number in range(max(numbers, default=0))
            if number not in numbers]


def _recording(file: Path) -> tuple[str, str]:
    return re.sub(r'_\d+$', '', file.stem), file.suffix


def _number(file: Path) -> tuple[int, str]:
    """Return the number that rosbag2 gives a part of a split recording, -1 for none; 10 comes after 9."""
    found = re.search(r'_(\d+)$', file.stem)
    return (int(found[1]) if found else -1), file.name


def _indexed(path: Path, files: Sequence[Path]) -> tuple[Reader | None, str]:
    """Return a reader by index and metadata; None and the reason if those do not serve."""
    if any(file.suffix == '.db3' and has_journal(file) for file in files):
        return None, 'a journal lies beside the database'
    if any(map(has_views, files)):
        return None, 'the database has views'
    try:
        reader = Reader(path)
        reader.open()
        return reader, ''
    except Exception as error:      # whatever rosbags raises
        return None, one_line(error)


def _scan(file: Path) -> Scan:
    storage = storage_of(file)
    if storage == 'sqlite3' and has_views(file):
        raise BagError(f'{file}: cannot be read: the database has views, which no recorder makes')
    try:
        if storage:
            return (McapScan if storage == 'mcap' else SqliteScan)(file)
    except Exception as error:
        reason = one_line(error).removesuffix('.')
        raise BagError(f'{file}: cannot be read: {reason}; it may be cut off or damaged') from error
    with file.open('rb') as start:
        known = what_it_is(start.read(512))
    raise BagError(f'{file}: cannot be read: ' + (f'it is {known}' if known else 'neither MCAP nor sqlite3 data'))


def _of(connections: Sequence[Connection | Channel], topic: str, kind: str) -> list:
    return [c for c in connections if (c.topic, c.msgtype) == (topic, kind)]
