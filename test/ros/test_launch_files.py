"""Launch files name what exists, describe their arguments, and stay thin: checked by reading them."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from building import ROOT, programs
from launch_files import assigned, calls, declared, keywords, overrides, parse, texts

pytest.importorskip('rclpy')

from tar_vis_core.options import options_of
from tar_vis_ros.depth.node import DepthLifter
from tar_vis_ros.node import settings
from tar_vis_ros.replay.command import command_line
from tar_vis_ros.replay.outcome import ReplayOptions
from tar_vis_ros.video_source import VideoSource

FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
MAY_IMPORT = {'pathlib', 'launch', 'launch_ros', 'lifecycle_msgs', 'tar_vis_ros'}
FOREIGN = {('rqt_image_view', 'rqt_image_view'), ('rviz2', 'rviz2')}    # only when asked for, as their arguments say
by_file = pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)


def foreign(call: ast.Call) -> bool:
    given = keywords(call)
    return (given['package'].value, given['executable'].value) in FOREIGN


def test_there_are_launch_files():
    assert {path.name for path in FILES} >= {'camera.launch.py', 'video.launch.py', 'multi_camera.launch.py'}


@by_file
def test_launch_files_are_thin(path):
    tree = parse(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            assert {module.partition('.')[0] for module in modules} <= MAY_IMPORT
    assert not calls(tree, 'eval', 'exec', 'compile', '__import__', 'open', 'system', 'ExecuteProcess')
    assert len(path.read_text().splitlines()) < 140


@by_file
def test_every_argument_is_described_and_has_a_default(path):
    found = calls(parse(path), 'DeclareLaunchArgument')
    assert found
    for call in found:
        given = keywords(call)
        assert 'default_value' in given
        assert len(' '.join(texts(given['description']))) > 10, ast.unparse(call)


@by_file
def test_configurations_that_are_read_are_declared(path):
    names = {name for call in calls(parse(path), 'LaunchConfiguration') for name in texts(call)}
    assert names - declared(path) == set()


@by_file
def test_executables_are_programs_of_the_package(path):
    for call in calls(parse(path), 'Node', 'LifecycleNode'):
        given = keywords(call)
        package, executable = given['package'].value, given['executable'].value
        if foreign(call):
            assert 'condition' in given, 'what may not be installed is started only when asked for'
            continue
        assert package == ElementTree.parse(ROOT / 'package.xml').findtext('name')
        assert executable in programs()


def test_programs_lead_to_functions():
    assert set(programs()) == {'tar-vis', 'tar-vis-node', 'tar-vis-video', 'tar-vis-demo', 'tar-vis-depth',
                                      'tar-vis-follow', 'tar-vis-bag', 'tar-vis-replay'}
    for target in programs().values():
        module, _, function = target.partition(':')
        source = ROOT / Path(*module.split('.')).with_suffix('.py')
        assert function in {node.name for node in parse(source).body if isinstance(node, ast.FunctionDef)}


@by_file
def test_files_that_are_named_exist(path):
    tree = parse(path)
    for call in calls(tree, 'config_file'):
        for name in texts(call):
            assert (ROOT / 'config' / name).is_file()
    for call in calls(tree, 'IncludeLaunchDescription'):
        for name in texts(call):
            assert (ROOT / 'launch' / name).is_file()


@by_file
def test_remapped_topics_are_those_of_the_programs(path):
    tree = parse(path)
    topics = {text for program in (ROOT / 'tar_vis_ros').rglob('*.py')
              for made in calls(parse(program), 'create_subscription', 'create_publisher') for text in texts(made)}
    for call in calls(tree, 'Node', 'LifecycleNode'):
        for pair in [] if foreign(call) else getattr(keywords(call).get('remappings'), 'elts', []):
            pair = assigned(tree, pair.id) if isinstance(pair, ast.Name) else pair
            assert pair.elts[0].value in topics


@by_file
def test_parameters_that_are_set_are_those_of_the_tables(path):
    tree = parse(path)
    tables = {'tar-vis-node': settings.TABLE, 'tar-vis-video': VideoSource.TABLE, 'tar-vis-depth': DepthLifter.TABLE}
    assert set(overrides(tree)) <= set(settings.TABLE.options)
    defaults = {call.args[0].value: texts(keywords(call)['default_value'])
                for call in calls(tree, 'DeclareLaunchArgument') if texts(call.args[0])}
    for call in calls(tree, 'Node', 'LifecycleNode'):
        given = keywords(call)
        for entry in getattr(given.get('parameters'), 'elts', []):
            for key, value in zip(entry.keys, entry.values, strict=True) if isinstance(entry, ast.Dict) else ():
                default = tables[given['executable'].value].options[key.value].default
                if isinstance(value, ast.Call):
                    assert keywords(value)['value_type'].id == type(default).__name__
                    for text in [text for name in texts(value) for text in defaults[name] if text]:
                        assert yaml.safe_load(text) == default, f'{key.value} has another default in {path.name}'


def test_a_gpu_and_its_precision_can_be_asked_for_without_a_file():
    assert {'device', 'precision'} <= set(overrides(parse(ROOT / 'launch' / 'camera.launch.py')))


def test_options_of_the_replay_are_those_of_its_command():
    source = (ROOT / 'launch' / 'replay.launch.py').read_text()
    tree, known = ast.parse(source), command_line()._option_string_actions
    assert {f'--{name}' for name in ast.literal_eval(assigned(tree, 'OPTIONS'))} <= set(known)
    for call in calls(tree, 'Node'):
        words = [word for word in texts(keywords(call)['arguments']) if word.startswith('--')]
        assert words and set(words) <= set(known)
    choices = {call.args[0].value: texts(keywords(call)['choices']) for call in calls(tree, 'DeclareLaunchArgument')
               if 'choices' in keywords(call)}
    assert choices == {'mode': list(options_of(ReplayOptions)['mode'].choices)}
