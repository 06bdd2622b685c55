"""Arrival times and numbers of lost images, from the info that DDS has of each message."""

from __future__ import annotations

import time
from collections.abc import Mapping

MAX_WAIT_S = 60.0   # a longer wait in the queue is a clock that was set


class Arrivals:
    """Follow the message infos of one subscription: with a queue of one, DDS replaces images that were not read."""

    def __init__(self) -> None:
        self._last: int | None = None

    def missed(self, info: Mapping[str, int | None], publishers: int) -> int:
        """Return the number of images that were published since the last call and did not come.

        It is 0 if that cannot be known: without sequence numbers, with several publishers, after one has started anew.
        """
        number = info.get('publication_sequence_number')
        last, self._last = self._last, number
        if not number or not last or publishers != 1 or number <= last:
            return 0
        return number - last - 1

    @staticmethod
    def arrived(info: Mapping[str, int | None]) -> float:
        """Return when the message arrived, on the clock of ``time.perf_counter``."""
        now, received = time.perf_counter(), info.get('received_timestamp')
        waited = (time.time_ns() - received) * 1e-9 if received else 0.0
        return now - waited if 0 < waited < MAX_WAIT_S else now
