"""The page on the architecture names every room, and no file that is not there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs/architecture.md').read_text()


@pytest.mark.parametrize('package', ['tar_vis_core', 'tar_vis_ros'])
def test_every_room_has_its_line(package):
    table = PAGE.partition(f'## The rooms of `{package}`')[2].partition('\n## ')[0]
    told = set(re.findall(r'^\| `([\w/]+)` \|', table, re.M))
    there = {str(path.parent.relative_to(ROOT / package)) for path in (ROOT / package).glob('**/__init__.py')}
    assert told == there - {'.', 'msg'}


def test_the_stations_of_a_frame_are_files():
    stations = re.findall(r'^\| \d* ?\| `([\w/.]+)` \|', PAGE, re.M)
    assert len(stations) >= 12 and len(set(stations)) == len(stations)
    assert all((ROOT / name).is_file() for name in stations)


def test_the_picture_has_the_stations_of_the_table():
    picture = (ROOT / 'docs/images/architecture.svg').read_text()
    numbers = re.findall(r'class="t">(\d+) ', picture)
    assert sorted(map(int, numbers)) == [int(n) for n in re.findall(r'^\| (\d+) \|', PAGE, re.M)]


def test_the_files_of_the_top_level_are_all_named():
    named = set(re.findall(r'`(\w+)`', PAGE.partition("The files at the top level")[2].partition('\n\n')[0]))
    assert named == {path.stem for path in (ROOT / 'tar_vis_core').glob('[a-z]*.py')}
