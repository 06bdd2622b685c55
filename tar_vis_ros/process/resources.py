"""Files that travel with the package, found the same way however it was installed."""

from pathlib import Path

from tar_vis_core.io.paths import user_path


def config_file(name: str) -> Path:
    """Return the path of a file of ``config/``, found without the ament index.

    pip and colcon installations hold the folder in the package, an editable
    installation has it in the checkout. Raise FileNotFoundError that names both.
    """
    package = Path(__file__).absolute().parents[1]
    places = [package / 'config' / name, package.parent / 'config' / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f'{name} of tar_vis_ros is not at {places[0]} nor at {places[1]}: install the package again')


def given_file(text: str) -> str:
    """Return the path that a launch argument gives; no shell has expanded its ``~``."""
    return str(user_path(text))
