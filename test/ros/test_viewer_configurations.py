"""What RViz and Foxglove are told to show are topics, types and fields that the nodes have.

The programs themselves are not opened here; the formats are read as their own examples have them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

import pytest
import yaml
from building import ROOT

pytest.importorskip('rclpy')

from tar_vis_core.models.presets import PRESETS
from tar_vis_ros.msg import SkipDiagnostics

# what a display of RViz subscribes to
DISPLAYS = {'rviz_default_plugins/Image': 'Image', 'rviz_default_plugins/MarkerArray': 'MarkerArray'}
NODES = {'node/node.py': 'tar_vis/', 'depth/node.py': 'tar_vis/'}


def published() -> dict[str, str]:
    """Topics of the nodes under their default names, and their types, as the source has them."""
    found = {}
    for file, place in NODES.items():
        for call in ast.walk(ast.parse((ROOT / 'tar_vis_ros' / file).read_text())):
            if isinstance(call, ast.Call) and len(call.args) >= 2 and isinstance(call.args[1], ast.Constant) and \
                    getattr(call.func, 'id', getattr(call.func, 'attr', '')) in ('publisher', 'create_publisher'):
                topic = call.args[1].value
                found[topic if topic.startswith('/') else place + topic] = ast.unparse(call.args[0]).rpartition('.')[2]
    return found


def rviz() -> dict:
    return yaml.safe_load((ROOT / 'config/tar_vis.rviz').read_text())


def panels() -> dict[str, dict]:
    return json.loads((ROOT / 'config/foxglove_layout.json').read_text())['configById']


def leaves(layout: dict | str) -> Iterator[str]:
    """The panels of a layout, and a look at each of its forks."""
    if isinstance(layout, str):
        yield layout
        return
    assert set(layout) == {'direction', 'first', 'second', 'splitPercentage'}
    assert layout['direction'] in ('row', 'column') and 0 < layout['splitPercentage'] < 100
    yield from leaves(layout['first'])
    yield from leaves(layout['second'])


def test_the_source_tells_its_topics():
    assert published().items() >= {'tar_vis/overlay': 'Image', 'tar_vis/instances': 'InstanceMaskArray',
                                   'tar_vis/markers': 'MarkerArray', '/diagnostics': 'DiagnosticArray'}.items()


def test_rviz_shows_topics_of_the_nodes_with_a_reliability_that_they_offer():
    shown = [display for display in rviz()['Visualization Manager']['Displays'] if 'Topic' in display]
    assert {display['Topic']['Value']: DISPLAYS[display['Class']] for display in shown}.items() <= published().items()
    assert len(shown) == 2
    for display in shown:
        # reliable and volatile, as the nodes' publishers
        assert display['Topic']['Reliability Policy'] == 'Reliable'
        assert display['Topic']['Durability Policy'] == 'Volatile'
        assert display['Enabled'] is display['Value'] is True


def test_rviz_starts_in_the_frame_of_the_packages_own_camera():
    from tar_vis_ros.video_source import SourceSettings
    assert rviz()['Visualization Manager']['Global Options']['Fixed Frame'] == SourceSettings.frame_id


def test_every_foxglove_panel_has_its_place_and_every_place_its_panel():
    layout = json.loads((ROOT / 'config/foxglove_layout.json').read_text())
    assert sorted(leaves(layout['layout'])) == sorted(layout['configById'])


def test_foxglove_shows_topics_of_the_nodes():
    topics = published()
    for name, panel in panels().items():
        match name.partition('!')[0]:
            case 'Image':
                assert topics[panel['imageMode']['imageTopic'].lstrip('/')] == 'Image'
            case 'DiagnosticSummary':
                assert topics[panel['topicToRender']] == 'DiagnosticArray'
            case 'RawMessages':
                assert topics[panel['topicPath'].lstrip('/')] == 'InstanceMaskArray'
            case 'Plot' | 'StateTransitions':
                for series in panel['paths']:
                    check_path(series['value'], topics)
            case kind:
                raise AssertionError(f'a panel of kind {kind} is not looked at')


def check_path(path: str, topics: dict[str, str]) -> None:
    """A message path leads to one number or truth value of SkipDiagnostics."""
    topic, _, field = path.partition('.')
    assert topics[topic.lstrip('/')] == 'SkipDiagnostics'
    name, index = re.fullmatch(r'(\w+)(?:\[(\d+)\])?', field).groups()
    kind = SkipDiagnostics.get_fields_and_field_types()[name]
    if index is None:
        assert kind in ('float', 'uint32', 'boolean')
    else:
        assert kind.startswith('sequence<') and int(index) < max(p.decoder_layers for p in PRESETS.values())
