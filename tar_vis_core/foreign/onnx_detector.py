"""Instance segmenters in ONNX files whose outputs are boxes, scores, mask coefficients and prototype masks.

That is how Ultralytics exports the segment models of YOLOv8, YOLO11 and YOLO26, with names and sizes in the file's
metadata. Two layouts of the first output are read, K being the coefficients of a mask:

- ``(1, 4 + classes + K, N)``: centre, width, height, a score for each class. Neighbours repeat each other.
- ``(1, N, 6 + K)``: corners, score, class, of objects that are selected already (``end2end``, or ``nms=True``).

The other output is ``(1, K, h, w)``. Boxes are in pixels of the input; a mask is positive within its box where the
product of its coefficients and the prototypes is.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tar_vis_core.errors import NotFiniteError, WeightsError, first_line
from tar_vis_core.foreign.found import Found
from tar_vis_core.runtime.onnx_sessions import open_session

PAD = 114               # the grey around the picture that these models are trained with
MOST = 100              # objects of an image, surest first
SAME_OBJECT_IOU = 0.7   # boxes of one class that overlap more are of one object
TYPES = {'tensor(float)': np.float32, 'tensor(float16)': np.float16}
EXPECTED = ('expected an instance segmenter with one input (1, 3, height, width) and two outputs, '
            '(1, 4 + classes + K, N) or (1, N, 6 + K), and (1, K, h, w)')


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in the network's input: resized, in the middle, with grey around it."""

    size: tuple[int, int]       # of the resized image, height and width
    corner: tuple[int, int]     # of its upper left pixel in the input, y and x
    scale: tuple[float, float]  # input pixels to an image pixel, y and x

    @classmethod
    def of(cls, source: tuple[int, int], target: tuple[int, int]) -> Letterbox:
        """Return that of an image in an input; both are height and width."""
        factor = min(t / s for t, s in zip(target, source, strict=True))
        size = tuple(min(t, max(1, round(s * factor))) for t, s in zip(target, source, strict=True))
        corner = tuple((t - n) // 2 for t, n in zip(target, size, strict=True))
        return cls(size, corner, tuple(n / s for n, s in zip(size, source, strict=True)))

    def filled(self, image: np.ndarray, target: tuple[int, int]) -> np.ndarray:
        """Return the input for an image, uint8 RGB ``(*target, 3)``."""
        canvas, (y, x), (h, w) = np.full((*target, 3), PAD, np.uint8), self.corner, self.size
        canvas[y:y + h, x:x + w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        return canvas


class OnnxDetector:
    """An instance segmenter out of an ONNX file; see the module."""

    def __init__(self, path: Path, device: str = 'cpu', threads: int = 0):
        """Open a file and try it. Raise WeightsError that says what is wrong with it, and as ``open_session`` does."""
        if not path.is_file():
            raise WeightsError(f'{path}: there is no such file; weights is the .onnx file for the model onnx')
        self._path, self._session = path, open_session(path, device, threads, str(path))
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.class_names = class_names(metadata, path)
        (self._input, *others), outputs = self._session.get_inputs(), self._session.get_outputs()
        if others or len(self._input.shape) != 4 or self._input.type not in TYPES:
            raise self._wrong(f'it has the inputs {_told(self._session.get_inputs())}')
        if len(outputs) != 2:
            task = metadata.get('task', '')
            raise self._wrong(f'it has the outputs {_told(outputs)}' + (f' (its task is {task!r})' if task else ''))
        self.size = self._input_size(metadata)
        try:
            given = self._run(np.full((*self.size, 3), PAD, np.uint8))
        except Exception as error:      # ONNX Runtime has a class of its own for each kind
            raise self._wrong(f'it fails on a picture of {self.size[1]}x{self.size[0]}: {first_line(error)}') from error
        self._selected = self._layout(given, metadata)

    def _wrong(self, why: str) -> WeightsError:
        return WeightsError(f'{self._path}: {why}; {EXPECTED}')

    def _input_size(self, metadata: Mapping[str, str]) -> tuple[int, int]:
        """Return height and width of the input, from the file's shape, or else from its metadata."""
        batch, channels, *size = self._input.shape
        if (isinstance(batch, int) and batch != 1) or channels != 3:
            raise self._wrong(f'its input is {_told([self._input])}')
        if not all(isinstance(n, int) for n in size):
            said = literal(metadata.get('imgsz', ''))
            size = [said, said] if isinstance(said, int) else said
            if not (isinstance(size, list | tuple) and len(size) == 2 and all(
                    isinstance(n, int) and not isinstance(n, bool) for n in size)):
                raise self._wrong(f'its input {_told([self._input])} has no size and its metadata no imgsz: export it '
                                  'with a size')
        if not all(0 < n <= 8192 for n in size):
            raise self._wrong(f'its input is {size[1]}x{size[0]}')
        return tuple(size)

    def _layout(self, given: list[np.ndarray], metadata: Mapping[str, str]) -> bool:
        """Return whether the objects are selected already. Raise WeightsError if the outputs are of another kind."""
        shapes = [tuple(output.shape) for output in given]
        if sorted(map(len, shapes)) == [3, 4] and all(map(all, shapes)):
            rows, prototypes = sorted(shapes, key=len)
            selected = rows[2] == 6 + prototypes[1]
            raw = rows[1] == 4 + len(self.class_names) + prototypes[1]
            if selected or raw:
                return selected and (not raw or metadata.get('end2end') == 'True')
        raise self._wrong(f'its outputs are {", ".join(map(str, shapes))} with {len(self.class_names)} classes in its '
                          'metadata')

    def _run(self, picture: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for a picture of the input's size, uint8 RGB."""
        pixels = cv2.dnn.blobFromImage(picture, 1 / 255).astype(TYPES[self._input.type], copy=False)
        return self._session.run(None, {self._input.name: pixels})

    def detect(self, image: np.ndarray, min_score: float) -> list[Found]:
        """Return the objects in an image, uint8 RGB ``(H, W, 3)``. Raise NotFiniteError for numbers that are none."""
        letterbox = Letterbox.of(image.shape[:2], self.size)
        rows, prototypes = sorted(self._run(letterbox.filled(image, self.size)), key=np.ndim)
        boxes, scores, classes, coefficients = (self._selected_rows if self._selected else self._raw_rows)(
            rows[0].astype(np.float32, copy=False), min_score)
        prototypes = prototypes[0].astype(np.float32, copy=False)
        with np.errstate(all='ignore'):     # raised below
            logits = (coefficients @ prototypes.reshape(len(prototypes), -1)).reshape(-1, *prototypes.shape[1:])
        if not (np.isfinite(logits).all() and np.isfinite(boxes).all()):
            raise NotFiniteError
        found = [_drawn(*one, image.shape[:2], self.size, letterbox) for one in zip(
            boxes, scores, classes, logits, strict=True)]
        return [one for one in found if one is not None]

    def _selected_rows(self, rows: np.ndarray, min_score: float) -> tuple[np.ndarray, ...]:
        """Return boxes as corners, scores, classes and coefficients of ``(N, 6 + K)``."""
        scores = rows[:, 4]
        if not np.isfinite(scores).all():
            raise NotFiniteError
        rows = rows[scores >= min_score]
        rows = rows[np.argsort(-rows[:, 4], kind='stable')[:MOST]]
        return rows[:, :4], rows[:, 4], rows[:, 5].astype(int), rows[:, 6:]

    def _raw_rows(self, rows: np.ndarray, min_score: float) -> tuple[np.ndarray, ...]:
        """Return boxes as corners, scores, classes and coefficients of ``(4 + classes + K, N)``, an object once."""
        end = 4 + len(self.class_names)
        scores = rows[4:end].max(0)
        if not np.isfinite(scores).all():
            raise NotFiniteError
        likely = np.flatnonzero(scores >= min_score)
        likely = likely[np.argsort(-scores[likely], kind='stable')]
        rows, scores = rows[:, likely].T, scores[likely]
        corners, sides, classes = rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4], rows[:, 4:end].argmax(1)
        alone = list(cv2.dnn.NMSBoxesBatched(np.concatenate([corners, sides], 1), scores, classes, -1,
                                             SAME_OBJECT_IOU))[:MOST]
        boxes = np.concatenate([corners, corners + sides], 1)
        return boxes[alone], scores[alone], classes[alone], rows[alone, end:]


def _drawn(box: np.ndarray, score: float, class_id: int, logits: np.ndarray, source: tuple[int, int],
           target: tuple[int, int], letterbox: Letterbox) -> Found | None:
    """Return an object with its mask in source pixels, None if its box has none. ``box`` is of corners in the input."""
    corner, scale = np.array(letterbox.corner[::-1]), np.array(letterbox.scale[::-1])
    limits = np.array(source[::-1])
    (x0, y0), (x1, y1) = (np.rint((part - corner) / scale).clip(0, limits).astype(int) for part in (box[:2], box[2:]))
    if x0 >= x1 or y0 >= y1:
        return None
    # where a source pixel's centre lies on the prototypes' grid
    cells = np.array(logits.shape[::-1]) / np.array(target[::-1])
    step, start = scale * cells, ((np.array([x0, y0]) + 0.5) * scale + corner) * cells - 0.5
    window = cv2.warpAffine(logits, np.array([[step[0], 0, start[0]], [0, step[1], start[1]]]),
                            (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                            borderMode=cv2.BORDER_REPLICATE)
    return Found(int(class_id), float(min(score, 1.0)), (int(x0), int(y0), int(x1 - x0), int(y1 - y0)), window > 0)


def class_names(metadata: Mapping[str, str], path: Path) -> tuple[str, ...]:
    """Return the names of the classes, by their number. Raise WeightsError if the file does not say them."""
    said = literal(metadata.get('names', ''))
    if isinstance(said, list | tuple):
        said = dict(enumerate(said))
    if not isinstance(said, dict) or not said or set(said) != set(range(len(said))) or not all(
            isinstance(name, str) for name in said.values()):
        raise WeightsError(f"{path}: its metadata name no classes; expected the key 'names' with {{0: 'person', ...}}, "
                           'as Ultralytics writes it')
    return tuple(said[k] for k in range(len(said)))


def literal(text: str) -> object:
    """Return the Python value that a text of the metadata writes, None if it writes none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _told(values: list) -> str:
    return ', '.join(f'{value.name} {value.type} {tuple(value.shape)}' for value in values)
