"""The image encoder of a segmenter, run by ONNX Runtime or OpenVINO in place of PyTorch.

A graph is compiled for each size of the network's input. It is compared with PyTorch on the image that it is compiled
for and on the first one of a stream of such images; if it differs, that is an error. Nothing falls back to PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from tar_vis_core.engines.encoder_graph import INPUT, EncoderGraph
from tar_vis_core.engines.static_graph import StaticGraph, gap
from tar_vis_core.errors import DeviceError, TarVisError, first_line
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.runtime.onnx_sessions import need, open_session

Run = Callable[[np.ndarray], list[np.ndarray]]      # images to outputs, in the graph's order
# Greatest difference to PyTorch, as a share of an output's range.
LARGEST_GAP = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class EngineError(TarVisError):
    """An engine is not there, cannot do what is asked, or computes something else than PyTorch."""


class EncoderEngine:
    """The encoder of a model in a runtime; a graph for each input size that has come."""

    def __init__(self, model: VideoInstanceModel, engine: str, device: torch.device, dtype: torch.dtype,
                 threads: int) -> None:
        """Take a copy of the weights of a plain model, one that ``inference_form`` has not changed.

        ``engine`` is ``onnxruntime``, ``openvino`` or ``openvino:DEVICE``. Raise EngineError if it cannot run here.
        """
        name, _, place = engine.partition(':')
        if device.type != 'cpu':
            raise EngineError(f"engine is {engine!r} and device is '{device}', but engines hand over to PyTorch on the "
                              'CPU; expected device cpu, or engine torch')
        if dtype not in LARGEST_GAP or (name == 'onnxruntime' and dtype != torch.float32):
            raise EngineError(f'engine is {engine!r}, which has no {str(dtype).removeprefix("torch.")}; expected '
                              + ('float32' if name == 'onnxruntime' else 'float32 or bfloat16'))
        need(name, f'engine {engine}', 'onnx' if name == 'onnxruntime' else name)
        self.name, self._place, self._dtype = engine, place or 'CPU', dtype
        self._threads = threads or len(os.sched_getaffinity(0))
        self._compile = self._openvino if name == 'openvino' else self._onnxruntime
        if name == 'openvino':
            self._check_place()
        self.graph = EncoderGraph(model.float())
        self._compiled: dict[tuple[int, int], Run] = {}
        self._compared: set[tuple[int, int]] = set()

    @property
    def made(self) -> int:
        """Return how many graphs were compiled until now."""
        return len(self._compiled)

    def compare_again(self) -> None:
        """Compare the next image of each size with PyTorch: it is the first of a camera, after made-up ones."""
        self._compared.clear()

    def encode(self, images: Tensor) -> Features:
        """Return the features of ``images (1, 3, H, W)``. Raise EngineError if they are not those of PyTorch."""
        size = tuple(images.shape[-2:])
        if size not in self._compiled:
            self._compiled[size] = self._compile(self.graph.onnx(*size))
        outputs = [torch.from_numpy(array) for array in self._compiled[size](images.numpy())]
        if size not in self._compared:
            self._compare(self.graph(images), outputs)
            self._compared.add(size)
        return self.graph.features(outputs)

    def _compare(self, expected: Sequence[Tensor], got: Sequence[Tensor]) -> None:
        off = gap(*([part.float() for part in side] for side in (expected, got)))
        if not off <= LARGEST_GAP[self._dtype]:     # not-a-number is off, too
            raise EngineError(f'engine {self.name} computes something else than PyTorch: its outputs differ by '
                              f'{off:.2g} of their range, expected at most {LARGEST_GAP[self._dtype]:g}; use engine '
                              'torch')

    def _onnxruntime(self, model: bytes) -> Run:
        session = open_session(model, 'cpu', self._threads, f'engine {self.name}')
        return lambda images: session.run(None, {INPUT: images})

    def _check_place(self) -> None:
        import openvino

        there = openvino.Core().available_devices
        if not any(name.partition('.')[0] == self._place.partition('.')[0] for name in there):
            raise DeviceError(f'engine {self.name!r}: OpenVINO has {", ".join(there)} here')

    def _openvino(self, model: bytes) -> Run:
        run = openvino_run(model, self._place, self._dtype, self._threads, f'engine {self.name}')
        return lambda images: run([images])


def openvino_run(model: bytes, place: str, dtype: torch.dtype, threads: int, what: str
                 ) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Compile an ONNX file for a device of OpenVINO's. ``what`` names it in an EngineError."""
    import openvino
    from openvino import properties

    settings = {properties.hint.performance_mode(): properties.hint.PerformanceMode.LATENCY,
                properties.hint.inference_precision(): openvino.Type.bf16 if dtype == torch.bfloat16
                else openvino.Type.f32}
    if place == 'CPU':
        settings[properties.inference_num_threads()] = threads
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model=model, weights=b''), place, settings)
    except Exception as error:      # OpenVINO raises RuntimeError of many lines
        raise EngineError(f'{what}: OpenVINO cannot compile it: {first_line(error)}') from error
    request = compiled.create_infer_request()

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        request.infer(list(inputs), share_inputs=True)
        # copies: the next call overwrites them
        return [np.array(request.get_output_tensor(k).data) for k in range(len(compiled.outputs))]
    return run


def runtimes_here(model: bytes, what: str) -> Iterator[tuple[str, Callable[[dict[str, Tensor]], list[np.ndarray]]]]:
    """Yield name and call of each runtime for an ONNX file: ONNX Runtime, and OpenVINO if it is installed."""
    session = open_session(model, 'cpu', 0, what)
    yield 'ONNX Runtime', lambda inputs: session.run(None, {name: value.numpy() for name, value in inputs.items()})
    if find_spec('openvino'):
        run = openvino_run(model, 'CPU', torch.float32, 0, what)
        yield 'OpenVINO', lambda inputs: run([value.numpy() for value in inputs.values()])


def check_outputs(graph: StaticGraph, model: bytes, height: int, width: int) -> dict[str, float]:
    """Return the greatest gap between the graph in PyTorch and its file in each runtime, on random inputs of a size."""
    found = {}
    for name, run in runtimes_here(model, 'the export'):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found[name] = max(gap(graph(*given.values()), [torch.from_numpy(output) for output in run(given)])
                              for given in (graph.inputs(height, width) for _ in range(2)))
    return found
