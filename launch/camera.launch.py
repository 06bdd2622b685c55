"""A camera, or an image topic that is there already, to tracked instance masks.

    ros2 launch tar_vis_ros camera.launch.py image_topic:=/camera/color/image_raw
    ros2 launch tar_vis_ros camera.launch.py camera:=0 overlay:=true
"""

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from tar_vis_ros.node.cameras import camera_topics
from tar_vis_ros.node.settings import TABLE
from tar_vis_ros.process.dds import profile_environment
from tar_vis_ros.process.launching import check_arguments
from tar_vis_ros.process.resources import config_file, given_file

NAMESPACE = LaunchConfiguration('namespace')
IMAGE = ('image', LaunchConfiguration('image_topic'))

# Launch arguments that are parameters of the node, and override params_file if they are given.
OVERRIDES = ('model', 'backbone', 'weights', 'adapter', 'device', 'precision', 'routing', 'latency_budget_ms',
             'image_transport', 'image_reliability')

VIEWERS = {'overlay': 'rqt_image_view', 'rviz': 'rviz2'}    # package that each argument needs


def _check(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Raise an error if something is wrong or missing, before a part of the graph runs. Return no actions."""
    names = (*OVERRIDES, 'params_file', *VIEWERS)
    check_arguments({name: LaunchConfiguration(name).perform(context) for name in names}, TABLE, VIEWERS)
    camera_topics(_topics(context))
    return []


def _node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the lifecycle node, and with autostart the events that bring it to the active state."""
    parameters = {name: ParameterValue(LaunchConfiguration(name), value_type=type(TABLE.options[name].default))
                  for name in OVERRIDES if LaunchConfiguration(name).perform(context)}
    if topics := _topics(context):
        parameters['image_topics'] = topics
    autostart, respawn = (IfCondition(LaunchConfiguration(name)).evaluate(context) for name in ('autostart', 'respawn'))
    if autostart and respawn:       # launch knows transitions of the first process only
        parameters['autostart'] = True
    node = LifecycleNode(
        package='tar_vis_ros', executable='tar-vis-node', name=LaunchConfiguration('name'), namespace=NAMESPACE,
        output='screen', emulate_tty=True, remappings=[IMAGE], respawn=respawn, respawn_delay=2.0,
        parameters=[given_file(LaunchConfiguration('params_file').perform(context)), parameters])

    def transition(identifier: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=identifier))

    # A configure that fails leaves the node up and unconfigured, and nothing is activated.
    activate = RegisterEventHandler(OnStateTransition(
        target_lifecycle_node=node, start_state='configuring', goal_state='inactive',
        entities=[transition(Transition.TRANSITION_ACTIVATE)]))
    return [activate, node, transition(Transition.TRANSITION_CONFIGURE)] if autostart and not respawn else [node]


def _topics(context: LaunchContext) -> list[str]:
    return [topic.strip() for topic in LaunchConfiguration('image_topics').perform(context).split(',') if topic.strip()]


def _camera(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the project's own source, if a camera is named."""
    if not LaunchConfiguration('camera').perform(context):
        return []
    source = Node(
        package='tar_vis_ros', executable='tar-vis-video', name='tar_vis_video', namespace=NAMESPACE, output='screen',
        emulate_tty=True, remappings=[IMAGE],
        parameters=[{
            'source': ParameterValue(LaunchConfiguration('camera'), value_type=str),
            'wait_for_subscribers': 1,   # the node subscribes when it is active: no image is sent before
        }])
    return [source, RegisterEventHandler(OnProcessExit(
        target_action=source, on_exit=[Shutdown(reason='the camera has ended')]))]


def _viewers(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the viewers of the overlay; of several cameras, that of the first."""
    place = '/'.join(part for part in (LaunchConfiguration('name').perform(context),
                                       next(iter(camera_topics(_topics(context))))) if part)
    return [
        Node(package='rqt_image_view', executable='rqt_image_view', namespace=NAMESPACE,
             arguments=[f'{place}/overlay'], condition=IfCondition(LaunchConfiguration('overlay'))),
        Node(package='rviz2', executable='rviz2', namespace=NAMESPACE,
             arguments=['-d', str(config_file('tar_vis.rviz'))],
             remappings=[('tar_vis/overlay', f'{place}/overlay')],
             condition=IfCondition(LaunchConfiguration('rviz'))),
    ]


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` runs."""
    return LaunchDescription([
        DeclareLaunchArgument('image_topic', default_value='camera/image_raw', description='topic of the images'),
        DeclareLaunchArgument('image_topics', default_value='', description=(
            'topics of several cameras with commas between, as /front/image_raw,/rear/image_raw, in place of '
            'image_topic; empty: one camera')),
        DeclareLaunchArgument('camera', default_value='', description=(
            'camera to open and publish on image_topic, as 0 or /dev/video0; empty: somebody else publishes')),
        DeclareLaunchArgument('params_file', default_value=str(config_file('tar_vis.yaml')), description=(
            'YAML file with the parameters of the node')),
        *(DeclareLaunchArgument(name, default_value='', description=(
            f'{TABLE.options[name].description}; {TABLE.options[name].expected}; empty: as params_file says'))
          for name in OVERRIDES),
        DeclareLaunchArgument('namespace', default_value='', description='namespace of the nodes'),
        DeclareLaunchArgument('name', default_value='tar_vis', description='name of the node, and of its topics'),
        DeclareLaunchArgument('autostart', default_value='true', choices=['true', 'false'], description=(
            'configure and activate the node; false: a lifecycle manager does')),
        DeclareLaunchArgument('respawn', default_value='false', choices=['true', 'false'], description=(
            'start the node again if it ends, as it does when the GPU is lost')),
        DeclareLaunchArgument('overlay', default_value='false', choices=['true', 'false'], description=(
            'show the overlay in a window; needs the package rqt_image_view')),
        DeclareLaunchArgument('rviz', default_value='false', choices=['true', 'false'], description=(
            'show the overlay and 3-D markers in RViz; needs the package rviz2')),
        *(SetEnvironmentVariable(name, value) for name, value in profile_environment().items()),
        OpaqueFunction(function=_check),
        OpaqueFunction(function=_node),
        OpaqueFunction(function=_camera),
        OpaqueFunction(function=_viewers),
    ])
