"""Damaged bags, of killed recorders, full disks and converters: what is there is read, what is not is told."""

from __future__ import annotations

import itertools
import os
import re
import resource
import shutil
import sqlite3
import struct
from array import array
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy')
from bag_files import IMAGES, STORAGES, change_metadata, good_bags, read
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Writer
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String
from tiny_model import picture

from tar_vis_ros.bags import stored
from tar_vis_ros.bags.compression import unpack_file, zstd
from tar_vis_ros.bags.reader import BagError, ImageBag
from tar_vis_ros.bags.scan import CHUNK, DATA_END, RECORD, McapScan
from tar_vis_ros.bags.writer import STORAGES as STORAGE_PLUGINS
from tar_vis_ros.bags.writer import BagWriter, known_types
from tar_vis_ros.conversions.images import array_to_image

OWN_MODES = CompressionMode.FILE, CompressionMode.MESSAGE


@pytest.fixture(scope='module')
def good(tmp_path_factory) -> Path:
    return good_bags(tmp_path_factory.mktemp('good'))


def compressed(path: Path, storage: str, mode: CompressionMode | None) -> Path:
    """A bag of rosbag2's own compression, or of MCAP's chunks (STORAGE)."""
    writer = Writer(path, version=9, storage_plugin=STORAGE_PLUGINS[storage])
    if mode:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer as bag:
        connection = bag.add_connection('/image', 'sensor_msgs/msg/Image', typestore=known_types())
        for number in range(IMAGES):
            header = Header()
            header.stamp.sec, header.stamp.nanosec = 1, number * 10**8
            bag.write(connection, 10**9 + number * 10**8,
                      serialize_message(array_to_image(picture(number, 96, 128), 'rgb8', header)))
    return path


def packed(path: Path, mode: CompressionMode | None) -> Path:
    """An MCAP file."""
    return next(compressed(path, 'mcap', mode).glob('*.mcap'))


@pytest.mark.parametrize('mode', [None, CompressionMode.STORAGE, CompressionMode.MESSAGE])
def test_an_mcap_file_may_break_off_anywhere(tmp_path, mode):
    whole = packed(tmp_path / 'whole', mode).read_bytes()
    counts, cut = [], tmp_path / 'cut.mcap'
    for share in np.linspace(0.02, 1, 40):
        cut.write_bytes(whole[:int(share * len(whole)) - 1])
        stamps, said = read(cut)
        assert stamps == list(range(len(stamps)))
        assert 'cut.mcap' in said or len(stamps) == IMAGES, said
        if stamps and len(stamps) < IMAGES:
            assert re.search(r'breaks off at byte \d+ of \d+', said) and f'{len(stamps)} images are there' in said
        counts.append(len(stamps))
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == IMAGES
    assert len(set(counts)) > IMAGES / 2, 'image by image, not chunk by chunk'


