"""Models whose parts are recorded and played on a tape of operators, beside the same models as they are."""

from __future__ import annotations

import copy

import numpy as np
import torch
from tape import TapeRecorder
from tiny_model import picture, tiny_model

from tar_vis_core.models.cuda_graphs import record_parts, recorded_parts
from tar_vis_core.models.packed import with_weights_in
from tar_vis_core.runtime.device import pick_precision
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter


def pair(recorder=None, precision='float32', **changes) -> list[VideoSegmenter]:
    """A plain segmenter and one of the same model with its parts recorded."""
    model = tiny_model(**changes)
    options = SegmenterOptions(score_threshold=0.05, max_instances=50, refresh_frames=4)
    cast = with_weights_in(copy.deepcopy(model), pick_precision(precision))
    return [VideoSegmenter.from_model(one, 'cpu', precision, options) for one in (
        model, record_parts(cast, recorder or TapeRecorder()))]


def recordings(model) -> int:
    """How many there are now."""
    parts = recorded_parts(model)
    assert len(parts) >= 7
    return sum(len(sizes) for part in parts for sizes in part._recordings.values())


def assert_equal(found, expected):
    assert found.routing.executed == expected.routing.executed
    np.testing.assert_array_equal(found.routing.execute_probability, expected.routing.execute_probability)
    assert [(i.track_id, i.status, i.class_id, i.score, i.box, i.runs.tolist()) for i in found.instances] == [
        (i.track_id, i.status, i.class_id, i.score, i.box, i.runs.tolist()) for i in expected.instances]


def spread_routers(model) -> None:
    """Routers that skip some layers, by picture."""
    if model.decoder.routers is not None:
        generator = torch.Generator().manual_seed(1)
        for weight in (model.decoder.routers.weight2, model.decoder.routers.bias2):
            with torch.no_grad():
                weight.copy_(2 * torch.randn(weight.shape, generator=generator))


def steps_of_many_sizes(plain, played, widths, turns: int):
    """Step both through images of each width in turn, and once more through the width before. Yield both results.

    With more widths than are kept, each new one makes an old recording go while the width before stays.
    """
    states = {width: [one.new_state() for one in (plain, played)] for width in widths}
    for turn in range(turns):
        before = None
        for width in widths:
            for again in filter(None, (width, before)):
                yield [one.step(picture(turn, 96, again), state) for one, state in zip(
                    (plain, played), states[again], strict=True)]
            before = width
