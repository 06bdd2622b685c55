"""Find out, before anything of ROS is imported, that there is none, or one of another Python or distribution."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

WHEELS = 'jazzy', 'kilted'
PACKAGES = 'rclpy', 'rcl_interfaces', 'std_msgs', 'sensor_msgs'
WITHOUT = ('open a terminal that sources no ROS, or put "env -u PYTHONPATH -u LD_LIBRARY_PATH -u AMENT_PREFIX_PATH" '
           'before the command')

# In a checkout: the environment whose ROS the messages were built with (setup.py).
BUILT_FOR = Path(__file__).parents[1] / '_lib' / 'built_for'


def wheels_of_ros() -> str:
    """Return the distribution whose wheels this Python has, '' if none."""
    from importlib import metadata  # takes its time, and few ask

    return next((name for name in WHEELS if any(metadata.distributions(name=f'ros-{name}-rclpy'))), '')


def ros_problem(env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return why ROS cannot be imported here, and what to do; both '' if nothing is known to be wrong.

    A ROS that the environment brings must be made for this Python, and beside wheels be the same distribution. Often a
    .bashrc sources one that is not.
    """
    spec = find_spec('rclpy')
    if spec is None:
        return 'rclpy cannot be imported', ('source ROS (. /opt/ros/$ROS_DISTRO/setup.sh), or install its wheels: make '
                                            'setup, then . .venv/bin/activate')
    for package in _strangers('PYTHONPATH', PACKAGES, env):
        if not any(f'.{file.name.partition(".")[2]}' in EXTENSION_SUFFIXES for file in package.glob('*.so')):
            return (f'{package.parent} of PYTHONPATH has a ROS for another Python than {sys.executable} '
                    f'({sys.version_info.major}.{sys.version_info.minor})', WITHOUT)
    sourced = env.get('ROS_DISTRO')
    for library in (*_strangers('LD_LIBRARY_PATH', ['librcl.so'], env), *_strangers('PYTHONPATH', PACKAGES, env)):
        if sourced and (wheels := wheels_of_ros()) not in ('', sourced):
            return f'{library.parent} of {sourced} is sourced, and {sys.executable} has the wheels of {wheels}', WITHOUT
    built = BUILT_FOR.read_text() if BUILT_FOR.is_file() else ''
    if built and os.path.realpath(built) != os.path.realpath(sys.prefix):
        return (f'the messages of this checkout were built for {built}, and this Python is of {sys.prefix}',
                'make setup builds them again, with ROS=kilted for Kilted')
    return '', ''


def _strangers(variable: str, names: Sequence[str], env: Mapping[str, str]) -> Iterator[Path]:
    """Yield what of these names lies in the folders of a variable, but not in this Python's own."""
    for folder in filter(None, env.get(variable, '').split(os.pathsep)):
        if Path(sys.prefix).resolve() not in Path(folder).resolve().parents:
            yield from filter(os.path.exists, (Path(folder) / name for name in names))
