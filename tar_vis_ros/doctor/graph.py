"""Findings about ROS: the installation, the middleware, image topics that are alive, and this package's nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from tar_vis_core.errors import first_line
from tar_vis_ros.doctor.finding import Finding
from tar_vis_ros.process.dds import PROFILE_VARIABLES, shared_memory_room, use_shared_memory_profile
from tar_vis_ros.process.which_ros import ros_problem, wheels_of_ros

LISTEN_S, LISTEN_AT_MOST_S = 3.0, 12.0      # the former since a topic was new: discovery takes its time
LATE_S, EARLY_S = 5.0, 0.5      # ages of stamps that no camera of this machine has
PRIVATE_RANGE = range(0, 102)   # domains whose ports leave those alone that Linux gives to clients
SHM = Path('/dev/shm')
STALE_FILES = 400


def installation(env: Mapping[str, str] = os.environ) -> Finding:
    """Return which ROS there is."""
    problem, remedy = ros_problem(env)
    if problem:
        return Finding('ROS', problem, remedy, wrong=True)
    wheels, sourced = wheels_of_ros(), env.get('ROS_DISTRO', '')
    found = f'{wheels} from wheels' if wheels else sourced or 'a ROS whose ROS_DISTRO is not set'
    if find_spec('tar_vis_ros.msg') is None:
        return Finding('ROS', f'{found}, but the messages of this package are not built',
                       'make setup in the checkout, or colcon build and . install/setup.sh', wrong=True)
    return Finding('ROS', found)


def domain(env: Mapping[str, str] = os.environ) -> Finding:
    """Return who can be heard."""
    number = env.get('ROS_DOMAIN_ID') or '0'
    reach = env.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    text = f'{number}, discovery {"LOCALHOST" if env.get("ROS_LOCALHOST_ONLY") == "1" else reach}'
    if not number.isdigit() or int(number) > 232:
        return Finding('domain', f'ROS_DOMAIN_ID is {number!r}', 'set it to a number from 0 to 101', wrong=True)
    if reach.upper() == 'OFF':
        return Finding('domain', text, 'unset ROS_AUTOMATIC_DISCOVERY_RANGE: with OFF no node finds another')
    if int(number) not in PRIVATE_RANGE:
        return Finding('domain', text, 'take 0 to 101: above, ports of DDS meet those of other programs')
    return Finding('domain', text)


def shared_memory(rmw: str, folder: Path = SHM, env: Mapping[str, str] = os.environ) -> Finding:
    """Return whether images of other processes can come by shared memory. ``rmw`` is the middleware's name."""
    if 'fastrtps' not in rmw:
        return Finding('shared memory', f'{rmw} has its own way')
    profiles = [env[name] for name in PROFILE_VARIABLES if name in env]
    for profile in filter(None, profiles):
        if not Path(profile).is_file():
            return Finding('shared memory', f'the profile {profile} is not there',
                           f'unset {" and ".join(PROFILE_VARIABLES)}, or name a file', wrong=True)
    if not folder.is_dir():
        return Finding('shared memory', 'not Linux: Fast DDS finds its own place')
    count = len(list(folder.glob('fastrtps_*')))
    text = f'{folder} has {shared_memory_room(folder)} MiB free, {count} files of Fast DDS'
    if not profiles:
        return Finding('shared memory', text, 'make it larger (docker run --shm-size=1g): images between processes are '
                       'lost', wrong=True)
    if not any(profiles):
        return Finding('shared memory', f'{text}, and no profile', f'unset {" and ".join(PROFILE_VARIABLES)}: the '
                       'default of Fast DDS has no room for an image')
    return Finding('shared memory', text, 'end all nodes, then run: fastdds shm clean' if count > STALE_FILES else '')


def graph() -> Iterator[Finding]:
    """Yield what a node of this process finds on the graph. It listens for some seconds."""
    # rclpy ends the process if the middleware that is asked for is not there
    if asked := os.environ.get('RMW_IMPLEMENTATION'):
        tried = subprocess.run([sys.executable, '-c', 'import rclpy'], capture_output=True, text=True)
        if tried.returncode:
            yield Finding('RMW', f'{asked} cannot be loaded: {tried.stderr.strip()[-200:]}',
                          f'unset RMW_IMPLEMENTATION, or install the package of {asked}', wrong=True)
            return

    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    use_shared_memory_profile()
    context = rclpy.Context()
    try:
        rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
        node = rclpy.create_node('tar_vis_doctor', context=context, start_parameter_services=False)
    except Exception as error:      # of whatever the middleware raises
        yield Finding('RMW', f'no node can be made: {first_line(error)}', 'look at the profile and the variables of '
                      'the middleware', wrong=True)
        return
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        rmw = rclpy.get_rmw_implementation_identifier()
        yield Finding('RMW', rmw)
        yield shared_memory(rmw)
        heard = Listener(node)
        began = news = time.monotonic()
        while (now := time.monotonic()) < min(news + LISTEN_S, began + LISTEN_AT_MOST_S):
            if heard.look():
                news = now
            executor.spin_once(timeout_sec=0.05)
        yield from heard.findings()
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown(context=context)


