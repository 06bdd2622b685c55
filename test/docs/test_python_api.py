"""The programs of the page on the Python API run in their order, and its tables name what the code has."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('skimage')

from building import ROOT
from node_process import PATIENCE_S, nano_weights

from tar_vis_core.instances import FrameResult, Instance, StageTimes
from tar_vis_core.segmenter import VideoSegmenter
from tar_vis_ros.client import Frame, InstanceClient

PAGE = (ROOT / 'docs/reference/python_api.md').read_text()


def names_below(heading: str) -> set[str]:
    """Return the names in the first column of the table below a heading."""
    table = re.search(r'(\|.*\n)+', PAGE.partition(heading)[2])[0]
    cells = [line.split('|')[1] for line in table.splitlines()]
    return {re.split(r'\W', name)[0] for cell in cells for name in re.findall(r'`([^`]+)`', cell)}


def has(kind: type) -> set[str]:
    """Return the fields and public methods of a class."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return {field.name for field in fields} | {
        name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith('_')}


def test_the_programs_run_in_their_order(tmp_path):
    text = '\n'.join(re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL))
    if weights := nano_weights(tmp_path):
        text = text.replace('VideoSegmenter()', f'VideoSegmenter(weights={str(weights)!r})')
    (tmp_path / 'page.py').write_text(text)
    done = subprocess.run([sys.executable, 'page.py'], cwd=tmp_path, capture_output=True, text=True,
                          timeout=3 * PATIENCE_S)
    assert done.returncode == 0, done.stderr
    promised = re.findall(r'print\((?:error|result\.track_epoch.*)\) +# (.*)', text)
    assert len(promised) == 2
    assert set(promised) <= set(done.stdout.splitlines()), done.stdout
    assert 'False' not in done.stdout, 'areas are those of the masks'
    assert (tmp_path / 'overlay.png').stat().st_size > 0


def test_the_tables_name_every_field_and_method():
    assert names_below('## `FrameResult`') == has(FrameResult)
    assert names_below('## `Instance`') == has(Instance)
    assert names_below('forget the ids\nfrom before.') - {'frame', 'frame_3d'} == has(InstanceClient)
    assert names_below('ends the subscriptions |\n') - {'Frame'} == has(Frame)
    times = re.search(r'^\| `times` \|(.*)', PAGE, re.MULTILINE)[1]
    assert set(re.findall(r'`(\w+)`', times)) == has(StageTimes)


@pytest.mark.parametrize('kind', [VideoSegmenter, InstanceClient])
def test_the_signatures_are_those_of_the_code(kind):
    printed = re.search(rf'{kind.__name__}\(([^)]*=[^)]*)\)', PAGE)[1]
    assert re.findall(r'(?:^|,)\s*(\w+)', printed) == list(inspect.signature(kind).parameters)


def test_the_table_of_members_is_whole():
    text = PAGE.partition('| member | does |')[2].partition('\n\n')[0]
    members = {re.split(r'\W', name)[0] for name in re.findall(r'`([^`]+)`', text)}
    assert members >= has(VideoSegmenter), members
