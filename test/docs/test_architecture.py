"""The page on the architecture names every room, and no file that is not there."""

import re
import sys
from pathlib import Path

import pytest
from tiny_model import picture, tiny_segmenter

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


def test_a_step_goes_through_the_stations_in_their_order():
    """Each station's own call, as the page names it, comes once."""
    steps = re.findall(r'^\| (\d+) \| `(tar_vis_core/[\w/.]+)` \| .*?`(\w+)`', PAGE, re.M)
    stations = {(file, name) for _, file, name in steps}
    segmenter, seen = tiny_segmenter(), []

    def note(frame, event, _):
        place = Path(frame.f_code.co_filename)
        if event == 'call' and place.is_relative_to(ROOT):
            seen.append((str(place.relative_to(ROOT)), frame.f_code.co_name))
    state = segmenter.new_state()
    for seed in range(2):       # the second frame has one before it
        seen.clear()
        sys.setprofile(note)
        try:
            segmenter.step(picture(seed), state)
        finally:
            sys.setprofile(None)
    assert [call for call in seen if call in stations] == [(file, name) for _, file, name in steps]
    assert len(steps) == 7
