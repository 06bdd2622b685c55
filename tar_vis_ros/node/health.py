"""Health of the node: counters over a bounded window, throttled error lines, and a status for /diagnostics."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from tar_vis_ros.conversions.label_images import IMAGES

RECENT_S = 5.0      # how long a fault sets the status, and how long faults of its kind are not logged again
WINDOW_FRAMES = 300
WINDOW_S = 10.0


@dataclass(frozen=True)
class _Frame:
    finished: float
    latency_ms: float
    executed_layers: int


class Health:
    """Of one camera. Written to by the worker thread and the executor, read once a second for /diagnostics."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._frames: deque[_Frame] = deque(maxlen=WINDOW_FRAMES)
        self._processed = self._dropped = self._refused = 0
        self._pictures = {f'{_words(topic)} published': 0 for topic in (*IMAGES, 'overlay')}
        self._waiting_since = clock()      # the last image, or the activation
        self._held_back: dict[str, tuple[float, int]] = {}   # kind -> (when it was logged, how many since)
        self._fault = (-np.inf, DiagnosticStatus.OK, '')     # when, level, text

    def activated(self) -> None:
        """Expect images from now on, and forget earlier measurements."""
        with self._lock:
            self._frames.clear()
            self._waiting_since = self._clock()

    def image_arrived(self) -> None:
        self._waiting_since = self._clock()

    def frame_done(self, latency_ms: float, executed_layers: int) -> None:
        """Count a frame that was answered ``latency_ms`` after its arrival."""
        with self._lock:
            self._frames.append(_Frame(self._clock(), latency_ms, executed_layers))
            self._processed += 1

    def dropped(self, count: int) -> None:
        """Count images that were passed over for newer ones, or lost on the way."""
        with self._lock:
            self._dropped += count

    def picture_published(self, topic: str) -> None:
        """Count a picture on one of the topics of IMAGES, or on 'overlay'."""
        self._pictures[f'{_words(topic)} published'] += 1

    def fault(self, kind: str, text: str, level: bytes = DiagnosticStatus.WARN) -> str | None:
        """Note a fault that cost one image. Return the line to log, or None while its kind was logged just now."""
        now = self._clock()
        with self._lock:
            self._refused += 1
            self._fault = (now, level, text)
            logged, since = self._held_back.get(kind, (-np.inf, 0))
            if now - logged < RECENT_S:
                self._held_back[kind] = (logged, since + 1)
                return None
            self._held_back[kind] = (now, 0)
        return f'{text} (and {since} more of this kind before)' if since else text

    def status(self, name: str, state: str, topic: str, hardware_id: str, *, blocked: str = '',
               problems: Sequence[str] = (), timeout_s: float = 5.0) -> DiagnosticStatus:
        """Return the status ``name`` of a node in lifecycle ``state`` whose camera publishes on ``topic``.

        ``blocked`` says why the node cannot be configured, ``problems`` what is wrong right now; silence of more than
        ``timeout_s`` is a warning.
        """
        now = self._clock()
        with self._lock:
            recent = [frame for frame in self._frames if now - frame.finished <= WINDOW_S]
            processed, dropped, refused = self._processed, self._dropped, self._refused
            fault_time, fault_level, fault = self._fault
            silent = now - self._waiting_since
        fps = _rate(recent, now)
        level, text = DiagnosticStatus.OK, state
        if state == 'active':
            text = f'active: {fps:.1f} frames per second'
            warnings = list(problems)
            if silent > timeout_s:
                warnings.insert(0, f'no image on {topic} for {silent:.0f} s')
            if warnings:
                level, text = DiagnosticStatus.WARN, '; '.join(warnings)
            if now - fault_time < RECENT_S:
                level, text = fault_level, fault
        elif blocked:
            level, text = DiagnosticStatus.ERROR, blocked
        latencies = [frame.latency_ms for frame in recent]
        layers = [frame.executed_layers for frame in recent]
        values = {
            'state': state,
            'image topic': topic,
            'frames processed': str(processed),
            'frames dropped': str(dropped),
            'images refused': str(refused),
            'frames per second': f'{fps:.2f}',
            'latency p50 (ms)': _number(np.percentile(latencies, 50) if latencies else None),
            'latency p95 (ms)': _number(np.percentile(latencies, 95) if latencies else None),
            'executed layers (mean)': _number(np.mean(layers) if layers else None),
            **{key: str(count) for key, count in self._pictures.items()},
            'last error': blocked or fault,
        }
        return DiagnosticStatus(level=level, name=name, message=text, hardware_id=hardware_id,
                                values=[KeyValue(key=key, value=value) for key, value in values.items()])


def _words(topic: str) -> str:
    return topic.replace('_', ' ') + 's'


def _rate(frames: list[_Frame], now: float) -> float:
    """Return frames per second over the window, and over less after a start."""
    if len(frames) < 2:
        return 0.0
    return (len(frames) - 1) / max(now - frames[0].finished, 1e-3)


def _number(value: float | None) -> str:
    return 'unknown' if value is None else f'{value:.2f}'
