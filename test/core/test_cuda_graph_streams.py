"""Two cameras of different sizes in turn: every kind of model whose parts are played answers as the model itself.

On a tape of operators in place of a graph: the same rules, on any machine.
"""

from __future__ import annotations

import pytest
from played_models import assert_equal, pair, spread_routers
from tiny_model import picture

from tar_vis_core.runtime import kernels

OFFICIAL = dict(class_names=('one', 'two'))
MODELS = {
    'nano': {}, 'bipartite': dict(synchronizer='bipartite'),
    'plain': dict(routing=False),
    'official': OFFICIAL, 'memory bank': dict(**OFFICIAL, reid=True, tracker='memory_bank'),
    **{tracker: dict(**OFFICIAL, reid=True, tracker_layers=2, tracker_ffn=16, tracker=tracker)
       for tracker in ('referring', 'referring_2023', 'dynamic_anchors')}}

# all parts of all models can be recorded
pytestmark = pytest.mark.filterwarnings('error:.*operator by operator')


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch):
    """The tape sees torch's operators only."""
    monkeypatch.setattr(kernels, 'compiled', lambda: None)


@pytest.mark.parametrize(('name', 'precision'), [
    *((name, 'float32') for name in MODELS),
    *((name, 'bfloat16') for name in ('nano', 'referring', 'dynamic_anchors'))])
def test_two_streams_of_two_sizes_are_answered_as_by_the_parts_themselves(name, precision):
    plain, played = pair(precision=precision, **MODELS[name])
    for one in (plain, played):
        spread_routers(one.model)
    streams = {one: (one.new_state(), one.new_state()) for one in (plain, played)}
    executed, seen = set(), 0
    for frame in range(7):
        for camera, size in enumerate([(96, 128), (60, 132)]):
            image = picture(10 * camera + frame, *size)
            results = [one.step(image, streams[one][camera]) for one in (plain, played)]
            assert_equal(*results[::-1])
            executed.add(results[0].routing.executed)
            seen += len(results[0].instances)
    assert seen > 10
    assert name == 'plain' or len(executed) > 1, 'some layers are skipped'
