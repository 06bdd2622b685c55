"""What the README and the pages in docs/ name is there, and their tables are the code's."""

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()


def test_make_targets_links_and_launch_files_exist():
    makefile = (ROOT / 'Makefile').read_text()
    for target in set(re.findall(r'^make (\w+)', README, re.M)):
        assert re.search(rf'^{target}:', makefile, re.M), target
    for name in re.findall(r'ros2 launch tar_vis_ros (\S+)', README):
        assert (ROOT / 'launch' / name).is_file()
    for link in re.findall(r'\]\(([^)#:]+)\)', README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize('page', sorted((ROOT / 'docs' / 'nodes').glob('*.md')), ids=lambda page: page.stem)
def test_the_page_of_a_node_has_every_part(page):
    parts = re.findall(r'^## (.+)$', page.read_text(), re.M)
    assert parts == ['Features', 'Design and why', 'Subscribed', 'Published', 'Services', 'Parameters']


@pytest.mark.parametrize('page', sorted((ROOT / 'docs').rglob('*.md')), ids=lambda page: page.stem)
def test_links_of_the_pages_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_tree_is_the_one_that_is_there():
    top, told = '', set()
    for line in README.partition('## The tree')[2].split('```')[1].strip().splitlines():
        names = list(itertools.takewhile(lambda word: word.endswith(('/', '.py')), line.split()))
        top = top if line.startswith(' ') else names[0]
        told |= {(top if line.startswith(' ') else '') + name for name in names}
    assert all((ROOT / name).exists() for name in told)
    rooms = {f'{path.parent.relative_to(ROOT)}/' for path in ROOT.glob('tar_vis_*/*/__init__.py')}
    assert rooms - {'tar_vis_ros/msg/'} <= told
