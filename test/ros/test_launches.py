"""Launch files run: with the real launch and launch_ros, from apt ROS or where PYTHONPATH has them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from building import BuiltProcess

pytest.importorskip('rclpy')
pytest.importorskip('launch_ros')

from builtin_interfaces.msg import Time
from node_process import Client, nano_weights, picture
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from replay_process import FRAMES, SETTINGS, answers, report_of, write_data
from sensor_msgs.msg import CameraInfo, Image
from simulated_camera import Robot, Thing, messages

from tar_vis_ros.msg import Instance3DArray, InstanceMaskArray

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
def launch(colcon_env, tmp_path):
    """Function that launches an installed launch file; gives the launch process and a client of its node."""
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


def test_a_camera_that_cannot_be_opened_ends_the_launch(launch):
    process, client = launch('camera.launch.py', camera='/no/such/camera')
    client.until(lambda: not process.running, 'end of the launch')
    assert '/no/such/camera: no such file or folder' in process.output, process.output
    assert 'the camera has ended' in process.output and 'Traceback' not in process.output, process.output
    client.until(lambda: 'tar_vis' not in client.node.get_node_names(), 'end of the node')


def test_a_viewer_that_is_missing_is_told_before_anything_starts(launch, colcon_env):
    if any((Path(place) / 'share/rqt_image_view').exists() for place in colcon_env['AMENT_PREFIX_PATH'].split(':')):
        pytest.skip('rqt_image_view is there')
    process, client = launch('camera.launch.py', overlay='true')
    client.until(lambda: not process.running, 'end of the launch')
    assert 'overlay:=true needs the package rqt_image_view' in process.output, process.output
    assert 'process started' not in process.output, process.output


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
    for index in range(6):
        cv2.imwrite(str(folder / f'{index}.png'), picture(shift=index))
    process, client = launch('video.launch.py', video=str(folder), rate='1', weights=nano_weights(tmp_path))
    answers: list[InstanceMaskArray] = []
    client.node.create_subscription(InstanceMaskArray, '/tar_vis/instances', answers.append, 10)
    client.until(lambda: not process.running, 'end of the launch')
    assert answers, process.output
    assert process.wait() == 0, process.output
    assert 'sent 6 frames' in process.output


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


def test_depth_launch_places_instances(launch):
    process, client = launch('depth.launch.py', depth_topic='/depth/image', camera_info_topic='/depth/camera_info',
                             namespace='tar_vis/front', images_kept='7')
    publishers = [client.node.create_publisher(kind, topic, 5) for kind, topic in (
        (InstanceMaskArray, '/tar_vis/front/instances'), (Image, '/depth/image'), (CameraInfo, '/depth/camera_info'))]
    placed: list[Instance3DArray] = []
    client.node.create_subscription(Instance3DArray, '/tar_vis/front/instances_3d', placed.append, 10)
    random, stamps = np.random.default_rng(0), iter(range(1, 1000))

    def answered() -> bool:
        for publisher, message in zip(publishers, messages(Time(sec=next(stamps)), Robot(), [Thing(4, 3.0, 0.4)],
                                                           random), strict=True):
            publisher.publish(message)
        client.spin(0.2)
        return bool(placed)

    client.until(answered, 'instances in 3-D')
    instance, = placed[0].instances
    assert instance.track_id == 4 and instance.position.z == pytest.approx(3.0, abs=0.1)
    process.name = 'tar_vis/front/depth_lifter'
    value, = client.call(GetParameters, 'get_parameters', GetParameters.Request(names=['images_kept'])).values
    assert parameter_value_to_python(value) == 7
    end(process)


def test_replay_launch_ends_with_a_report(launch, tmp_path):
    data, parameters = write_data(tmp_path / 'data'), tmp_path / 'parameters.yaml'
    parameters.write_text(yaml.safe_dump({'/**': {'ros__parameters': SETTINGS}}))
    process, client = launch('replay.launch.py', bag=str(data / 'raw/00001'), out=str(tmp_path / 'out'),
                             params_file=str(parameters))
    client.until(lambda: not process.running, 'end of the launch', 300)
    assert process.wait() == 0, process.output
    bag, = report_of(tmp_path / 'out')['bags']
    assert bag['figures']['answered'] == FRAMES == len(answers(tmp_path / 'out/00001'))
    assert {name: bag['parameters'][name] for name in SETTINGS} == SETTINGS
    assert bag['figures']['accuracy']['videos'] == 1, 'the truth beside the bag was found'


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
