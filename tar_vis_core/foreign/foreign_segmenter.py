"""The segmenter of foreign models: they find objects in each image alone, and motion gives them their ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from tar_vis_core.detection import Detection, colour_signature, without_duplicates
from tar_vis_core.errors import DeviceError, NotFiniteError
from tar_vis_core.foreign.found import Detector, Found, check_found, load_detector
from tar_vis_core.foreign.onnx_detector import OnnxDetector
from tar_vis_core.instances import FrameResult, RoutingTrace, StageTimes, encode_runs
from tar_vis_core.io.paths import user_path
from tar_vis_core.models.presets import FOREIGN
from tar_vis_core.options import MODEL_OPTIONS, SegmenterOptions
from tar_vis_core.preprocess import small_grey
from tar_vis_core.runtime.device import StageClock
from tar_vis_core.segmenter import CONTINUE_SHARE, VideoSegmenter
from tar_vis_core.state import TemporalState

SHORT_CELLS = 80        # cells across the shorter edge of the grid on which masks are compared
# Options that ask for a part of our own networks, with the values that ask for nothing.
OWN_PARTS = {'latency_budget_ms': 0, 'encoder_reuse': 0, 'input_short_side': 0}


def open_segmenter(preset: str = 'nano', weights: str | Path | None = None, device: str = 'auto',
                   precision: str = 'auto', options: SegmenterOptions | None = None, threads: int = 0,
                   tracker: str = 'auto', adapter: str | Path | None = None, engine: str = 'torch') -> VideoSegmenter:
    """Return a segmenter of one of our presets, or of a foreign model.

    A foreign one is ``onnx``, whose ``weights`` is a file, or ``python``, whose ``weights`` is ``module:factory``. The
    arguments and errors are those of :class:`VideoSegmenter`.
    """
    if preset not in FOREIGN:
        return VideoSegmenter(preset, weights, device, precision, options, threads, tracker, adapter, engine)
    if not weights:
        raise ValueError(f'the model {preset} needs weights: ' + FOREIGN[preset])
    own = {'adapter': adapter, 'precision': precision not in ('auto', 'float32'),
           'tracker': tracker not in ('auto', 'motion'), 'engine': engine != 'torch'}
    if any(own.values()):
        wrong = next(name for name, asked in own.items() if asked)
        raise ValueError(f'{wrong} is of our own networks, and the model is {preset}; leave it out')
    if not re.fullmatch(r'auto|cpu|cuda(:\d{1,3})?', device):
        raise DeviceError(f'device is {device!r}, expected auto, cpu, cuda or cuda:N')
    MODEL_OPTIONS['threads'].check('threads', threads)
    if preset == 'python' and device not in ('auto', 'cpu'):
        raise ValueError(f'device is {device!r}, but the model python chooses its device itself; expected auto')
    if preset == 'python':
        return ForeignSegmenter(load_detector(str(weights)), 'cpu', options)
    place = 'cpu' if device == 'auto' else device
    return ForeignSegmenter(OnnxDetector(user_path(weights), place, threads), place, options)


class ForeignSegmenter(VideoSegmenter):
    """Follow what a :class:`Detector` finds. There are no decoder layers here, so nothing is routed or skipped."""

    def __init__(self, detector: Detector, device: str = 'cpu', options: SegmenterOptions | None = None):
        self.detector, self.device = detector, torch.device(device)
        self.tracker_name, self.num_layers = 'motion', 0
        self.class_names = tuple(detector.class_names)
        self.options = SegmenterOptions() if options is None else options

    remarks, recordings, arithmetic = (), 0, 'its own arithmetic'

    def needs_recording(self, height: int, width: int) -> bool:
        return False

    def warm_up(self, height: int, width: int) -> None:
        """Run a step on an image of that size."""
        self.step(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), self.new_state())

    def _routing(self, options: SegmenterOptions) -> str:
        if options.routing in ('adaptive', 'fixed'):
            raise ValueError(f"routing is {options.routing!r}, but a foreign model has no decoder layers of ours to "
                             "skip; expected 'auto'")
        for name, nothing in OWN_PARTS.items():
            if getattr(options, name) != nothing:
                raise ValueError(f'{name} is {getattr(options, name)}, but the model is a foreign one, which has no '
                                 f'such thing; expected {nothing}')
        return 'none'

    def _step(self, image: np.ndarray, state: TemporalState, stamp_s: float | None, stream_break: str | None
              ) -> FrameResult:
        options, size = self._options, image.shape[:2]
        clock = StageClock(torch.device('cpu'))     # the detector's answer is on the host
        reset_reason, elapsed_s = state.begin_frame(size, stamp_s, options.reset_gap_s, stream_break)
        min_score, broken = CONTINUE_SHARE * options.score_threshold, ''
        try:
            found = [one for one in self.detector.detect(image, min_score) if one.score >= min_score]
        except NotFiniteError as error:
            found, broken = [], str(error)
        clock.lap('encoder')
        for one in found:
            check_found(one, len(self.class_names), *size)
        detections = self._detections([one for one in found if self._allowed[one.class_id]], image)
        clock.lap('masks')
        # no slots: what they tell is the same for all
        instances = self._follow(state, detections, np.zeros(len(detections), np.int64), elapsed_s, size)
        mse, index, epoch = state.frame_mse(small_grey(image)), state.frame_index, state.epoch
        state.frame_index += 1
        if broken:
            state.reset(broken)
        clock.lap('tracker')
        times = StageTimes(**{'preprocess': 0.0, 'decoder': 0.0, **clock.times()})
        return FrameResult(*size, index, epoch, instances, RoutingTrace((), np.zeros(0, np.float32)), mse, times,
                           reset_reason)

    def _detections(self, found: Sequence[Found], image: np.ndarray) -> list[Detection]:
        """Return the objects as the tracker takes them, each once, by falling score; without empty masks."""
        found = [one for one in found if one.mask.any()]
        if not found:
            return []
        size = image.shape[:2]
        factor = min(1.0, SHORT_CELLS / min(size))
        rows, columns = (max(1, round(n * factor)) for n in size)
        cells = np.array([on_cells(one, size, rows, columns) for one in found])
        scores, classes = np.array([one.score for one in found]), np.array([one.class_id for one in found])
        small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
        detections = []
        for query, k in enumerate(without_duplicates(cells, scores, classes)):
            box, mask = tight(found[k])
            class_scores = np.zeros(len(self.class_names), np.float32)
            class_scores[found[k].class_id] = found[k].score
            detections.append(Detection(query, class_scores, cells[k].copy(), np.zeros(1, np.float32),
                                        colour_signature(small, cells[k]), box, int(mask.sum()), encode_runs(mask)))
        return detections


def on_cells(found: Found, size: tuple[int, int], rows: int, columns: int) -> np.ndarray:
    """Return which cells ``(rows, columns)`` of a grid on the image a mask covers at their centres, at least one."""
    x, y, w, h = found.box
    cells = np.zeros((rows, columns), bool)
    at_y, at_x = (((np.arange(n) + 0.5) * s / n).astype(int) for n, s in zip((rows, columns), size, strict=True))
    (top, bottom), (left, right) = np.searchsorted(at_y, (y, y + h)), np.searchsorted(at_x, (x, x + w))
    cells[top:bottom, left:right] = found.mask[at_y[top:bottom, None] - y, at_x[left:right] - x]
    if not cells.any():     # it lies between the centres
        inside_y, inside_x = (int(index[0]) for index in found.mask.nonzero())
        cells[(y + inside_y) * rows // size[0], (x + inside_x) * columns // size[1]] = True
    return cells


def tight(found: Found) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """Return the tight box of a mask on the image, and the mask inside it."""
    (y, x), (rows, columns) = found.box[1::-1], (np.flatnonzero(found.mask.any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return ((int(x + left), int(y + top), int(right - left), int(bottom - top)),
            found.mask[top:bottom, left:right])
