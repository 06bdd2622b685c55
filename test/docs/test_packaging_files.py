"""Files for containers, rosdoc2, pre-commit and quality say what the README, the Makefile and the tree say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from tar_vis_ros.process.dds import PROFILE_VARIABLES

ROOT = Path(__file__).parents[2]
APT = set(re.search(r'apt-get install -y (.*?) +#', (ROOT / 'README.md').read_text())[1].split())


def instructions(path: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with what they are told, lines joined."""
    text = re.sub(r'^#.*\n', '', (ROOT / path).read_text(), flags=re.MULTILINE).replace('\\\n', ' ')
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def installed(path: str) -> set[str]:
    run = next(told for name, told in instructions(path) if name == 'RUN' and 'apt-get install' in told)
    words = run.partition('apt-get install')[2].partition('&&')[0].split()
    return {word for word in words if not word.startswith('-')}


def test_the_image_is_built_by_the_commands_of_the_readme():
    steps = instructions('Dockerfile')
    assert steps[0] == ('FROM', 'debian:12') and 'Debian 12' in (ROOT / 'README.md').read_text()
    assert installed('Dockerfile') == APT
    assert any(name == 'RUN' and told.startswith('make setup') for name, told in steps)
    assert re.search(r'^setup:', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    assert ('ENV', 'PATH=/tar_vis_ros/.venv/bin:$PATH') in steps and ('WORKDIR', '/tar_vis_ros') in steps
    words = json.loads(dict(steps)['CMD'])
    assert words[0] in re.findall(r'^([\w-]+) = ', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)


def test_what_a_build_leaves_in_the_checkout_stays_out_of_the_image():
    kept_out = {line.strip('/') for line in (ROOT / '.dockerignore').read_text().split()}
    for line in (ROOT / '.gitignore').read_text().split():
        name = line.strip('/')
        assert {name, f'**/{name}', f'**/{name.rpartition("/")[2]}'} & kept_out or name.startswith('.') \
            or name == 'fuzz_findings', name


def test_the_devcontainer_makes_the_same_environment():
    made = json.loads((ROOT / '.devcontainer/devcontainer.json').read_text())
    assert installed('.devcontainer/' + made['build']['dockerfile']) == APT | {'git', 'ca-certificates'}
    targets = set(re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    assert set(re.findall(r'make (\w+)', made['postCreateCommand'])) <= targets
    assert '--shm-size=1g' in made['runArgs'], 'images between processes need it'


def test_rosdoc2_finds_what_it_is_told_of():
    _, settings = yaml.safe_load_all((ROOT / 'rosdoc2.yaml').read_text())
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    assert package.findtext('export/rosdoc2') == 'rosdoc2.yaml'
    assert (ROOT / settings['settings']['python_source'] / '__init__.py').is_file()
    sphinx = settings['builders'][0]['sphinx']
    assert sphinx['name'] == package.findtext('name') and (ROOT / sphinx['user_doc_dir'] / 'index.md').is_file()


def test_pre_commit_has_the_linter_of_the_tests():
    hook = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos'][0]['hooks'][0]
    pinned, = re.findall(r'^ruff==\S+', (ROOT / 'requirements-test.txt').read_text(), re.MULTILINE)
    assert hook['additional_dependencies'] == [pinned] and hook['entry'].startswith('ruff check')
    assert re.search(r'^lint:.*\n.*ruff check \.', (ROOT / 'Makefile').read_text(), re.MULTILINE)


def test_triton_is_the_one_that_torch_asks_for():
    """As the metadata of torch's builds for CUDA has it: another one would be exchanged on a machine with a GPU."""
    pins = dict(re.findall(r'^(torch|triton)==([\d.]+)', ''.join(
        (ROOT / name).read_text() for name in ('requirements.txt', 'requirements-test.txt')), re.MULTILINE))
    assert pins == {'torch': '2.13.0', 'triton': '3.7.1'}, 'look up the triton of a new torch'


def test_the_quality_declaration_claims_what_is_so():
    text = (ROOT / 'QUALITY_DECLARATION.md').read_text()
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    assert f'| {package.findtext("version")}, not stable' in text or f'; {package.findtext("version")}, not' in text
    assert package.findtext('license') in text
    for link in re.findall(r'\]\(([^)#:]+)\)', text):
        assert (ROOT / link).exists(), link
    for target in re.findall(r'`make (\w+)`', text):
        assert re.search(rf'^{target}:', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    assert sorted(map(int, set(re.findall(r'^\| (\d) \|', text, re.MULTILINE)))) == [*range(1, 8)], 'all of REP-2004'


@pytest.mark.parametrize('name', PROFILE_VARIABLES)
def test_the_page_on_middleware_names_what_the_programs_set(name):
    assert name in (ROOT / 'docs/reference/middleware.md').read_text()


@pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')
@pytest.mark.parametrize('words, venv, requirements', [
    ([], '.venv', 'requirements-ros.txt'), (['ROS=kilted'], '.venv-kilted', 'requirements-ros-kilted.txt')])
def test_each_distribution_has_its_environment_and_its_requirements(tmp_path, words, venv, requirements):
    for name in ('Makefile', 'requirements.txt', 'requirements-test.txt', requirements):
        shutil.copy(ROOT / name, tmp_path)
    for name in ('CMakeLists.txt', 'setup.py', 'pyproject.toml', 'package.xml'):
        (tmp_path / name).touch()
    # make itself may have started this test, for another distribution
    env = {name: value for name, value in os.environ.items() if name != 'ROS' and 'MAKE' not in name}
    done = subprocess.run(['make', '-n', 'test', *words], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env=env)
    assert f'-m venv {venv}\n' in done.stdout and f'-r requirements.txt -r {requirements}\n' in done.stdout
    assert f'{venv}/bin/python -m pytest test ' in done.stdout


def test_a_distribution_without_wheels_is_told():
    done = subprocess.run(['make', '-n', 'test', 'ROS=lyrical'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "ROS is 'lyrical', expected jazzy or kilted" in done.stderr


def test_both_lock_files_pin_everything_and_agree_on_what_is_used():
    pins = {name: dict(line.split('==') for line in (ROOT / name).read_text().splitlines()
                       if line and not line.startswith('#'))
            for name in ('requirements-ros.txt', 'requirements-ros-kilted.txt')}
    used = [{name.replace('jazzy-', '').replace('kilted-', '') for name in list(pinned)[:10]}
            for pinned in pins.values()]
    assert used[0] == used[1] and 'ros-rclpy' in used[0], 'the part "run time"'
    kilted = pins['requirements-ros-kilted.txt']
    assert not [name for name in kilted if 'jazzy' in name]
    assert kilted['ros-kilted-rclpy'] == kilted['ros-rclpy'] != pins['requirements-ros.txt']['ros-rclpy']
