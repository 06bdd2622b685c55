"""The README's tables and commands are those of the code."""

import re
from pathlib import Path

from tar_vis_ros import parameters
from tar_vis_ros.parameters import FIELDS

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def as_text(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == '' else str(list(value) if isinstance(value, tuple) else value)


def test_the_parameter_table_is_complete_and_has_the_defaults():
    table = README.partition('| parameter | default |')[2].partition('\n\n')[0]
    rows = dict(re.findall(r'^\| `(\w+)`(?: \\?\*)? \| `([^`]*)` \|', table, re.M))
    assert rows == {name: as_text(field.default) for name, field in FIELDS.items()}


def test_parameters_that_need_a_configure_are_marked():
    marked = set(re.findall(r'^\| `(\w+)` \\?\* \|', README, re.M))
    assert marked == {name for name in FIELDS if parameters.specification(name).needs_configure}


def test_make_targets_links_and_launch_files_exist():
    makefile = (ROOT / 'Makefile').read_text()
    for target in set(re.findall(r'^make (\w+)', README, re.M)):
        assert re.search(rf'^{target}:', makefile, re.M), target
    for name in re.findall(r'ros2 launch tar_vis_ros (\S+)', README):
        assert (ROOT / 'launch' / name).is_file()
    for link in re.findall(r'\]\(([^)#:]+)\)', README):
        assert (ROOT / link).exists(), link


def test_topics_are_those_of_the_node():
    source = (ROOT / 'tar_vis_ros' / 'lifecycle_node.py').read_text()
    topics = set(re.findall(r"'(~/\w+|/diagnostics)'", source))
    assert topics and topics <= set(re.findall(r'^\| `([~/\w]+)`', README, re.M))
