"""The one door: an image and a stream's state in, tracked instances out."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tar_vis_core.detection import Detection, detect
from tar_vis_core.errors import NotFiniteError, unknown_name
from tar_vis_core.instances import FrameResult, Instance, RoutingTrace, StageTimes, TrackStatus
from tar_vis_core.io.paths import user_path
from tar_vis_core.models.cuda_graphs import recorded_parts
from tar_vis_core.models.deformable import head_widths
from tar_vis_core.models.packed import inference_dtype, inference_form
from tar_vis_core.models.presets import find_preset
from tar_vis_core.models.seeing_routers import Past
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.options import MODEL_OPTIONS, OPTIONS, EngineOptions, Option, SegmenterOptions, options_of
from tar_vis_core.preprocess import check_image, prepare, small_grey
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.allocator import keep_freed_memory
from tar_vis_core.runtime.device import (
    StageClock,
    compute_context,
    pick_device,
    pick_precision,
    unused_gpu,
    watched,
)
from tar_vis_core.state import TemporalState
from tar_vis_core.still_picture import SegmentedFrame
from tar_vis_core.tracking.tracker import make_tracker
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

# A track goes on down to this part of the score threshold; a new one needs all of it.
CONTINUE_SHARE = 0.5
ENGINE, STAMP = options_of(EngineOptions)['engine'], Option(0.0, 'seconds')

__all__ = ['SegmenterOptions', 'TemporalState', 'VideoSegmenter']


class VideoSegmenter:
    """Online video instance segmentation. It keeps nothing between frames: one serves many streams, each with a state.

    Not to be stepped from two threads at once.
    """

    def __init__(self, preset: str = 'nano', weights: str | Path | None = None, device: str = 'auto',
                 precision: str = 'auto', options: SegmenterOptions | None = None, threads: int = 0,
                 tracker: str = 'auto', adapter: str | Path | None = None, engine: str = 'torch'):
        """Load a model. ``weights`` None takes the packaged ones; ``threads`` > 0 sets torch's threads of the process.

        A leading ``~`` of a path is the home folder.

        ``precision`` is ``float32``, ``float16``, ``bfloat16`` or ``auto``: see ``models.packed.inference_dtype``.

        ``tracker`` is one of ``presets.TRACKERS`` or ``auto``, the preset's own; ``adapter`` a file with the
        Synchronizer and Routers (TAR) for weights without them. ``engine`` runs the image encoder: ``torch``,
        ``onnxruntime``, ``openvino`` or ``openvino:DEVICE`` (``engines/encoder_engine.py``).
        Raise ``WeightsError`` (file missing, damaged, or of another model), ``DeviceError`` (device not there) and
        ValueError (unknown preset, precision, tracker or engine, an option out of range).
        """
        config, place = find_preset(preset), pick_device(device)
        dtype = inference_dtype(precision, config, place) if engine == 'torch' else pick_precision(precision)
        MODEL_OPTIONS['threads'].check('threads', threads)
        ENGINE.check('engine', engine)
        if threads:
            torch.set_num_threads(threads)
        model = load_model(preset, packaged_weights(preset) if weights is None else user_path(weights),
                           None if adapter is None else user_path(adapter))
        encoder = None
        if engine != 'torch':
            from tar_vis_core.engines.encoder_engine import EncoderEngine
            encoder = EncoderEngine(model, engine, place, dtype, threads)
        self._set_up(inference_form(model, place, dtype), place, dtype, options, tracker)
        self._engine = encoder
        self._device_remark = unused_gpu() if device == 'auto' else ''
        kernels.end_helpers()       # another thread may step

    @classmethod
    def from_model(cls, model: VideoInstanceModel, device: str = 'auto', precision: str = 'float32',
                   options: SegmenterOptions | None = None, tracker: str = 'auto', keep_memory: bool = True,
                   ) -> VideoSegmenter:
        """Return a segmenter with a model that exists already, as it is; ``inference_form`` makes a model faster.

        On a CPU the process keeps the memory that it frees (``runtime/allocator.py``), unless ``keep_memory`` is False.
        """
        segmenter = cls.__new__(cls)
        segmenter._set_up(model, pick_device(device), pick_precision(precision), options, tracker, keep_memory)
        return segmenter

    def _set_up(self, model: VideoInstanceModel, device: torch.device, dtype: torch.dtype,
                options: SegmenterOptions | None, tracker: str, keep_memory: bool = True) -> None:
        self.tracker_name = model.config.tracker if tracker == 'auto' else tracker
        self.tracker = make_tracker(self.tracker_name, model)
        if device.type == 'cpu' and keep_memory:
            keep_freed_memory()
        self.model, self.device = model.eval().to(device), device
        self.dtype = torch.float32 if model.mixes else dtype        # of automatic mixed precision
        self._recorded, self._warm, self._device_remark, self._engine = recorded_parts(model), set(), '', None
        self.class_names: tuple[str, ...] = model.config.class_names
        self.num_layers: int = model.config.decoder_layers
        self._gains = model.config.class_gains
        self.options = SegmenterOptions() if options is None else options

    @property
    def options(self) -> SegmenterOptions:
        """Return the options; assign others between frames. Raise ValueError if they do not fit the model."""
        return self._options

    @options.setter
    def options(self, options: SegmenterOptions) -> None:
        routing = self._routing(options)
        for name in options.class_filter:
            if name not in self.class_names:
                raise ValueError('class_filter: ' + unknown_name('class', name, self.class_names))
        self._options, self.routing = options, routing
        self._allowed = np.array([not options.class_filter or name in options.class_filter
                                  for name in self.class_names])

    def _routing(self, options: SegmenterOptions) -> str:
        """Return which layers run with these options. Raise ValueError if the model cannot do what they ask."""
        routers = self.model.config.routing
        if options.routing == 'adaptive' and not routers:
            raise ValueError("routing is 'adaptive', but these weights hold no routers; expected 'auto', 'full' or "
                             "'fixed', or an adapter")
        return options.routing if options.routing != 'auto' else 'adaptive' if routers else 'full'

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what runs slower here than it could, and why, one line each. It may change with a step."""
        found = [self._device_remark, *(part.remark for part in self._recorded)]
        if self.device.type == 'cuda':
            found += [kernels.no_gpu_samples(width, self.device) for width in head_widths(self.model)]
        elif kernels.compiled() is None:
            found.append('attention and group norm run by plain PyTorch, for the compiled kernels are missing: '
                         'build the package')
        return tuple(dict.fromkeys(filter(None, found)))

    @property
    def arithmetic(self) -> str:
        """Return the arithmetic of the network, such as ``float32``."""
        return 'float32, products in bfloat16' if self.model.mixes else str(self.dtype).removeprefix('torch.')

    @property
    def recordings(self) -> int:
        """Return how many CUDA graphs were recorded, or graphs of an engine compiled, until now."""
        return sum(part.made for part in self._recorded) + (self._engine.made if self._engine else 0)

    def needs_recording(self, height: int, width: int) -> bool:
        """Return whether :meth:`warm_up` has graphs to record or compile for images of that size: it takes seconds."""
        return bool(self._recorded or self._engine) and (height, width) not in self._warm

    def new_state(self, epoch: int = 0) -> TemporalState:
        """Return the state of a stream that has not begun; its tracks are of ``epoch`` until the first reset."""
        return TemporalState(epoch=epoch)

    def reset(self, state: TemporalState, reason: str) -> None:
        """Forget a stream's past at once; its next result says ``requested: <reason>`` and has a new epoch."""
        state.reset(f'requested: {reason}')

    def warm_up(self, height: int, width: int) -> None:
        """Run some steps on an image of that size, so that everything is allocated and recorded for the first frame."""
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        options = self._options
        try:
            # with this bias all layers run although all routers are asked
            self._options = replace(options, skip_bias=OPTIONS['skip_bias'].low, encoder_reuse=0.0)
            state = self.new_state()
            for _ in range(2):
                self.step(image, state)
        finally:
            self._options = options
        self._warm.add((height, width))
        if self._engine:
            self._engine.compare_again()
        kernels.end_helpers()       # another thread may step

    def step(self, image: np.ndarray, state: TemporalState, stamp_s: float | None = None,
             stream_break: str | None = None) -> FrameResult:
        """Segment and track the next frame of a stream. This changes ``state``.

        ``image`` is uint8 RGB ``(H, W, 3)``, ``stamp_s`` its time in seconds if known. Raise ValueError for
        another image or a stamp that is not finite, before ``state`` is touched. ``stream_break`` is for callers that
        leave frames out: the answer of their own ``StampWatch`` for all frames, '' or the reason to begin new tracks.
        Raise DeviceLostError if the GPU can no longer compute in this process.
        """
        image = check_image(image)
        if stamp_s is not None:
            STAMP.check('stamp_s', stamp_s)
        with watched(self.device):
            return self._step(image, state, stamp_s, stream_break)

    def _step(self, image: np.ndarray, state: TemporalState, stamp_s: float | None, stream_break: str | None
              ) -> FrameResult:
        clock = StageClock(self.device)
        with kernels.seated_threads() if self.device.type == 'cpu' else contextlib.nullcontext():
            return self._timed_step(image, state, stamp_s, stream_break, clock)

    @torch.inference_mode()
    def _timed_step(self, image: np.ndarray, state: TemporalState, stamp_s: float | None, stream_break: str | None,
                    clock: StageClock) -> FrameResult:
        options, size = self._options, image.shape[:2]
        budget, recordings = state.budget_of(options.latency_budget_ms), self.recordings
        reset_reason, elapsed_s = state.begin_frame(size, stamp_s, options.reset_gap_s, stream_break)
        small = small_grey(image) if state.segmented else None
        if state.segmented and state.segmented.stands_for(small, options):
            segmented, broken = replace(state.segmented, reused=state.segmented.reused + 1), ''
            trace = RoutingTrace((False,) * self.num_layers, np.full(self.num_layers, np.nan, np.float32))
            clock.lap('preprocess')
        else:
            segmented, trace, broken = self._segment(image, small, state, budget.bias if budget else 0.0, clock)
            small = segmented.small
        instances = self._follow(state, segmented.detections, segmented.slots, elapsed_s, size)
        state.segmented = segmented if options.encoder_reuse else None
        mse, index, epoch = state.frame_mse(small), state.frame_index, state.epoch
        state.frame_index += 1
        if broken:  # it would poison all frames to come
            state.reset(broken)
        clock.lap('tracker')
        times = StageTimes(**clock.times())
        # a step that records takes seconds, once
        if budget and not segmented.reused and self.recordings == recordings:
            budget.update(times.total, trace.executed_layers, self.num_layers, trace.routed)
        return FrameResult(*size, index, epoch, instances, trace, mse, times, reset_reason, segmented.reused > 0)

    def _segment(self, image: np.ndarray, small: np.ndarray | None, state: TemporalState, bias: float,
                 clock: StageClock) -> tuple[SegmentedFrame, RoutingTrace, str]:
        """Run the model on an image. Return what it found, which layers ran, and which numbers were not finite."""
        options = self._options
        with compute_context(self.device, self.dtype):
            images, geometry = prepare(self.model, image, options.input_short_side or self.model.config.short_side)
            clock.lap('preprocess')
            features = self._engine.encode(images) if self._engine else self.model.encode(images)
            small = small_grey(image) if small is None else small       # while a GPU is at work
            clock.lap('encoder')
            out = self.model.decode(features, self._previous(state), self.routing, options.fixed_layers,
                                    options.skip_bias + bias)
            clock.lap('decoder')
            tracked, state.tracker_memory = self.tracker.track(out, features.mask_features, state.tracker_memory)
            clock.lap('tracker')
        try:
            detections, broken = detect(tracked, features, image, geometry, CONTINUE_SHARE * options.score_threshold,
                                        self._allowed, self._gains), ''
        except NotFiniteError as error:
            detections, broken = [], str(error)
        clock.lap('masks')
        if tracked.hidden is not None:
            state.identities.end_all_but(tracked.slots[0])
        state.previous = out.past
        return SegmentedFrame(small, options, detections, tracked.slots[0]), out.trace, broken

    def _follow(self, state: TemporalState, detections: list[Detection], slots: np.ndarray, elapsed_s: float,
                size: tuple[int, int]) -> list[Instance]:
        """Return the tracked instances of a frame of ``size``; see :meth:`IdentityTracker.update`."""
        options, identities = self._options, state.identities
        identities.grace_frames, identities.by_slot = options.grace_frames, self.tracker_name != 'motion'
        tracks = identities.update(detections, slots, options.score_threshold, options.max_instances, elapsed_s, *size)
        return [identities.instance(track, status, self.class_names) for track, status in tracks
                if self._allowed[track.class_id] or status != TrackStatus.LOST]

    def _previous(self, state: TemporalState) -> Past | None:
        """Return what the last frame left, or None if this frame is decoded plainly.

        The synchronized queries are a recurrence. It is trained on clips of a few frames, and over hundreds its errors
        add up until an object is missed; a plain pass now and then renews them. The paper has none (``0``).
        """
        every = self._options.refresh_frames
        return None if every and state.frame_index % every == 0 else state.previous
