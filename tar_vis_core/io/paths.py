"""Paths as users give them."""

from __future__ import annotations

from pathlib import Path


def user_path(text: str | Path) -> Path:
    """Return a path in which a leading ``~`` or ``~user`` stands for a home folder, as a shell takes it.

    A path from a parameter file, a launch argument or quotes has not been through a shell. If there is no such home,
    the path stays as it is: a name may begin with ``~``.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
