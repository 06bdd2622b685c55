"""Watch the stamps of one stream of images: find breaks, and stamps that are none."""

from __future__ import annotations

from collections import deque
from statistics import median

NOMINAL_INTERVAL_S = 1 / 15     # between images whose rate is not known yet
REMEMBERED = 9                  # steps that the interval is estimated from
LATE = 1.5                      # intervals: two neighbours in the wrong order are one apart, and stamps jitter
UNCHANGED = 5                   # images in a row with one stamp are no chance


class StampWatch:
    """Watch the stamp of every image of a camera, also of images that are left out for newer ones.

    A break is a step back of more than about one interval, as a bag that loops and a clock that is set make it, or a
    gap between two images. A smaller step back is none: a clock that is corrected by a little, or two neighbours that
    arrive in the wrong order.
    """

    def __init__(self) -> None:
        self.newest: float | None = None
        self.unchanged = 0      # images in a row with the stamp of the one before
        self._steps: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def interval_s(self) -> float:
        """Return the usual time between two images, seconds."""
        return median(self._steps) if self._steps else NOMINAL_INTERVAL_S

    def add(self, stamp_s: float, reset_gap_s: float, missed: int = 0) -> str:
        """Take the next image's stamp; return why it is a break, '' if it is none.

        ``missed`` images came between this one and the one before, and their stamps are not known. A step of more
        than ``reset_gap_s`` seconds from image to image is a gap; 0: none is.
        """
        step = 0.0 if self.newest is None else stamp_s - self.newest
        if step < 0:
            if -step <= LATE * self.interval_s:
                self.unchanged = 0
                return ''
            self._steps.clear()
            self.newest, self.unchanged = stamp_s, 0
            return f'stamp went back by {-step:.3f} s'
        self.unchanged = self.unchanged + 1 if self.newest == stamp_s else 0
        self.newest, gap = stamp_s, step / (missed + 1)
        if gap > reset_gap_s > 0:
            self._steps.clear()
            return f'gap of {gap:.3f} s'
        if gap > 0:
            self._steps.append(gap)
        return ''

    @property
    def problem(self) -> str:
        """Return what is wrong with the stamps of the last images, '' if nothing is."""
        if self.newest == 0 and self.unchanged:     # one alone may be the start of a simulation
            return 'the stamps are all 0'
        return f'the stamps do not change (always {self.newest:.9f})' if self.unchanged >= UNCHANGED else ''
