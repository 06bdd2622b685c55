"""Load and comparison for a measurement: busy processes, and another network that takes turns."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from tar_vis_core.runtime.onnx_sessions import open_session


def _work() -> None:
    """Read and write memory without end, as a busy program does."""
    numbers = np.ones(1 << 20, np.float32)
    while True:
        numbers *= 1.0001
        numbers /= numbers.max()


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep that many processes busy while the block runs; they may use the processors that this one may use."""
    context = multiprocessing.get_context('spawn')
    workers = [context.Process(target=_work, daemon=True) for _ in range(count)]
    try:
        for worker in workers:
            worker.start()
        time.sleep(1.0 if count else 0.0)       # until all of them work
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


class Rival:
    """A network in an ONNX file, run by ONNX Runtime; the only one of its process, as a user would run it.

    Timed is the network alone, on an image that is resized to its input already.
    """

    @classmethod
    def begin(cls, path: str, threads: int) -> str:
        """Load the file; the first call in a new process. Return its input's size in words.

        Raise ValueError if it does not take one image.
        """
        cls.session = open_session(Path(path), 'cpu', threads, path, alone=True)
        cls.input, *others = cls.session.get_inputs()
        shape = cls.input.shape
        if others or len(shape) != 4 or 3 not in shape[1::2] or cls.input.type not in ('tensor(float)',
                                                                                      'tensor(uint8)'):
            raise ValueError(f'{path}: inputs {[(i.type, i.shape) for i in (cls.input, *others)]}, expected one image '
                             'of float32 or uint8, (1, 3, height, width) or (1, height, width, 3)')
        cls.channels_first = shape[1] == 3
        return 'x'.join(map(str, shape))

    @classmethod
    def take(cls, image: np.ndarray) -> float:
        """Return the milliseconds of the network on an image, uint8 RGB, at the input's size or else the image's."""
        sides = cls.input.shape[2:] if cls.channels_first else cls.input.shape[1:3]
        height, width = (size if isinstance(size, int) else -(-own // 32) * 32
                         for size, own in zip(sides, image.shape[:2], strict=True))
        x = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)[None]
        if cls.input.type == 'tensor(float)':
            x = x.astype(np.float32) / 255
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2) if cls.channels_first else x)
        began = time.perf_counter()
        cls.session.run(None, {cls.input.name: x})
        return 1e3 * (time.perf_counter() - began)
