"""The study of the latency budget runs the real model through all its budgets and leaves what it measured."""

from __future__ import annotations

import numpy as np
import pytest
from saved_weights import save_weights
from test_studies import SMALL, crowd_model, study, weights  # noqa: F401 (a fixture)

from tar_vis_core.commands.main import main
from tar_vis_core.segmenter import VideoSegmenter
from tar_vis_core.studies.budgets import Phase, follow, row_of


def test_budget(weights, tmp_path):  # noqa: F811
    rows = study('budget', tmp_path, '--weights', str(weights), '--phase', '12', '--range-frames', '2',
                 '--threads', '1')
    assert [row['budget'] for row in rows] == ['off', 'tight', 'loose', 'impossible']
    off, tight, loose, impossible = rows
    assert off['budget ms'] == 'n/a' and float(off['bias at the end']) == 0
    assert 0 < float(impossible['budget ms']) < float(tight['budget ms']), 'half of the least, and half way to the most'
    assert float(loose['budget ms']) > 0
    assert all(1 <= float(row['layers']) <= 9 and float(row['p95 ms']) >= float(row['median ms']) for row in rows)


def test_the_controller_runs_only_where_there_is_a_budget():
    segmenter = VideoSegmenter.from_model(crowd_model(), 'cpu')
    images = iter(np.random.default_rng(0).integers(0, 256, (54, 32, 32, 3), np.uint8))
    none, never = follow(segmenter, images, {'none': None, 'never': 1e-3}, 27)
    assert not none.bias.any() and none.report == ''
    assert never.bias[-1] == pytest.approx(0.06) and never.turns == 0
    assert none.layers[0] == 9, 'the first frame has no past'


def test_a_row_is_of_the_second_half_and_counts_turns_in_all():
    phase = Phase('tight', 50.0, np.array([90.0] * 50 + [40.0] * 45 + [60.0] * 5), np.array([9.0] * 50 + [3.0] * 50),
                  np.array([0.0] * 10 + [1.0] * 10 + [0.5] * 10 + [0.7] * 70), '')
    row = row_of(phase)
    assert (row['percent late'], row['layers'], row['median ms'], row['p95 ms']) == (10, 3, 40, 60)
    assert row['turns of the bias'] == 2 and row['bias at the end'] == 0.7


@pytest.mark.parametrize(('words', 'said'), [(['--phase', '1'], '--phase is 1'), ([], 'hold no routers')])
def test_what_is_wrong_is_one_line(words, said, tmp_path, capsys):
    bare = tmp_path / 'bare.safetensors'
    save_weights(crowd_model(routing=False), bare, {'preset': 'crowd'})
    assert main(['study', 'budget', '--out', str(tmp_path), *SMALL, '--weights', str(bare), *words]) == 1
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