def test_zeros_in_place_of_the_end_are_a_break(tmp_path):
    whole = packed(tmp_path / 'whole', None).read_bytes()
    half = tmp_path / 'half.mcap'
    half.write_bytes(whole[:len(whole) // 2] + bytes(len(whole) // 2))
    stamps, said = read(half)
    assert 0 < len(stamps) < IMAGES and 'breaks off' in said


def test_an_mcap_file_without_an_index_of_its_messages_is_read(tmp_path):
    """Summary and statistics stay; the records that find messages go, as converters leave them out."""
    data = packed(tmp_path / 'whole', None).read_bytes()
    kept, offset = bytearray(data[:8]), 8
    while True:
        kind, length = RECORD.unpack_from(data, offset)
        if kind == DATA_END:
            break
        if kind != 0x07:        # message index
            kept += data[offset:offset + RECORD.size + length]
        offset += RECORD.size + length
    bare = tmp_path / 'bare.mcap'
    bare.write_bytes(kept + data[offset:offset + RECORD.size + length] +
                     RECORD.pack(0x02, 20) + struct.pack('<QQI', 0, 0, 0) + data[:8])
    assert read(bare) == (list(range(IMAGES)), '')


def test_a_chunk_whose_checksum_is_wrong_ends_what_can_be_trusted(tmp_path):
    data = bytearray(packed(tmp_path / 'whole', None).read_bytes())
    offsets, offset = [], 8
    while True:
        kind, length = RECORD.unpack_from(data, offset)
        if kind == DATA_END:
            break
        offsets += [offset] if kind == CHUNK else []
        offset += RECORD.size + length
    data[offsets[-1] + 500] ^= 0xff
    path = tmp_path / 'changed.mcap'
    path.write_bytes(data)
    stamps, said = read(path)
    assert len(stamps) < IMAGES and f'{IMAGES - len(stamps)} of {IMAGES} images are missing' in said


@pytest.mark.parametrize('storage', STORAGES)
def test_metadata_that_counts_more_than_there_is(good, tmp_path, storage):
    bag = shutil.copytree(good / storage, tmp_path / 'bag')
    change_metadata(bag, lambda info: info['topics_with_message_count'][0].update(message_count=70))
    stamps, said = read(bag)
    assert stamps == list(range(IMAGES)) and f'{70 - IMAGES} of 70 images are missing' in said


@pytest.mark.parametrize('storage', STORAGES)
@pytest.mark.parametrize('change', [
    {'storage_identifier': ''}, {'storage_identifier': 'my_plugin'}, {'version': 99}, {'starting_time': None},
    {'topics_with_message_count': []}, {'topics_with_message_count': None},
])
def test_metadata_that_is_wrong_hides_nothing(good, tmp_path, storage, change):
    bag = shutil.copytree(good / storage, tmp_path / 'bag')
    change_metadata(bag, lambda info: info.update(change))
    assert read(bag) == (list(range(IMAGES)), '')


def test_what_a_killed_recorder_left_in_its_journal_is_read(good, tmp_path):
    source, = (good / 'sqlite3').glob('*.db3')
    running, killed = tmp_path / 'running.db3', tmp_path / 'killed.db3'
    shutil.copy(source, running)
    recorder = sqlite3.connect(running)
    recorder.execute('PRAGMA journal_mode=WAL')
    recorder.execute('INSERT INTO messages SELECT id + 100, topic_id, timestamp + 900000000, data FROM messages '
                     'ORDER BY id DESC LIMIT 1')
    recorder.commit()
    for ending in ('', '-wal'):     # as they lie there at this moment
        shutil.copy(f'{running}{ending}', f'{killed}{ending}')
    recorder.close()
    stamps, said = read(killed)
    assert (stamps, said) == ([*range(IMAGES), IMAGES - 1], '')


def test_a_database_that_is_cut_gives_what_comes_before(good, tmp_path):
    source, = (good / 'sqlite3').glob('*.db3')
    data = source.read_bytes()
    for missing in (4096, len(data) // 2, len(data) - 40000):    # what points to the messages comes last
        (tmp_path / 'cut.db3').write_bytes(data[:-missing])
        stamps, said = read(tmp_path / 'cut.db3')
        assert stamps == list(range(len(stamps))) and f'cut.db3 is cut off, {missing} bytes are missing' in said
        assert len(stamps) < IMAGES and bool(stamps) == (missing == 4096)


def test_a_message_too_short_for_a_header_is_missing(tmp_path):
    with BagWriter(tmp_path / 'bag', 'mcap', {'/image': Image}) as bag:
        bag.write('/image', 1, serialize_message(Image()))
        bag.write('/image', 2, b'\0\1\0')
    stamps, said = read(tmp_path / 'bag')
    assert len(stamps) == 1 and '1 of 2 images are missing' in said


def test_topics_without_messages_are_no_choice(tmp_path):
    topics = {'/front/image': Image, '/rear/image': Image, '/chatter': String}
    with BagWriter(tmp_path / 'bag', 'sqlite3', topics) as bag:
        bag.write('/rear/image', 10**9, serialize_message(Image(header=Header())))
    with ImageBag(tmp_path / 'bag') as bag:
        assert bag.topic == '/rear/image'
    with pytest.raises(BagError, match='no message on /front/image'):
        ImageBag(tmp_path / 'bag', '/front/image')


@pytest.mark.parametrize('storage', STORAGES)
@pytest.mark.parametrize('names', [
    ['C:\\bags\\{}'], '{}', ['of_another_time_{}'], None, 5, ['../../etc/passwd'], [None, {}]])
def test_files_are_found_whatever_the_metadata_calls_them(good, tmp_path, storage, names):
    bag = shutil.copytree(good / storage, tmp_path / 'bag')
    file = next(path.name for path in bag.iterdir() if path.suffix != '.yaml')
    given = [n.format(file) if isinstance(n, str) else n for n in names] if isinstance(names, list) else \
        names.format(file) if isinstance(names, str) else names
    change_metadata(bag, lambda info: info.update(relative_file_paths=given))
    (bag / f'._{file}').write_bytes(b'\0\5\x16\7')     # of a Mac
    assert read(bag) == ([*range(IMAGES)], '')


@pytest.mark.parametrize('storage', STORAGES)
@pytest.mark.parametrize('count', [None, 'many', -3, float('inf'), float('nan'), [], {}])
def test_a_count_that_is_none_does_not_matter(good, tmp_path, storage, count):
    bag = shutil.copytree(good / storage, tmp_path / 'bag')
    change_metadata(bag, lambda info: info['topics_with_message_count'][0].update(message_count=count))
    assert read(bag) == ([*range(IMAGES)], '')


@pytest.mark.parametrize('storage', STORAGES)
def test_a_compression_that_only_the_metadata_knows_of_is_none(good, tmp_path, storage):
    bag = shutil.copytree(good / storage, tmp_path / 'bag')
    change_metadata(bag, lambda info: info.update(compression_format='zstd', compression_mode='FILE'))
    assert read(bag) == ([*range(IMAGES)], '')


@pytest.mark.parametrize('storage', STORAGES)
def test_a_topic_that_only_the_metadata_has_is_told(good, tmp_path, storage):
    bag = shutil.copytree(good / storage, tmp_path / 'bag')
    change_metadata(bag, lambda info: info['topics_with_message_count'][0]['topic_metadata'].update(name='/other'))
    stamps, said = read(bag)
    assert not stamps and 'the files have no /other, but /camera/image_raw' in said


@pytest.mark.parametrize('name', ['bag.mcap', 'bag.db3'])
def test_a_pipe_in_place_of_a_bag_is_told_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert 'is a pipe' in read(tmp_path / name)[1]
    assert 'no data' in read(tmp_path)[1]


@pytest.mark.parametrize('metadata', [True, False])
@pytest.mark.parametrize('change', [
    "UPDATE messages SET data = 'text' WHERE id = 3", "UPDATE messages SET data = x'' WHERE id = 3",
    "UPDATE messages SET timestamp = 'noon' WHERE id = 3"])
def test_a_row_that_is_no_message_is_missing_and_the_others_are_read(good, tmp_path, metadata, change):
    bag = shutil.copytree(good / 'sqlite3', tmp_path / 'bag')
    if not metadata:
        (bag / 'metadata.yaml').unlink()
    database = sqlite3.connect(next(bag.glob('*.db3')))
    database.execute(change)
    database.commit()
    database.close()
    stamps, said = read(bag)
    assert len(stamps) == IMAGES - 1 and f'1 of {IMAGES} images are missing' in said


@pytest.mark.parametrize('metadata', [True, False])
def test_a_database_whose_query_has_no_end_is_refused(good, tmp_path, metadata):
    bag = shutil.copytree(good / 'sqlite3', tmp_path / 'bag')
    if not metadata:
        (bag / 'metadata.yaml').unlink()
    database = sqlite3.connect(next(bag.glob('*.db3')))
    database.executescript("""ALTER TABLE messages RENAME TO kept;
        CREATE VIEW messages AS WITH RECURSIVE endless(id, topic_id, timestamp, data) AS
            (SELECT 1, 1, 1, x'00' UNION ALL SELECT id + 1, 1, 1, x'00' FROM endless) SELECT * FROM endless""")
    database.close()
    assert 'views' in read(bag)[1]


@pytest.mark.parametrize('metadata', [True, False])
def test_a_damaged_word_inside_a_database_is_one_line(good, tmp_path, metadata):
    bag = shutil.copytree(good / 'sqlite3', tmp_path / 'bag')
    if not metadata:
        (bag / 'metadata.yaml').unlink()
    file, = bag.glob('*.db3')
    data = file.read_bytes()
    assert data.count(b'tablemessagesmessages') == 1
    file.write_bytes(data.replace(b'tablemessages', b'tabl\xff\xff\xff\xffsages'))     # sqlite tells it as it is
    assert 'cannot be read: ' in read(bag)[1]


@pytest.mark.parametrize('metadata', ['all', 'says none', 'none'])
@pytest.mark.parametrize('mode', OWN_MODES)
@pytest.mark.parametrize('storage', STORAGES)
def test_compression_of_the_recorder_needs_no_metadata(tmp_path, storage, mode, metadata):
    bag = compressed(tmp_path / 'bag', storage, mode)
    if metadata == 'none':      # the recorder was killed
        (bag / 'metadata.yaml').unlink()
    elif metadata == 'says none':
        change_metadata(bag, lambda info: info.update(compression_mode='', compression_format=''))
    file = next(path for path in bag.iterdir() if path.suffix != '.yaml')
    assert file.name.endswith('.zstd') == (mode == CompressionMode.FILE)
    assert read(bag) == read(file) == (list(range(IMAGES)), '')


def test_a_packed_file_may_break_off_anywhere(tmp_path):
    bag = compressed(tmp_path / 'bag', 'mcap', CompressionMode.FILE)
    file, = bag.glob('*.zstd')
    whole, counts = file.read_bytes(), []
    for share in np.linspace(0.02, 0.98, 20):
        file.write_bytes(whole[:int(share * len(whole))])
        stamps, said = read(bag)
        assert stamps == list(range(len(stamps))) and said
        counts.append(len(stamps))
    assert counts == sorted(counts) and len(set(counts)) > IMAGES / 2


def test_metadata_whose_aliases_stand_for_gigabytes_is_none(good, tmp_path):
    bag = shutil.copytree(good / 'mcap', tmp_path / 'bag')
    names = 'abcdefghij'
    lines = [f'a: &a [{", ".join("x" * 9)}]', *(f'{name}: &{name} [{", ".join([f"*{before}"] * 9)}]'
                                                for before, name in itertools.pairwise(names))]
    (bag / 'metadata.yaml').write_text('\n'.join([
        *lines, 'rosbag2_bagfile_information: {relative_file_paths: *j, topics_with_message_count: *j}']))
    assert read(bag) == (list(range(IMAGES)), '')


@pytest.mark.parametrize('kind', [Image, CompressedImage])
def test_a_message_that_breaks_off_is_missing_wherever_it_ends(tmp_path, kind):
    header, data = Header(frame_id='front'), array('B', bytes(36))
    whole = serialize_message(Image(header=header, height=3, width=4, encoding='rgb8', step=12, data=data)
                              if kind is Image else CompressedImage(header=header, format='jpeg', data=data))
    with BagWriter(tmp_path / 'bag', 'mcap', {'/image': kind}) as bag:
        bag.write('/image', 1, whole)
        for length in range(len(whole)):
            bag.write('/image', 2, whole[:length])
        bag.write('/image', 3, b'\xff' + whole[1:])     # no CDR
        bag.write('/image', 4, whole[:12] + b'\xff\xff\xff\x7f' + whole[16:])     # the length of a text
    stamps, said = read(tmp_path / 'bag')
    assert len(stamps) == 1 and f'{len(whole) + 2} of {len(whole) + 3} images are missing' in said


def test_what_inflates_to_gigabytes_is_not_unpacked(tmp_path, monkeypatch):
    machine = zstd.ZstdCompressor()
    bomb = b''.join([machine.compress(bytes(2**24)) for _ in range(64)]) + machine.flush()
    with BagWriter(tmp_path / 'bag', 'mcap', {'/image': Image}) as bag:
        bag.write('/image', 1, serialize_message(Image()))
        bag.write('/image', 2, bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stamps, said = read(tmp_path / 'bag')
    assert len(stamps) == 1 and '1 of 2 images are missing' in said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800_000, 'KiB, at most MAX_MESSAGE'
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: SimpleNamespace(free=10**7))
    whole = packed(tmp_path / 'whole', None).read_bytes()
    (tmp_path / 'full.mcap.zstd').write_bytes(zstd.compress(whole[:len(whole) // 2]) + bomb)
    seen = []
    monkeypatch.setattr(stored, 'unpack_file', lambda *given: seen.append(unpack_file(*given)) or seen[-1])
    monkeypatch.setattr(McapScan, 'close', lambda self: seen.append(seen[0].stat().st_size))
    stamps, said = read(tmp_path / 'full.mcap.zstd')
    assert 0 < len(stamps) < IMAGES and 'breaks off' in said and seen[-1] < 6 * 10**6
    assert not seen[0].exists(), 'nothing stays behind'
