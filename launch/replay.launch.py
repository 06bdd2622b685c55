"""A recorded bag through a node that is started for it, and a report on its answers.

    ros2 launch tar_vis_ros replay.launch.py bag:=street truth:=street.json out:=street_report

Everything ends with the bag. The command tar-vis-replay does the same, and takes more bags and more options.
"""

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction, RegisterEventHandler, SetEnvironmentVariable, Shutdown
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from tar_vis_ros.process.dds import profile_environment
from tar_vis_ros.process.resources import config_file

# Launch arguments that become options of tar-vis-replay if they are given.
OPTIONS = {
    'topic': 'topic of the images; empty: the only one in the bag',
    'truth': 'YouTube-VIS file with the ground truth; empty: NAME.truth.json beside the bag, if it is there',
    'node': 'active node to drive, such as /tar_vis; empty: start one with params_file',
    'to': 'topic that this node listens on; empty: that of the bag',
}


def _replay(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the command, with the options that were given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in OPTIONS}
    words = [word for name, value in given.items() if value for word in (f'--{name}', value)]
    if not given['node']:
        words += ['--params-file', LaunchConfiguration('params_file')]
    replay = Node(
        package='tar_vis_ros', executable='tar-vis-replay', output='screen', emulate_tty=True,
        arguments=[LaunchConfiguration('bag'), '--mode', LaunchConfiguration('mode'), '--rate',
                   LaunchConfiguration('rate'), '--out', LaunchConfiguration('out'), *words])
    return [replay, RegisterEventHandler(OnProcessExit(
        target_action=replay, on_exit=[Shutdown(reason='the replay has ended')]))]


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` runs."""
    return LaunchDescription([
        DeclareLaunchArgument('bag', default_value='bag', description='rosbag2 folder, .db3 or .mcap file to replay'),
        DeclareLaunchArgument('mode', default_value='lossless', choices=['lossless', 'realtime'], description=(
            'lossless: the next image when the last one is answered; realtime: at the recorded times')),
        DeclareLaunchArgument('rate', default_value='1.0', description='realtime: times as fast as recorded'),
        DeclareLaunchArgument('out', default_value='replay', description='folder for report.html and the rest'),
        DeclareLaunchArgument('params_file', default_value=str(config_file('tar_vis.yaml')), description=(
            'YAML file with the parameters of the node')),
        *(DeclareLaunchArgument(name, default_value='', description=f'option of tar-vis-replay: {text}')
          for name, text in OPTIONS.items()),
        *(SetEnvironmentVariable(name, value) for name, value in profile_environment().items()),
        OpaqueFunction(function=_replay),
    ])
