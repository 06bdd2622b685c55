"""Launch files name what exists, describe their arguments, and stay thin; where launch_ros is installed they run."""

from __future__ import annotations

import ast
import re
import signal
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import pytest
import yaml
from building import ROOT, BuiltProcess

pytest.importorskip('rclpy')

from node_process import Client, nano_weights, picture
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python

from tar_vis_ros import depth_lifter, parameters
from tar_vis_ros.msg import InstanceMaskArray
from tar_vis_ros.replay.command import command_line
from tar_vis_ros.video_source import OPTIONS

FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
MAY_IMPORT = {'launch', 'launch_ros', 'lifecycle_msgs', 'tar_vis_ros'}
FOREIGN = {('rqt_image_view', 'rqt_image_view'), ('rviz2', 'rviz2')}    # only when asked for, as their arguments say
by_file = pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)


def calls(tree: ast.AST, *names: str) -> list[ast.Call]:
    """The calls of functions and classes of these names."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)
            and getattr(node.func, 'id', getattr(node.func, 'attr', '')) in names]


def keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords}


def texts(tree: ast.AST | None) -> list[str]:
    """Every text constant in an expression."""
    return [] if tree is None else [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), path.name)


def assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """What a name of the module stands for."""
    values = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == name]
    return values[0] if values else None


def declared(path: Path) -> set[str]:
    """Launch arguments of a file and of the files that it includes."""
    tree, names = parse(path), set()
    for call in calls(tree, 'DeclareLaunchArgument'):
        names |= set(texts(call.args[0])) or set(overrides(tree))
    for included in calls(tree, 'IncludeLaunchDescription'):
        for name in texts(included):
            names |= declared(path.parent / name)
    return names


def overrides(tree: ast.Module) -> tuple[str, ...]:
    value = assigned(tree, 'OVERRIDES')
    return () if value is None else ast.literal_eval(value)


def foreign(call: ast.Call) -> bool:
    given = keywords(call)
    return (given['package'].value, given['executable'].value) in FOREIGN


def console_scripts() -> dict[str, str]:
    """Console scripts of setup.py: name to 'module:function'."""
    return dict(re.findall(r"'([\w-]+) = ([\w.]+:\w+)'", (ROOT / 'setup.py').read_text()))


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
    assert len(path.read_text().splitlines()) < 120


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
def test_executables_are_installed_and_lead_to_a_main(path):
    programs = re.search(r'install\(PROGRAMS (.*?) DESTINATION lib/', (ROOT / 'CMakeLists.txt').read_text())
    installed = {Path(program).name for program in programs[1].split()}
    for call in calls(parse(path), 'Node', 'LifecycleNode'):
        given = keywords(call)
        package, executable = given['package'].value, given['executable'].value
        if foreign(call):
            assert 'condition' in given, 'what may not be installed is started only when asked for'
            continue
        assert package == ElementTree.parse(ROOT / 'package.xml').findtext('name')
        assert executable in installed
        module, = re.findall(r'^from ([\w.]+) import main$', (ROOT / 'scripts' / executable).read_text(), re.MULTILINE)
        assert f'{module}:main' == console_scripts()[executable.replace('_', '-')]


def test_console_scripts_lead_to_functions():
    assert set(console_scripts()) == {'tar-vis', 'tar-vis-node', 'tar-vis-video', 'tar-vis-demo', 'tar-vis-depth',
                                      'tar-vis-follow', 'tar-vis-bag', 'tar-vis-replay'}
    for target in console_scripts().values():
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
    topics = {text for program in (ROOT / 'tar_vis_ros').glob('*.py')
              for made in calls(parse(program), 'create_subscription', 'create_publisher') for text in texts(made)}
    for call in calls(tree, 'Node', 'LifecycleNode'):
        for pair in [] if foreign(call) else getattr(keywords(call).get('remappings'), 'elts', []):
            pair = assigned(tree, pair.id) if isinstance(pair, ast.Name) else pair
            assert pair.elts[0].value in topics


@by_file
def test_parameters_that_are_set_exist(path):
    tree = parse(path)
    known = {'tar_vis_node': set(parameters.FIELDS), 'tar_vis_video': {option.name for option in OPTIONS},
             'tar_vis_depth': {option.name for option in depth_lifter.OPTIONS}}
    assert set(overrides(tree)) <= known['tar_vis_node']
    for call in calls(tree, 'Node', 'LifecycleNode'):
        given = keywords(call)
        for entry in getattr(given.get('parameters'), 'elts', []):
            if isinstance(entry, ast.Dict):
                assert {key.value for key in entry.keys} <= known[given['executable'].value]


def test_options_of_the_replay_are_those_of_its_command():
    source = (ROOT / 'launch' / 'replay.launch.py').read_text()
    tree, known = ast.parse(source), command_line()._option_string_actions
    assert {f'--{name}' for name in ast.literal_eval(assigned(tree, 'OPTIONS'))} <= set(known)
    for call in calls(tree, 'Node'):
        words = [word for word in texts(keywords(call)['arguments']) if word.startswith('--')]
        assert words and set(words) <= set(known)
    choices = {call.args[0].value: texts(keywords(call)['choices']) for call in calls(tree, 'DeclareLaunchArgument')
               if 'choices' in keywords(call)}
    assert choices == {'mode': list(known['--mode'].choices)}


def test_parameter_file_shows_every_parameter_with_its_default():
    shown = yaml.safe_load((ROOT / 'config/tar_vis.yaml').read_text())['/**']['ros__parameters']
    defaults = {name: field.default for name, field in parameters.FIELDS.items()
                if not parameters.specification(name).read_only}
    assert {name: parameters.check(name, value) for name, value in shown.items()} == defaults
    assert list(shown) == list(defaults), 'in the order of the table'


# From here on with the real launch and launch_ros: with apt ROS, or where PYTHONPATH has them.

LAUNCH = '''
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService(argv=sys.argv[2:])
arguments = [tuple(argument.split(':=', 1)) for argument in sys.argv[2:]]
service.include_launch_description(LaunchDescription([
    IncludeLaunchDescription(PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)]))
sys.exit(service.run())
'''


@pytest.fixture
def launch(request, tmp_path):
    """Function that launches an installed launch file; gives the launch process and a client of its node."""
    pytest.importorskip('launch_ros')
    colcon_env = request.getfixturevalue('colcon_env')    # only now: it builds
    opened = []

    def start(file: str, /, **arguments: str) -> tuple[BuiltProcess, Client]:
        path = Path(colcon_env['HERE']) / 'share/tar_vis_ros/launch' / file
        process = BuiltProcess([sys.executable, '-c', LAUNCH, str(path),
                                *(f'{key}:={value}' for key, value in arguments.items())],
                               colcon_env, tmp_path, 'tar_vis')
        opened.append(process)
        opened.append(client := Client(process))
        return process, client

    yield start
    for one in reversed(opened):
        one.close()


def end(process: BuiltProcess) -> None:
    process.signal(signal.SIGINT)
    process.wait()
    assert 'process has died' not in process.output, process.output
    assert 'Traceback' not in process.output, process.output


def test_camera_launch_starts_the_source_and_an_active_node(launch, tmp_path):
    process, client = launch('camera.launch.py', camera='photographs', device='cpu', weights=nano_weights(tmp_path))
    client.until(lambda: client.node.count_publishers('/camera/image_raw') == 1, 'source')
    client.until(lambda: client.node.count_subscribers('/camera/image_raw') == 1, 'node that listens')
    client.until(lambda: client.state == 'active', 'active node')
    end(process)


def test_camera_launch_without_a_camera_takes_a_topic(launch, tmp_path):
    process, client = launch('camera.launch.py', image_topic='/somewhere/image', weights=nano_weights(tmp_path))
    client.until(lambda: client.node.count_subscribers('/somewhere/image') == 1, 'subscriber')
    assert client.node.count_publishers('/somewhere/image') == 0
    end(process)


def test_wrong_weights_path_leaves_the_node_up_and_unconfigured(launch):
    process, client = launch('camera.launch.py', weights='/no/such/file.safetensors')
    client.until(lambda: '/no/such/file.safetensors' in process.output, 'complaint')
    assert client.state == 'unconfigured'
    client.spin(1.0)
    assert client.state == 'unconfigured', process.output
    assert process.running
    end(process)


def test_without_autostart_the_node_waits_to_be_told(launch):
    process, client = launch('camera.launch.py', autostart='false')
    assert client.state == 'unconfigured'
    client.spin(1.0)
    assert client.state == 'unconfigured', process.output
    end(process)


def test_video_launch_ends_with_the_video(launch, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for index in range(4):
        cv2.imwrite(str(folder / f'{index}.png'), picture(shift=index))
    process, client = launch('video.launch.py', video=str(folder), rate='5', weights=nano_weights(tmp_path))
    answers: list[InstanceMaskArray] = []
    client.node.create_subscription(InstanceMaskArray, '/tar_vis/instances', answers.append, 10)
    client.until(lambda: not process.running, 'end of the launch')
    assert answers
    assert process.wait() == 0, process.output
    assert 'sent 4 frames' in process.output


def test_overrides_reach_the_node_in_their_types(launch, tmp_path):
    process, client = launch('camera.launch.py', weights=nano_weights(tmp_path), latency_budget_ms='80',
                             routing='fixed', image_reliability='reliable')
    client.until(lambda: client.state == 'active', 'active node')
    names = ['latency_budget_ms', 'routing', 'image_reliability']
    values = client.call(GetParameters, 'get_parameters', GetParameters.Request(names=names)).values
    assert [parameter_value_to_python(value) for value in values] == [80.0, 'fixed', 'reliable']
    end(process)


def test_name_and_namespace_move_everything(launch, tmp_path):
    process, client = launch('camera.launch.py', camera='photographs', name='eyes', namespace='robot',
                             weights=nano_weights(tmp_path))
    process.name = 'robot/eyes'
    client.until(lambda: client.node.count_publishers('/robot/camera/image_raw') == 1, 'source')
    client.until(lambda: client.node.count_subscribers('/robot/camera/image_raw') == 1, 'node that listens')
    client.until(lambda: client.state == 'active', 'active node')
    assert client.node.count_publishers('/robot/eyes/instances') == 1
    end(process)


def test_several_cameras_answer_on_topics_of_their_own(launch, tmp_path):
    process, client = launch('multi_camera.launch.py', image_topics='/front/image_raw, /rear/image_raw',
                             sources='photographs,photographs', weights=nano_weights(tmp_path))
    answered = set()
    for name in ('front', 'rear'):
        client.node.create_subscription(InstanceMaskArray, f'/tar_vis/{name}/instances',
                                        lambda message, name=name: answered.add(name), 10)
    client.until(lambda: answered == {'front', 'rear'}, 'answers to both cameras')
    end(process)


def test_more_sources_than_topics_is_said(launch):
    process, client = launch('multi_camera.launch.py', image_topics='/front/image_raw', sources='0,1')
    client.until(lambda: not process.running, 'end of the launch')
    assert '2 sources for 1 image_topics' in process.output


def test_rviz_gets_its_configuration_and_the_topic_of_the_first_overlay(launch, colcon_env, tmp_path):
    # in the place of RViz a program of its name, which writes down what it was started with
    program, given = tmp_path / 'lib/rviz2/rviz2', tmp_path / 'given'
    marker = tmp_path / 'share/ament_index/resource_index/packages/rviz2'
    for path in (program, marker):
        path.parent.mkdir(parents=True)
    marker.touch()
    program.write_text(f'#!/bin/sh\necho "$@" > {given}\n')
    program.chmod(0o755)
    colcon_env['AMENT_PREFIX_PATH'] = f'{tmp_path}:{colcon_env["AMENT_PREFIX_PATH"]}'
    process, client = launch('multi_camera.launch.py', image_topics='/front/image_raw,/rear/image_raw', rviz='true',
                             name='eyes', namespace='robot', autostart='false')
    client.until(lambda: given.exists() and given.read_text().endswith('\n'), 'RViz')
    words = given.read_text().split()
    configuration = Path(words[words.index('-d') + 1])
    assert configuration.name == 'tar_vis.rviz' and configuration.is_file()
    assert '__ns:=/robot' in words and 'tar_vis/overlay:=eyes/front/overlay' in words
    process.name = 'robot/eyes'
    assert client.state == 'unconfigured'
    end(process)
