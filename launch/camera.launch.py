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
)
from launch.conditions import IfCondition
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from tar_vis_ros.dds import profile_environment
from tar_vis_ros.resources import config_file

IMAGE = ('image', LaunchConfiguration('image_topic'))

# Launch arguments that go over the value of params_file where they are given.
OVERRIDES = {
    'model': 'model family to run: nano, minvis, ctvis or dvispp',
    'backbone': 'r50, swin_l or vit_adapter_l, where the model has it',
    'weights': 'safetensors file of the model',
    'adapter': 'safetensors file with Synchronizer and Routers for weights without them',
    'device': 'auto, cpu, cuda or cuda:N',
    'routing': 'which decoder layers run: auto, adaptive, full or fixed',
}


def _node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The lifecycle node, and with autostart the events that bring it to the active state."""
    given = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    node = LifecycleNode(
        package='tar_vis_ros', executable='tar_vis_node', name='tar_vis',
        namespace=LaunchConfiguration('namespace'), output='screen', emulate_tty=True, remappings=[IMAGE],
        parameters=[LaunchConfiguration('params_file'),
                    {name: ParameterValue(value, value_type=str) for name, value in given.items() if value}])

    def transition(identifier: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=identifier))

    autostart = IfCondition(LaunchConfiguration('autostart')).evaluate(context)
    # A configure that fails leaves the node up and unconfigured, and nothing is activated.
    activate = RegisterEventHandler(OnStateTransition(
        target_lifecycle_node=node, start_state='configuring', goal_state='inactive',
        entities=[transition(Transition.TRANSITION_ACTIVATE)]))
    return [activate, node, transition(Transition.TRANSITION_CONFIGURE)] if autostart else [node]


def _camera(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The project's own source, where a camera is named."""
    if not LaunchConfiguration('camera').perform(context):
        return []
    return [Node(
        package='tar_vis_ros', executable='tar_vis_video', name='tar_vis_video',
        namespace=LaunchConfiguration('namespace'), output='screen', emulate_tty=True, remappings=[IMAGE],
        parameters=[{'source': ParameterValue(LaunchConfiguration('camera'), value_type=str)}])]


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` runs."""
    return LaunchDescription([
        DeclareLaunchArgument('image_topic', default_value='camera/image_raw', description='topic of the images'),
        DeclareLaunchArgument('camera', default_value='', description=(
            'camera to open and publish on image_topic, as 0 or /dev/video0; empty: somebody else publishes')),
        DeclareLaunchArgument('params_file', default_value=str(config_file('tar_vis.yaml')), description=(
            'YAML file with the parameters of the node')),
        *(DeclareLaunchArgument(name, default_value='', description=f'{text}; empty: as params_file says')
          for name, text in OVERRIDES.items()),
        DeclareLaunchArgument('namespace', default_value='', description='namespace of the nodes'),
        DeclareLaunchArgument('autostart', default_value='true', choices=['true', 'false'], description=(
            'configure and activate the node; false: a lifecycle manager does')),
        DeclareLaunchArgument('overlay', default_value='false', choices=['true', 'false'], description=(
            'show the overlay in a window; needs the package rqt_image_view')),
        *(SetEnvironmentVariable(name, value) for name, value in profile_environment().items()),
        OpaqueFunction(function=_node),
        OpaqueFunction(function=_camera),
        Node(package='rqt_image_view', executable='rqt_image_view', namespace=LaunchConfiguration('namespace'),
             arguments=['tar_vis/overlay'], condition=IfCondition(LaunchConfiguration('overlay'))),
    ])
