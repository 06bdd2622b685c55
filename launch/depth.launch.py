"""Positions of the instances in 3-D, beside a running node tar_vis and a depth camera.

    ros2 launch tar_vis_ros depth.launch.py depth_topic:=/depth/image_rect camera_info_topic:=/depth/camera_info
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from tar_vis_ros.process.dds import profile_environment


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` runs."""
    return LaunchDescription([
        DeclareLaunchArgument('depth_topic', default_value='/camera/aligned_depth_to_color/image_raw', description=(
            'depth images, registered to the images of the masks and with their stamps')),
        DeclareLaunchArgument(
            'camera_info_topic', default_value='/camera/aligned_depth_to_color/camera_info', description=(
                'camera_info of the depth images')),
        DeclareLaunchArgument('namespace', default_value='tar_vis', description=(
            'namespace of the topic instances: tar_vis, or tar_vis/CAMERA if the node has several cameras')),
        DeclareLaunchArgument('images_kept', default_value='30', description=(
            'depth images that wait for their masks: more for a slow model and a fast camera')),
        *(SetEnvironmentVariable(name, value) for name, value in profile_environment().items()),
        Node(package='tar_vis_ros', executable='tar-vis-depth', name='depth_lifter',
             namespace=LaunchConfiguration('namespace'), output='screen', emulate_tty=True,
             remappings=[('depth', LaunchConfiguration('depth_topic')),
                         ('camera_info', LaunchConfiguration('camera_info_topic'))],
             parameters=[{'images_kept': ParameterValue(LaunchConfiguration('images_kept'), value_type=int)}]),
    ])