class Listener:
    """Listen to every image topic and to /diagnostics."""

    def __init__(self, node) -> None:
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

        self._node, self._levels = node, DiagnosticStatus
        self._topics: dict[str, list[tuple[float, float, object]]] = defaultdict(list)   # arrival, stamp, message
        self._listening: dict[str, object] = {}
        self._statuses: dict[str, object] = {}
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    def _on_diagnostics(self, message) -> None:
        for status in message.status:
            if any(pair.key in ('image topic', 'stamps matched') for pair in status.values):    # of this package
                self._statuses[status.name] = status

    def look(self) -> bool:
        """Subscribe to image topics that are new. Return whether there are any."""
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CompressedImage, Image

        kinds = {'sensor_msgs/msg/Image': Image, 'sensor_msgs/msg/CompressedImage': CompressedImage}
        topics = self._node.get_topic_names_and_types()
        own = {node for topic, types in topics if 'tar_vis_ros/msg/InstanceMaskArray' in types
               for node in self._publishers(topic)}     # listening to its pictures would have it draw them
        before = len(self._listening)
        for topic, types in topics:
            publishers = self._publishers(topic)
            if types[0] in kinds and topic not in self._listening and publishers and not own & set(publishers):
                self._listening[topic] = self._node.create_subscription(
                    kinds[types[0]], topic, lambda message, topic=topic: self._take(topic, message),
                    qos_profile_sensor_data)
        return len(self._listening) > before

    def _publishers(self, topic: str) -> list[str]:
        return [f'{info.node_namespace}/{info.node_name}' for info in self._node.get_publishers_info_by_topic(topic)]

    def _take(self, topic: str, message: object) -> None:
        from tar_vis_ros.conversions.stamps import seconds_of

        now = self._node.get_clock().now().nanoseconds * 1e-9
        self._topics[topic].append((now, seconds_of(message), message))

    def findings(self) -> Iterator[Finding]:
        """Yield what was found until now."""
        if self._node.count_publishers('/clock'):
            yield Finding('/clock', 'simulated time is published', 'set use_sim_time:=true for nodes that compare '
                          'stamps with the time')
        if not self._listening:
            yield Finding('image topics', 'none on this domain', 'start a camera driver, or tar-vis-video --loop. If '
                          'one runs, compare ROS_DOMAIN_ID, RMW_IMPLEMENTATION and the network of both')
        for topic in sorted(self._listening):
            yield self._image_topic(topic)
        for _, status in sorted(self._statuses.items()):
            yield self._node_status(status)

    def _image_topic(self, topic: str) -> Finding:
        from tar_vis_ros.conversions.images import ImageError, to_rgb

        publishers = self._node.get_publishers_info_by_topic(topic)
        types = sorted({info.topic_type for info in publishers})
        qos = ' and '.join(sorted({info.qos_profile.reliability.name.lower().replace('_', ' ') for info in publishers}))
        got = self._topics[topic]
        rate = (len(got) - 1) / (got[-1][0] - got[0][0]) if len(got) > 1 and got[-1][0] > got[0][0] else 0.0
        text = f'{types[0] if types else "gone"}, {qos}, {rate:.1f} Hz'
        if len(types) > 1:
            return Finding(topic, ' and '.join(types), 'let one of the publishers have another topic', wrong=True)
        if len(publishers) > 1:
            return Finding(topic, f'{text}, {len(publishers)} publishers', 'leave one: their images would be taken for '
                           'those of one camera (one that was killed counts for 20 s still)', wrong=True)
        if not got:
            return Finding(topic, text, 'look at the driver: it publishes nothing; or images are lost (shared memory, '
                           'network)', wrong=True)
        try:
            height, width = to_rgb(got[-1][2]).shape[:2]
        except ImageError as error:
            return Finding(topic, f'{text}: {error}', 'let the driver publish another encoding', wrong=True)
        arrived, stamp, message = got[-1]
        text += f', {width}x{height} {getattr(message, "encoding", "") or getattr(message, "format", "")}'
        age = arrived - stamp
        if stamp == 0:
            return Finding(topic, f'{text}, without stamps', 'let the driver fill header.stamp', wrong=True)
        if not -EARLY_S <= age <= LATE_S:
            return Finding(topic, f'{text}, stamps {abs(age):.1f} s {"old" if age > 0 else "in the future"}', 'set the '
                           'clocks of both machines by one source (chrony), or use_sim_time for a bag', wrong=age < 0)
        return Finding(topic, f'{text}, stamps {age * 1e3:.0f} ms old')

    def _node_status(self, status) -> Finding:
        values = {pair.key: pair.value for pair in status.values}
        if values.get('state') in ('unconfigured', 'inactive') and status.level == self._levels.OK:
            return Finding(status.name, f'is {values["state"]}: it answers nothing', 'start it with '
                           '-p autostart:=true, or: ros2 lifecycle set NODE configure, then activate')
        bad = status.level != self._levels.OK
        return Finding(status.name, status.message, 'the message says what; see docs/nodes' if bad else '', wrong=bad)
