"""Errors that a user can act on: each message says what was wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TarVisError(Exception):
    """Base of this package's own errors; the message is one line fit for a terminal or a log.

    Names out of strangers' files are part of messages: what a terminal does not print is shown as ``\\n``.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if text.isprintable() else ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class WeightsError(TarVisError):
    """A weights file is missing, unreadable, or does not fit the model."""


class DeviceError(TarVisError):
    """The requested device is not there."""


class DeviceLostError(TarVisError):
    """A GPU no longer computes in this process; only a new process can use it again."""


class NotFiniteError(TarVisError, FloatingPointError):
    """A network gave numbers that are not finite."""

    def __init__(self) -> None:
        super().__init__('the network gave numbers that are not finite')


class DataError(TarVisError):
    """A data set is missing, incomplete or malformed."""


def near(name: object, known: Iterable[str]) -> str:
    """Return the words that ask for the nearest of the known names, or nothing if none is near."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f' (did you mean {found[0]!r}?)' if found else ''


def unknown_name(what: str, name: object, known: Iterable[str]) -> str:
    """Return the message for a name that is none of ``known``, with the nearest of them."""
    known = list(known)
    return f'unknown {what} {name!r}{near(name, known)}; expected one of {", ".join(known)}'


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks, or the name of its type if it has none."""
    return ' '.join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
