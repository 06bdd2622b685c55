"""Checks of a launch file before it starts anything: one line for what is wrong or missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix

from tar_vis_core.errors import DataError, TarVisError
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.yaml_files import parse_yaml
from tar_vis_ros.process.parameter_files import sections
from tar_vis_ros.process.parameters import ParameterError, Table

TRUE = ('true', '1')    # as launch's conditions have them


class LaunchArgumentError(TarVisError):
    """A launch argument is refused; the message is one line: name, value, what is expected."""


def check_arguments(given: Mapping[str, str], table: Table, viewers: Mapping[str, str]) -> None:
    """Raise LaunchArgumentError for the first launch argument that cannot be meant.

    Args:
        given: the arguments as texts; those that ``table`` has are parameters of the node, empty ones are not given.
        table: the node's parameters.
        viewers: package that each of these arguments needs if it is true.
    """
    for name, text in given.items():
        if text and name in table.options:
            value = text if isinstance(table.options[name].default, str) else _value(text)
            try:
                table.check(name, value)
            except ParameterError as error:
                raise LaunchArgumentError(f'{name}:={text}: {error}') from None
        if text and name == 'params_file':
            path = Path(user_path(text))
            if not path.is_file():
                raise LaunchArgumentError(f'{name}:={text}: no such file, expected a YAML file with parameters')
            try:
                sections(path)
            except TarVisError as error:
                raise LaunchArgumentError(f'{name}:={text}: {error}') from None
        if name in viewers and text.lower() in TRUE:
            try:
                get_package_prefix(viewers[name])
            except (PackageNotFoundError, OSError):     # the latter: no ROS environment at all
                raise LaunchArgumentError(f'{name}:={text} needs the package {viewers[name]}, which is not installed: '
                                          f'apt install ros-DISTRO-{viewers[name].replace("_", "-")}') from None


def _value(text: str) -> object:
    try:
        return parse_yaml(text)
    except DataError:
        return text
