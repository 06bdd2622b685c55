"""Several cameras before one model: every camera with its own tracks and topics.

    ros2 launch tar_vis_ros multi_camera.launch.py image_topics:=/front/image_raw,/rear/image_raw
    ros2 launch tar_vis_ros multi_camera.launch.py sources:=0,2

Takes the arguments of camera.launch.py too.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def _sources(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the project's own sources, the first on the first topic, and so on."""
    sources, topics = (LaunchConfiguration(name).perform(context).split(',') for name in ('sources', 'image_topics'))
    if len(sources) > len(topics):
        raise ValueError(f'{len(sources)} sources for {len(topics)} image_topics: expected a topic for each source')
    pairs = [(source.strip(), topic.strip()) for source, topic in zip(sources, topics) if source.strip()]
    return [Node(
        package='tar_vis_ros', executable='tar-vis-video', name=f'tar_vis_video_{number}',
        namespace=LaunchConfiguration('namespace'), output='screen', emulate_tty=True, remappings=[('image', topic)],
        parameters=[{
            'source': ParameterValue(source, value_type=str),
            'loop': True,
            'wait_for_subscribers': 1,   # the node subscribes when it is active: no frame is sent before
        }]) for number, (source, topic) in enumerate(pairs, 1)]


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` runs."""
    return LaunchDescription([
        DeclareLaunchArgument('image_topics', default_value='camera_1/image_raw,camera_2/image_raw', description=(
            'topics of the cameras with commas between; /front/image_raw answers on tar_vis/front/instances, and so '
            'on')),
        DeclareLaunchArgument('sources', default_value='', description=(
            'cameras (0 or /dev/video0), videos, folders of images or photographs with commas between, to publish on '
            'image_topics, files over and over; empty: somebody else publishes')),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(     # a plain path: --show-args looks into it
            str(Path(__file__).with_name('camera.launch.py')))),
        OpaqueFunction(function=_sources),
    ])
