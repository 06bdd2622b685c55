"""Open a bag: by its index and metadata, or by looking into its files if those are missing or wrong."""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from tar_vis_core.errors import DataError, TarVisError, one_line
from tar_vis_core.io.input_files import problem_of, what_it_is
from tar_vis_core.io.yaml_files import parse_yaml
from tar_vis_ros.bags.compression import plain_path, unpack_file
from tar_vis_ros.bags.scan import Channel, McapScan, Scan, SqliteScan, has_journal, has_views, storage_of

SUFFIXES = ('.db3', '.mcap')
SHOWN_FILES = 5
EXPECTED = 'expected a rosbag2 folder, a .db3 or a .mcap file'


class BagError(TarVisError):
    """A bag cannot be read, or does not hold the requested topic; the message is one line."""


class StoredBag:
    """The messages of a bag: by its index as long as that serves, then by a scan of its files one by one."""

    def __init__(self, files: Sequence[Path], reader: Reader | None, counts: Mapping[str, int], lost: Sequence[str]
                 ) -> None:
        """Take the messages by topic as the metadata ``counts`` them, and ``lost``, the files that are missing."""
        self.files, self.broken = list(files), ''   # the latter: why not all could be read
        self._reader, self._counts, self._lost = reader, counts, lost
        self._scans: list[Scan] = []
        self._unpacked = contextlib.ExitStack()
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
                self._scans.append(_scan(file, self._unpacked))
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
        self._unpacked.close()

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
    if plain_path(path).suffix not in SUFFIXES:
        raise BagError(f'{path}: not a rosbag2 bag; expected a folder, a .db3 or a .mcap file'
                       + (', which rosbags-convert makes of a ROS 1 bag' if path.suffix == '.bag' else ''))
    if problem := problem_of(path):
        raise BagError(f'{path}: {problem}')
    return StoredBag([path], _indexed(path, [path]), {}, [])


def _open_folder(path: Path) -> StoredBag:
    # not the companion files that a Mac puts beside them, ._NAME, nor a packed file that was unpacked
    present = sorted((file for file in path.iterdir() if plain_path(file).suffix in SUFFIXES and file.is_file()
                      and not file.name.startswith('.')
                      and (plain_path(file) == file or not plain_path(file).exists())),
                     key=_number)
    metadata, problem = _metadata(path)
    names = _named_files(metadata)
    by_name = {plain_path(file).name: file for file in present}
    plain = dict.fromkeys(plain_path(Path(name)).name for name in names)
    files = [by_name[name] for name in plain if name in by_name]
    if metadata and not files:
        problem = f'its files are missing: metadata.yaml names {", ".join(names) or "none"}'
    if not files:   # no metadata, or the files were renamed
        if not present:
            raise BagError(f'{path}: {problem}, and no data; {EXPECTED}')
        return StoredBag(present, None, _counts(metadata), _gaps(path, present, problem))
    # a recorder that was killed after it wrote metadata left further parts
    last = _number(files[-1])[0]
    files += [file for file in present if _recording(file) == _recording(files[-1]) and _number(file)[0] > last >= 0]
    counts, mode = _counts(metadata), str(metadata.get('compression_mode') or 'none').lower()
    # rosbags unpacks rosbag2's own compression without a limit, and reads a file as often as it is named
    reader = _indexed(path, files) if counts and mode in ('none', 'storage') and files == [
        path / name for name in names] else None
    return StoredBag(files, reader, counts, [f'{name} is missing' for name in plain if name not in by_name])


def _named_files(metadata: Mapping) -> list[str]:
    """Return the names of a bag's files. Its folder may have been moved, from Windows too."""
    named = metadata.get('relative_file_paths') or ()
    return [PureWindowsPath(str(name)).name for name in ([named] if isinstance(named, str) else named)
            ] if isinstance(named, str | Sequence) else []


def _counts(metadata: Mapping) -> dict[str, int]:
    """Return the messages by topic; {} if the metadata does not have them."""
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
        content = parse_yaml(file.read_text(encoding='utf-8-sig'))['rosbag2_bagfile_information']
        return (content, '') if isinstance(content, Mapping) else ({}, 'metadata.yaml says nothing')
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return {}, 'metadata.yaml cannot be read'


def _gaps(path: Path, files: Sequence[Path], problem: str) -> list[str]:
    """Return which parts of a split recording are missing. Raise BagError if the files are not of one recording."""
    if len(files) > 1 and (len({_recording(file) for file in files}) > 1 or _number(files[0])[0] < 0):
        raise BagError(f'{path}: {problem}, and {len(files)} files that are not parts of one recording '
                       f'({", ".join(file.name for file in files)}): give them one by one, or run ros2 bag reindex')
    # one file alone may have any name; rosbag2 names it after the folder
    numbers = {_number(file)[0] for file in files} if len(files) > 1 or _recording(files[0])[0] == path.name else {-1}
    missing = max(numbers) + 1 - len(numbers) if min(numbers) >= 0 else 0
    first = itertools.islice((n for n in itertools.count() if n not in numbers), min(missing, SHOWN_FILES))
    return [f'file {number} of the recording is missing' for number in first] + [
        f'so are {missing - SHOWN_FILES} others'] * (missing > SHOWN_FILES)


def _recording(file: Path) -> tuple[str, str]:
    return re.sub(r'_\d+$', '', plain_path(file).stem), plain_path(file).suffix


def _number(file: Path) -> tuple[int, str]:
    """Return the number that rosbag2 gives a part of a split recording, -1 for none; 10 comes after 9."""
    found = re.search(r'_(\d+)$', plain_path(file).stem)
    return (int(found[1]) if found else -1), file.name


def _indexed(path: Path, files: Sequence[Path]) -> Reader | None:
    """Return a reader by index and metadata; None if those do not serve."""
    if any(file.suffix == '.db3' and has_journal(file) for file in files) or any(map(has_views, files)):
        return None
    try:
        reader = Reader(path)
        reader.open()
        return reader
    except Exception:       # whatever rosbags raises
        return None


def _scan(file: Path, unpacked: contextlib.ExitStack) -> Scan:
    try:
        data = file if plain_path(file) == file else unpack_file(
            file, Path(unpacked.enter_context(tempfile.TemporaryDirectory())))
        storage = storage_of(data)
        if storage == 'sqlite3' and has_views(data):
            raise ValueError('the database has views, which no recorder makes')
        if storage:
            return (McapScan if storage == 'mcap' else SqliteScan)(data)
    except Exception as error:
        reason = one_line(error).removesuffix('.')
        raise BagError(f'{file}: cannot be read: {reason}; it may be cut off or damaged') from error
    with data.open('rb') as start:
        known = what_it_is(start.read(512))
    raise BagError(f'{file}: cannot be read: ' + (f'it is {known}' if known else 'neither MCAP nor sqlite3 data'))


def _of(connections: Sequence[Connection | Channel], topic: str, kind: str) -> list:
    return [c for c in connections if (c.topic, c.msgtype) == (topic, kind)]
