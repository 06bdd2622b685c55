"""Bags of nine small pictures, and what is read of one."""

from __future__ import annotations

from pathlib import Path

import yaml
from tiny_model import picture

from tar_vis_ros.bags.maker import BagOptions, write_images
from tar_vis_ros.bags.reader import BagError, ImageBag

IMAGES = 9
STORAGES = ('mcap', 'sqlite3')


def good_bags(folder: Path) -> Path:
    """Writes a bag of each storage into a folder."""
    for storage in STORAGES:
        write_images(folder / storage, [picture(seed, 96, 128) for seed in range(IMAGES)], BagOptions(storage=storage))
    return folder


def read(path: Path) -> tuple[list[int], str]:
    """Stamps in tenths of a second after the start, and what is said in the end."""
    stamps = []
    try:
        with ImageBag(path) as bag:
            for image in bag.images():
                assert image.index == len(stamps)
                stamps.append(round((image.stamp_ns - 10**9) / 10**8))
    except BagError as error:
        assert '\n' not in str(error) and str(path) in str(error)
        return stamps, str(error)
    return stamps, ''


def change_metadata(bag: Path, change) -> None:
    file = bag / 'metadata.yaml'
    content = yaml.safe_load(file.read_text())
    change(content['rosbag2_bagfile_information'])
    file.write_text(yaml.safe_dump(content))
