"""Sessions of ONNX Runtime, an optional part of the package: nothing imports it before a session is opened."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tar_vis_core.errors import DeviceError, TarVisError, WeightsError, first_line

if TYPE_CHECKING:
    import onnxruntime


def need(module: str, what: str, extra: str) -> None:
    """Raise TarVisError that says how to install an optional module if it is missing."""
    if find_spec(module) is None:
        raise TarVisError(f'{what} needs {module}, which is not installed; run: pip install "tar-vis-ros[{extra}]", or '
                          f'pip install {module}')


def open_session(model: Path | bytes, device: str, threads: int, what: str, *, alone: bool = False,
                 ) -> onnxruntime.InferenceSession:
    """Return a session of an ONNX file, or of its bytes, on ``cpu`` or ``cuda:N``. ``what`` names it in errors.

    ``threads`` 0 takes as many as this process may use. ``alone``: no other threads of this process compute. Raise
    TarVisError without ONNX Runtime, DeviceError if it cannot use the device, and WeightsError if it cannot load the
    model.
    """
    need('onnxruntime', what, 'onnx')
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4      # what is wrong comes as an exception
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    if alone:
        # its threads spin inside a run, but not behind it: they would take time from what is measured next
        options.add_session_config_entry('session.force_spinning_stop', '1')
    else:
        # Its threads spin while they wait, beside torch's: both then have half of the processors.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.add_session_config_entry('session.inter_op.allow_spinning', '0')
    provider = 'CPUExecutionProvider' if device == 'cpu' else 'CUDAExecutionProvider'
    there = onnxruntime.get_available_providers()
    if provider not in there:
        raise DeviceError(f'device {device!r}: this ONNX Runtime has {", ".join(there)}; install onnxruntime-gpu in '
                          "place of onnxruntime, or set device to 'cpu'")
    settings = {} if device == 'cpu' else {'device_id': device.partition(':')[2] or '0'}
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=[(provider, settings)])
    except Exception as error:      # ONNX Runtime has a class of its own for each kind
        raise WeightsError(f'{what}: ONNX Runtime {onnxruntime.__version__} cannot load it: {first_line(error)}'
                           ) from error
    if session.get_providers()[0] != provider:      # it takes the CPU without a word
        raise DeviceError(f'device {device!r}: ONNX Runtime could not start {provider}; does its build fit the driver?')
    return session
