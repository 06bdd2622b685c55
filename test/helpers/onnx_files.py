"""Small ONNX files of instance segmenters whose answers are known: they see what is red and what is blue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

NAMES = {0: 'red thing', 1: 'blue thing'}
WHOLE = (0.0, 0.0, 1.0, 1.0)        # corners, as shares of the input


def colour_model(path: Path, height: int = 64, width: int = 96, selected: bool = False, opset: int = 17,
                 boxes: Sequence[Sequence[float]] = (WHOLE, WHOLE), repeats: int = 1, half: bool = False,
                 metadata: Mapping[str, str] | None = None, free: bool = False, gain: float = 8.0) -> Path:
    """Write a segmenter with two prototypes, how red and how blue each cell of four pixels is, and an object of each.

    Object k has class k, the corners ``boxes[k]`` and a score that rises with the most of its colour. ``selected``
    gives them as rows of corners, score and class; else as columns, each ``repeats`` times with falling scores.
    ``free`` leaves the input's size open. ``metadata`` takes the place of names, task and size.
    """
    kind, real = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    constants: dict[str, np.ndarray] = {}

    def constant(name: str, value: object, dtype: type = real) -> str:
        constants[name] = np.asarray(value, dtype)
        return name

    size = np.array([width, height] * 2)
    corners = np.array(boxes) * size
    nodes = [
        helper.make_node('AveragePool', ['images'], ['pooled'], kernel_shape=[4, 4], strides=[4, 4]),
        # red less green, blue less green
        helper.make_node('Conv', ['pooled', constant('mix', np.array([[1, -1, 0], [0, -1, 1]])[..., None, None])],
                         ['colours']),
        helper.make_node('Sub', ['colours', constant('half', 0.5)], ['above']),
        helper.make_node('Mul', ['above', constant('gain', gain)], ['output1']),
        helper.make_node('ReduceMax', ['above'], ['most'], axes=[2, 3], keepdims=0),     # (1, 2)
        helper.make_node('Mul', ['most', constant('sure', 10)], ['sure_most']),
        helper.make_node('Sigmoid', ['sure_most'], ['scores']),
    ]
    if selected:
        nodes += [
            helper.make_node('Reshape', ['scores', constant('column', [1, 2, 1], np.int64)], ['score_column']),
            helper.make_node('Concat', [constant('corners', corners[None]), 'score_column', constant(
                'class', [[[0], [1]]]), constant('coefficients', np.eye(2)[None])], ['output0'], axis=2)]
    else:
        centres = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1).T
        fading = 1 - 0.05 * np.arange(repeats).repeat(2)
        nodes += [
            helper.make_node('Reshape', ['scores', constant('column', [1, 2, 1], np.int64)], ['score_column']),
            helper.make_node('Mul', ['score_column', constant('own', np.tile(np.eye(2), repeats)[None] * fading)],
                             ['class_rows']),
            helper.make_node('Concat', [constant('centres', np.tile(centres, repeats)[None]), 'class_rows', constant(
                'coefficients', np.tile(np.eye(2), repeats)[None])], ['output0'], axis=1)]
    pictures = helper.make_tensor_value_info('images', kind, [1, 3, *(('h', 'w') if free else (height, width))])
    answers = [helper.make_tensor_value_info(name, kind, None) for name in ('output0', 'output1')]
    graph = helper.make_graph(nodes, 'colours', [pictures], answers,
                              [numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=9)
    if metadata is None:
        metadata = {'task': 'segment', 'names': str(NAMES), 'imgsz': str([height, width]), 'stride': '32'}
    helper.set_model_props(model, dict(metadata))
    save(model, path)
    return path


def picture(height: int, width: int, red: Sequence[int] = (), blue: Sequence[int] = ()) -> np.ndarray:
    """Return a grey image with rectangles (x, y, width, height)."""
    image = np.full((height, width, 3), 100, np.uint8)
    for box, colour in ((red, (255, 0, 0)), (blue, (0, 0, 255))):
        if box:
            x, y, w, h = box
            image[y:y + h, x:x + w] = colour
    return image
