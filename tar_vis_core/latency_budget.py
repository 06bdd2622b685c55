"""Keep the 95th percentile of the step within a budget by skipping more decoder layers.

Routers' scores lie close together, so layers against bias is nearly a step: a controller that answers each frame's
error swings from one side of that step to the other. This one decides on blocks of frames at one bias, and searches:

* *Too slow*: more than 5 % of a block took longer than the budget. The bias rises at once, by strides that double.
* *Fast enough*: it stays. With time to spare, a lower bias is tried, halfway to the highest that was too slow.
* A try that fails is taken back, and the next one waits twice as long. So on a plant that stays as it is, the number of
  turns grows with the logarithm of time at most. When frames get faster by a tenth, the waiting is over.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

BLOCK, LONGEST = 100, 200   # frames that show a bias to be fast enough; where in doubt, up to so many
SHARE = 0.05                # of the frames that may take longer: the 95th percentile
BAND = 0.9                  # a p95 between this part of the budget and the budget is left alone
RESOLUTION = 0.02           # of the bias: the first stride, and the least distance that is searched
COARSENESS = 0.2            # the same for a large bias, as a part of it
HIGHEST = 10.0              # such a bias leaves no router that executes
UNKNOWN = -RESOLUTION       # no bias is known to be too slow: half way from here to a small bias is 0


class LatencyBudget:
    """The controller of one stream. Deterministic; looks at no clock; its memory does not grow.

    ``report`` is '' or one line that says why the budget cannot be met.
    """

    def __init__(self, budget_ms: float):
        """Control to ``budget_ms`` for the whole step. Raise ValueError if it is not above 0."""
        if not (math.isfinite(budget_ms) and budget_ms > 0):
            raise ValueError(f'latency budget is {budget_ms!r} ms, expected a number above 0')
        self.budget_ms = budget_ms
        self.bias = 0.0
        self.report = ''
        self._recent: deque[tuple[float, bool]] = deque(maxlen=LONGEST)     # milliseconds, routed
        self._block: list[float] = []           # milliseconds of the frames since the bias changed
        self._low = UNKNOWN                     # the highest bias that was too slow
        self._high: float | None = None         # the lowest that was fast enough; None while one is searched
        self._stride = RESOLUTION
        self._calm, self._wait = 0, 1           # blocks with time to spare; how many a try needs
        self._usual_ms = math.inf               # median before the last try
        self._lowered = False                   # since the bias last rose
        self._executed = 0                      # layers of the last routed frame
        self._exhausted = ''                    # what was measured when nothing was left to skip

    def update(self, step_ms: float, executed_layers: int, layers: int, routed: bool = True) -> float:
        """Take a frame's time and layers. Return the bias for the next one, 0 to 10, which adds to ``skip_bias``.

        ``routed`` is False for a frame whose layers no router chose: the first, and the plain passes that
        ``refresh_frames`` asks for. They run all layers whatever the bias is. If more than 5 % of the frames are
        such, the budget holds for the others alone, and ``report`` says so.
        """
        self._recent.append((step_ms, routed))
        plain = [ms for ms, chosen in self._recent if not chosen]
        often = len(plain) > SHARE * len(self._recent)
        if routed:
            self._executed = executed_layers
        if routed or not often:
            self._block.append(step_ms)
            over = sum(ms > self.budget_ms for ms in self._block)
            if over > SHARE * LONGEST:
                self._too_slow(layers)
            elif len(self._block) >= BLOCK and over <= SHARE * len(self._block):
                self._fast_enough()
        self.report = self._exhausted
        if often and not self._exhausted and sum(ms > self.budget_ms for ms in plain) > SHARE * LONGEST:
            self.report = self._too_plain(plain, layers)
        return self.bias

    def _too_slow(self, layers: int) -> None:
        if self.bias >= HIGHEST:
            self._exhausted = (f'latency budget of {self.budget_ms:g} ms cannot be met: with all skipped that can be, '
                               f'{self._executed} of {layers} layers executed, the step took {p95(self._block):.1f} ms '
                               '(p95)')
        sudden = len(self._block) < 2 * SHARE * LONGEST     # most of the frames, so no accident: the load has risen
        self._block.clear()
        self._low, self._calm = self.bias, 0
        if self._high is not None and self.bias < self._high:
            self.bias, self._wait = self._high, 2 * self._wait
            return
        if sudden or self._lowered:
            self._wait = 1 if sudden else 2 * self._wait
        self._high, self._lowered = None, False
        self.bias, self._stride = min(self.bias + self._stride, HIGHEST), min(2 * self._stride, HIGHEST)

    def _fast_enough(self) -> None:
        spare, median = p95(self._block) < BAND * self.budget_ms, float(np.median(self._block))
        self._block.clear()
        self._exhausted, self._high = '', self.bias
        self._stride = fineness = max(RESOLUTION, COARSENESS * self.bias)
        if not spare or self.bias == 0:
            return
        self._calm += 1
        if median < BAND * self._usual_ms < math.inf:
            self._wait, self._low = 1, UNKNOWN
        if self._calm < self._wait:
            return
        self._calm, self._usual_ms, self._lowered = 0, median, True
        if self.bias - self._low <= fineness:
            self._low = UNKNOWN
        self.bias = max(0.0, (self._low + self.bias) / 2)

    def _too_plain(self, plain: list[float], layers: int) -> str:
        if len(plain) == len(self._recent):
            return (f'latency budget of {self.budget_ms:g} ms is not met (p95 {p95(plain):.1f} ms), and no router is '
                    'asked that could skip layers: set routing to adaptive')
        return (f'latency budget of {self.budget_ms:g} ms cannot be met: one frame in '
                f'{len(self._recent) / len(plain):.0f} is a plain pass of all {layers} layers '
                f'(p95 {p95(plain):.1f} ms): set refresh_frames to 0, or to 40 or more')


def p95(times: list[float]) -> float:
    """Return the smallest time that 95 % of the times do not exceed."""
    return float(np.percentile(times, 100 * (1 - SHARE), method='inverted_cdf'))
