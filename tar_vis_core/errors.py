"""Errors that a user can act on: each message says what was wrong, what was expected and what to do."""


class TarVisError(Exception):
    """Base of this package's own errors; the message is one line fit for a terminal or a log."""


class WeightsError(TarVisError):
    """A weights file is missing, unreadable, or does not fit the model."""


class DeviceError(TarVisError):
    """The asked device is not there."""


class NotFiniteError(TarVisError, FloatingPointError):
    """A network gave numbers that are not finite."""

    def __init__(self) -> None:
        super().__init__('the network gave numbers that are not finite')


class DataError(TarVisError):
    """A data set is missing, incomplete or malformed."""
