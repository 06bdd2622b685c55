"""Parameter files that are for another node: applied where it is plain what is meant, told where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip('rclpy')
from tar_vis_core.errors import DataError, TarVisError
from tar_vis_ros.bags.reader import BagError
from tar_vis_ros.process.parameter_files import ignored_files, is_for, sections
from tar_vis_ros.replay.command import own_parameters, parsed, run
from tar_vis_ros.replay.worker import check_classes, node_arguments, publish_topic

FILE = '''
/fleet:
  robot_1:
    tar_vis: {ros__parameters: {score_threshold: 0.8}}
  /robot_1/planner:
    ros__parameters: {speed: 1}
'''


def written(folder: Path, text: str) -> Path:
    path = folder / 'robot.yaml'
    path.write_text(text)
    return path


@pytest.mark.parametrize(('section', 'node', 'fits'), [
    ('/tar_vis', '/tar_vis', True), ('/tar_vis', '/robot/tar_vis', False), ('/robot/tar_vis', '/tar_vis', False),
    ('/**', '/tar_vis', True), ('/**', '/a/b/tar_vis', True), ('/**/tar_vis', '/tar_vis', True),
    ('/**/tar_vis', '/a/b/tar_vis', True), ('/*/tar_vis', '/a/tar_vis', True), ('/*/tar_vis', '/tar_vis', False),
    ('/*', '/tar_vis', True), ('/tar.vis', '/tar_vis', False), ('/**/tar_vis', '/tar_vis_2', False)])
def test_names_with_stars(section, node, fits):
    assert is_for(section, node) == fits


def test_the_sections_of_a_nested_file(tmp_path):
    assert list(sections(written(tmp_path, FILE))) == ['/fleet/robot_1/tar_vis', '/fleet/robot_1/planner']
    path = written(tmp_path, FILE)
    arguments = ['node', '--ros-args', '--params-file', str(path)]
    assert not list(ignored_files(arguments, '/fleet/robot_1/tar_vis'))
    line, = ignored_files(arguments, '/tar_vis')
    assert line == (f'{path} is ignored: none of its parameters are for /tar_vis, it has those of '
                    '/fleet/robot_1/tar_vis, /fleet/robot_1/planner')


@pytest.mark.parametrize('text', [
    '', '[1, 2]', 'score_threshold: 0.3', '{', 'tar_vis: {ros__parameters: }',
    'tar_vis: {ros__parameters: {a: 2026-13-45}}', 'a: &a {ros__parameters: {b: 1}}\ntar_vis: *a'])
def test_what_is_no_parameter_file_is_one_line(tmp_path, text):
    with pytest.raises(TarVisError) as error:
        sections(written(tmp_path, text))
    assert '\n' not in str(error.value) and 'robot.yaml' in str(error.value)


def test_a_robots_own_file_is_taken_for_the_replay(tmp_path, capsys):
    made = own_parameters(written(tmp_path, FILE), tmp_path)
    assert yaml.safe_load(made.read_text()) == {'/**': {'ros__parameters': {'score_threshold': 0.8}}}
    assert 'the parameters of /fleet/robot_1/tar_vis are taken' in capsys.readouterr().err
    fits = written(tmp_path, 'tar_vis: {ros__parameters: {threads: 1}}')
    assert own_parameters(fits, tmp_path) == fits
    two = written(tmp_path, 'a: {x: {ros__parameters: {b: 1}}, y: {ros__parameters: {b: 2}}}')
    with pytest.raises(TarVisError, match='none of its parameters are for /tar_vis, it has those of /a/x, /a/y'):
        own_parameters(two, tmp_path)


def job(**values):
    return SimpleNamespace(**{'to': '', 'node': '', 'params_file': '', 'parameters': (), 'mode': 'lossless', **values})


def bag(topic: str, compressed: bool = False):
    return SimpleNamespace(topic=topic, compressed=compressed, path=Path('street'))


@pytest.mark.parametrize('topic', ['/robot/1/image', '/my camera/image', '/a//b', '/cam-1/image'])
def test_a_topic_that_ros_2_does_not_take_gets_another_name(topic):
    assert publish_topic(job(), bag(topic)) == '/replay/image'
    assert publish_topic(job(), bag(f'{topic.rstrip("/")}/compressed', True)) == '/replay/image/compressed'
    assert 'image:=/replay/image' in node_arguments(job(), bag(topic))
    with pytest.raises(BagError, match=r'ROS 2 takes no topic .*--to'):
        publish_topic(job(node='/tar_vis'), bag(topic))
    assert publish_topic(job(node='/tar_vis', to='/image'), bag(topic)) == '/image'


def test_a_truth_of_which_the_model_knows_no_class_is_told_first():
    shapes = SimpleNamespace(path='truth.json', categories={1: 'unicorn', 2: 'gryphon'})
    with pytest.raises(DataError, match=r'none of its classes \(unicorn, gryphon\) is one of the model'):
        check_classes({'model': 'nano', 'backbone': ''}, shapes)
    check_classes({'model': 'nano', 'backbone': ''}, SimpleNamespace(path='', categories={1: 'unicorn', 2: 'person'}))
    check_classes({}, shapes)
    check_classes({'model': 'nano', 'backbone': ''}, None)


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / 'taken').write_text('mine')
    choices = parsed(['bag', '--out', str(tmp_path / 'taken')])
    with pytest.raises(TarVisError, match='taken is a file; expected a folder'):
        run(choices)
    assert (tmp_path / 'taken').read_text() == 'mine'


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_a_file_is_read_in_each_encoding_that_ros_reads(tmp_path, encoding):
    path = tmp_path / 'robot.yaml'
    path.write_bytes('/**:\n  ros__parameters:\n    class_filter: [Kätzchen]\n'.encode(encoding))
    assert sections(path) == {'/**': {'class_filter': ['Kätzchen']}}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.yaml')
    for command in ('tar_vis_ros.node', 'tar_vis_ros.depth.node'):
        words = ['--ros-args', '--params-file', str(tmp_path / 'pipe.yaml')]
        done = subprocess.run([sys.executable, '-m', command, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
        assert f'--params-file {tmp_path / "pipe.yaml"}: is a pipe' in done.stderr
    with pytest.raises(TarVisError, match='is a pipe'):
        sections(tmp_path / 'pipe.yaml')
