"""Recordings of several files: parts that miss, came late, are packed or named twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
from bag_files import IMAGES, STORAGES, change_metadata, good_bags, read
from tiny_model import picture

from tar_vis_ros.bags.compression import zstd
from tar_vis_ros.bags.maker import BagOptions, write_images


@pytest.fixture(scope='module')
def good(tmp_path_factory) -> Path:
    return good_bags(tmp_path_factory.mktemp('good'))


def split(folder: Path, storage: str, parts: int, each: int = 2, name: str = 'street') -> Path:
    """The parts of one recording without their metadata."""
    folder.mkdir()
    for part in range(parts):
        options = BagOptions(storage=storage, start_s=1 + part * each / 10)
        write_images(folder / 'part', [picture(seed) for seed in range(each)], options)
        file, = (folder / 'part').glob('part.*')
        file.rename(folder / f'{name}_{part}{file.suffix}')
        shutil.rmtree(folder / 'part')
    return folder


@pytest.mark.parametrize('storage', STORAGES)
def test_the_parts_of_a_recording_without_metadata_are_one_bag(tmp_path, storage):
    bag = split(tmp_path / 'bag', storage, 12, each=1)     # 10 comes after 9
    assert read(bag) == (list(range(12)), '')
    next(bag.glob('*_7.*')).unlink()
    stamps, said = read(bag)
    assert len(stamps) == 11 and 'file 7 of the recording is missing' in said
    last = next(bag.glob('*_11.*'))
    last.write_bytes(last.read_bytes()[:last.stat().st_size // 4])
    stamps, said = read(bag)
    assert len(stamps) == 10 and 'street_11' in said and 'file 7' in said


def test_files_of_several_recordings_are_not_one(tmp_path):
    bag = split(tmp_path / 'bag', 'mcap', 2)
    (bag / 'street_1.mcap').rename(bag / 'park_0.mcap')
    stamps, said = read(bag)
    assert not stamps and 'not parts of one recording (park_0.mcap, street_0.mcap): give them one by one' in said


def test_a_part_that_metadata_names_and_nobody_has(good, tmp_path):
    bag = shutil.copytree(good / 'mcap', tmp_path / 'bag')
    change_metadata(bag, lambda info: (info['relative_file_paths'].append('bag_1.mcap'),
                                       info['topics_with_message_count'][0].update(message_count=2 * IMAGES)))
    stamps, said = read(bag)
    assert stamps == list(range(IMAGES)) and 'bag_1.mcap is missing' in said and '9 of 18 images' in said


def test_a_recorder_that_packs_its_files_leaves_the_last_one_open(tmp_path):
    bag = split(tmp_path / 'street', 'mcap', 4)
    for part in bag.glob('*_[012].mcap'):
        part.with_name(f'{part.name}.zstd').write_bytes(zstd.compress(part.read_bytes()))
        if not part.name.endswith('_2.mcap'):       # somebody unpacked it and kept both
            part.unlink()
    assert read(bag) == (list(range(8)), '')


def test_of_a_recording_only_the_last_parts_are_there(tmp_path):
    bag = split(tmp_path / 'street', 'sqlite3', 12, each=1)
    for part in bag.glob('*.db3'):
        if not part.name.endswith('_11.db3'):
            part.unlink()
    stamps, said = read(bag)
    assert stamps == [11] and 'file 0 of the recording is missing' in said and 'so are 6 others' in said
    assert read(bag.rename(tmp_path / 'other_name')) == ([11], ''), 'a file of any name'


@pytest.mark.parametrize('storage', STORAGES)
def test_parts_that_came_after_the_metadata_are_read(good, tmp_path, storage):
    bag = split(tmp_path / 'street', storage, 3)
    shutil.copy(good / storage / 'metadata.yaml', bag)
    parts = sorted(part.name for part in bag.iterdir() if part.suffix != '.yaml')
    change_metadata(bag, lambda info: (info.update(relative_file_paths=parts[:2]),
                                       info['topics_with_message_count'][0].update(message_count=4)))
    assert read(bag) == (list(range(6)), '')


@pytest.mark.parametrize('storage', STORAGES)
def test_a_file_that_metadata_names_twice_is_read_once(good, tmp_path, storage):
    bag = shutil.copytree(good / storage, tmp_path / 'bag')
    change_metadata(bag, lambda info: info.update(relative_file_paths=2 * info['relative_file_paths']))
    assert read(bag) == (list(range(IMAGES)), '')
