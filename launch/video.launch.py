"""A video file, a folder of images or the built-in photographs to tracked instance masks.

    ros2 launch tar_vis_ros video.launch.py video:=street.mp4 overlay:=true

Takes the arguments of camera.launch.py too.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` runs."""
    source = Node(
        package='tar_vis_ros', executable='tar-vis-video', name='tar_vis_video',
        namespace=LaunchConfiguration('namespace'), output='screen', emulate_tty=True,
        remappings=[('image', LaunchConfiguration('image_topic'))],
        parameters=[{
            'source': ParameterValue(LaunchConfiguration('video'), value_type=str),
            'rate': ParameterValue(LaunchConfiguration('rate'), value_type=float),
            'loop': ParameterValue(LaunchConfiguration('loop'), value_type=bool),
            'wait_for_subscribers': 1,   # the node subscribes when it is active: no frame is sent before
        }])
    node = IncludeLaunchDescription(PythonLaunchDescriptionSource(
        str(Path(__file__).with_name('camera.launch.py'))))     # a plain path: --show-args looks into it
    return LaunchDescription([
        DeclareLaunchArgument('video', default_value='photographs', description=(
            "video file, folder of images, or 'photographs' for a simulated camera over scikit-image's photographs")),
        DeclareLaunchArgument('rate', default_value='0.0', description=(
            "images per second; 0: the video's own")),
        DeclareLaunchArgument('loop', default_value='false', choices=['true', 'false'], description=(
            'start again at the end; false: everything ends with the video')),
        node,
        source,
        RegisterEventHandler(OnProcessExit(target_action=source, on_exit=[Shutdown(reason='the video has ended')])),
    ])
