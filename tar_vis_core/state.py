"""The memory of one stream between its frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tar_vis_core.latency_budget import LatencyBudget
from tar_vis_core.models.seeing_routers import Past
from tar_vis_core.stamp_watch import NOMINAL_INTERVAL_S, StampWatch
from tar_vis_core.still_picture import SegmentedFrame
from tar_vis_core.tracking.identity import IdentityTracker


@dataclass
class TemporalState:
    """The memory of one stream, of constant size. Made by ``VideoSegmenter.new_state``, changed by ``step``."""

    # The last frame's decoder output: queries (1, Q, D) before the norm and in the decoder's own slot order, which the
    # Synchronizer and the Routers read, and what Routers that look at the picture compare. The tracker must never
    # permute it, or slots and their positions part.
    previous: Past | None = None
    # What the tracker keeps of the frames before, in its own slot order; its type is the tracker's.
    tracker_memory: Any = None
    # Tracks and their ids; starts anew at a reset, so ids begin at 1 again.
    identities: IdentityTracker = field(default_factory=IdentityTracker)
    # The last frame in grey, about 64 pixels wide: for the inter-frame mean squared error.
    small_frame: np.ndarray | None = None
    # With ``encoder_reuse`` the last frame that the model has seen, whose objects still pictures take over; else None.
    segmented: SegmentedFrame | None = None
    # Index of the next frame since the last reset.
    frame_index: int = 0
    # Rises by one at every reset: (epoch, track id) never comes twice in a stream.
    epoch: int = 0
    # (height, width) of the source; another size resets.
    image_size: tuple[int, int] | None = None
    # Stamp of the last frame in seconds, None if it came without one.
    last_stamp_s: float | None = None
    # What the stamps so far say of the next one.
    stamps: StampWatch = field(default_factory=StampWatch)
    # Moves the routers' bias so that steps keep within ``latency_budget_ms``; None without a budget. Outlives resets.
    budget: LatencyBudget | None = None
    # Why the state was reset since the last frame; the next frame reports it.
    reset_reason: str = ''

    def reset(self, reason: str) -> None:
        """Forget everything but the budget and the epoch, which rises."""
        self.__init__(epoch=self.epoch + 1, budget=self.budget, reset_reason=reason)  # type: ignore[misc]

    def budget_of(self, budget_ms: float) -> LatencyBudget | None:
        """Return the controller for a budget in ms, the one at work if it has that budget; None for 0."""
        if budget_ms != (self.budget.budget_ms if self.budget else 0):
            self.budget = LatencyBudget(budget_ms) if budget_ms else None
        return self.budget

    def begin_frame(self, size: tuple[int, int], stamp_s: float | None, reset_gap_s: float,
                    stream_break: str | None = None) -> tuple[str, float]:
        """Reset if the stream has a break. Return the reason ('' for none) and the seconds since the last frame.

        Without stamps the seconds are a nominal interval. They are below 0 for a frame that comes a little late.
        ``stream_break`` is the answer of a ``StampWatch`` that has also seen frames that did not come here; None: the
        stamps that came here decide.
        """
        elapsed = NOMINAL_INTERVAL_S
        if stamp_s is not None and self.last_stamp_s is not None:
            elapsed = stamp_s - self.last_stamp_s
        if stamp_s is None:
            self.stamps = StampWatch()
        elif stream_break is None:
            stream_break = self.stamps.add(stamp_s, reset_gap_s)
        if self.image_size not in (None, size):
            (h0, w0), (h, w) = self.image_size, size
            stream_break = f'image size changed from {w0}x{h0} to {w}x{h}'
        if stream_break:
            stamps = self.stamps
            self.reset(stream_break)
            self.stamps = stamps
        reason, self.reset_reason = self.reset_reason, ''
        self.image_size, self.last_stamp_s = size, stamp_s
        return reason, elapsed

    def frame_mse(self, small: np.ndarray) -> float:
        """Return the mean squared difference to the last small frame, squared grey levels; NaN for the first.

        Keep ``small`` for the next frame.
        """
        before, self.small_frame = self.small_frame, small
        return float('nan') if before is None else float(np.square(small - before).mean())
