"""The study of still pictures tells how often the encoder is spared, and what that changes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from test_studies import SMALL, study, weights  # noqa: F401 (a fixture)
from tubes import perfect, square, tube, video

from tar_vis_core.commands.main import main
from tar_vis_core.evaluation.tubes import TubePrediction
from tar_vis_core.studies.bootstrap import resamples
from tar_vis_core.studies.reused_encodings import BoundRun, mask_agreement, with_truth, without_truth


def test_agreement_pairs_masks_and_charges_for_each_that_is_alone():
    def tubes(*rles) -> list[TubePrediction]:
        return [TubePrediction(1, 'cat', 1.0, r) for r in rles]

    one, other = tube(3, 3), tube(40, 40)
    assert mask_agreement(tubes(one, other), tubes(other, one), len(one)).tolist() == [1, 1]
    assert mask_agreement(tubes(one, other), tubes(one), len(one)).tolist() == [0.5, 0.5]
    assert mask_agreement(tubes(one), tubes(one, other), len(one)).tolist() == [0.5, 0.5]
    assert np.isnan(mask_agreement(tubes([None, None]), tubes([None, one[1]]), 2)).tolist() == [True, False]
    assert mask_agreement(tubes(one), [], 2).tolist() == [0, 0]


def followed(tubes, reused) -> BoundRun:
    return BoundRun(4.0, [np.array(reused)], [np.ones(len(reused))], tubes)


def test_a_run_that_lags_is_worse_where_it_was_reused():
    record = video(1, ('cat', tube(3, 20)))
    off = followed([TubePrediction(1, 'cat', 0.9, tube(3, 20))], [False, False])
    late = followed([TubePrediction(1, 'cat', 0.9, tube(3, 3))], [False, True])
    row = without_truth(late, off, [record])
    assert row['IoU with off'] == 50 and row['IoU where reused'] == 0 and row['tracks'] == 1
    assert without_truth(off, off, [record])['IDF1 with off'] == 100
    exact, worse = with_truth([off, late], [record], resamples(1, 3))
    assert exact['AP'] == 100 and exact['AP less off'] == 0 and exact['IoU by object'] == 100
    assert worse['AP less off'] == worse['AP'] - 100 < 0 and worse['IoU by object'] == 50


def test_labelled_videos(weights, tmp_path):  # noqa: F811
    rows = study('still', tmp_path, '--weights', str(weights), '--bounds', '255', '--resamples', '5',
                 '--score-threshold', '0', '--threads', '1')
    assert [row['bound'] for row in rows] == ['off', '255']
    off, on = rows
    assert float(off['percent reused']) == 0 and off['median reused'] == 'n/a' and off['AP less off'] == '0.00'
    assert float(on['percent reused']) == pytest.approx(200 / 3, abs=0.01), 'all but the first of three frames'
    assert float(on['mean ms']) > 0 and float(on['median reused']) > 0


def test_clips(weights, tmp_path):  # noqa: F811
    for name, seeds in (('still', [1] * 4), ('lively', range(4))):
        folder = tmp_path / name
        folder.mkdir()
        for k, seed in enumerate(seeds):
            image = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
            cv2.imwrite(str(folder / f'{k}.png'), cv2.resize(image, (96, 64), interpolation=cv2.INTER_NEAREST))
    rows = study('still', tmp_path / 'out', '--weights', str(weights), '--bounds', '4', '--width', '0', '--first', '1',
                 '--threads', '1', '--clips', str(tmp_path / 'still'), str(tmp_path / 'lively'))
    assert [(r['video'], r['bound'], float(r['percent reused'])) for r in rows] == [
        ('still', 'off', 0), ('still', '4', pytest.approx(200 / 3, abs=0.01)), ('lively', 'off', 0),
        ('lively', '4', 0)]


def test_a_clip_without_a_frame_left_is_one_line(weights, tmp_path, capsys):  # noqa: F811
    cv2.imwrite(str(tmp_path / '0.png'), square(0).astype(np.uint8))
    assert main(['study', 'still', '--out', str(tmp_path), *SMALL, '--weights', str(weights), '--first', '3',
                 '--clips', str(tmp_path / '0.png')]) == 1
    assert 'no frame comes after the first 3' in capsys.readouterr().err


def test_perfect_tubes_agree_with_themselves():
    records = [video(1, ('cat', tube(3, 5)), ('dog', tube(30, 31)))]
    tubes = perfect(records)
    assert mask_agreement(tubes, tubes, 2).tolist() == [1, 1]
