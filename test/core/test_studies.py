"""The paper's studies: each leaves a table and a plot that say what was measured, beside the paper's own values."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from saved_weights import save_weights
from tiny_model import picture
from tubes import perfect, square, tube, video

from tar_vis_core.commands.main import main
from tar_vis_core.evaluation.tubes import TubePrediction
from tar_vis_core.evaluation.ytvis_ap import evaluate_tubes
from tar_vis_core.models.video_model import build_model
from tar_vis_core.studies.bootstrap import Precision, interval, mean_rows, resamples, spearman, with_interval
from tar_vis_core.studies.controls import ByConfidence, Oracle, Watched
from tar_vis_core.studies.executed_layers import at_same_layers, decode_layers
from tar_vis_core.studies.inputs import StudyInputs, open_videos
from tar_vis_core.studies.motion import rows_of
from tar_vis_core.studies.report import write_report
from tar_vis_core.studies.timing import VARIANTS, lines_of
from tar_vis_core.weights.loading import read_tensors

SMALL = ['--videos', '2', '--frames', '3', '--size', '64x96', '--device', 'cpu']


def crowd_model(seed: int = 0, routing: bool = True):
    """Fresh weights whose routers choose by what they see."""
    torch.manual_seed(seed)
    model = build_model('crowd', routing).eval()
    if routing:
        with torch.no_grad():
            model.decoder.routers.weight2.normal_()
            model.decoder.routers.bias2.zero_()
    return model


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('weights') / 'crowd.safetensors'
    save_weights(crowd_model(), path, {'preset': 'crowd'})
    return path


def study(name: str, out: Path, *words: str) -> list[dict[str, str]]:
    """The rows of a study's table, after a look at all that it leaves."""
    assert main(['study', name, '--out', str(out), *SMALL, *words]) == 0
    text = (out / 'table.md').read_text()
    assert 'cannot show' in text and 'seed' in text and 'torch' in text
    assert (out / 'plot.png').read_bytes().startswith(b'\x89PNG')
    with (out / 'table.csv').open() as file:
        return list(csv.DictReader(file))


def test_spearman_is_of_ranks_with_ties_and_nan_where_nothing_varies():
    x = np.array([0.1, 5, 3, 100, 20])
    assert spearman(x, np.exp(x / 50)) == pytest.approx(1) and spearman(x, -x ** 3) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)         # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert spearman([1, 2, 3, 4], [1, 1, 2, 2]) == pytest.approx(4 / math.sqrt(20))
    assert math.isnan(spearman([1, 2, 3], [5, 5, 5])) and math.isnan(spearman([1], [1]))


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean, low, high = with_interval(lambda chosen: float(values[chosen].mean()), len(values), 2000)
    error = values.std() / math.sqrt(len(values))
    assert mean == values.mean()
    assert (mean - low, high - mean) == pytest.approx((1.96 * error, 1.96 * error), rel=0.1)
    assert interval([1, math.nan, 1]) == (1, 1) and all(map(math.isnan, interval([math.nan])))


def test_resamples_are_the_same_for_all_that_is_compared():
    drawn = resamples(7, 50)
    assert drawn.shape == (50, 7) and set(drawn.flat) == set(range(7))
    assert np.array_equal(drawn, resamples(7, 50)) and not np.array_equal(drawn, resamples(7, 50, seed=1))


def test_precision_of_chosen_videos_is_that_of_the_metric():
    records = [video(1, ('cat', tube(3, 5)), ('dog', tube(30, 31))), video(2, ('cat', tube(8, 9), )),
               video(3, ('dog', tube(1, 2)))]
    good = perfect(records)
    predictions = [good[0], TubePrediction(1, 'cat', 0.95, tube(20, 40)), *good[2:]]      # a false one, a missed one
    precision = Precision(records, predictions)
    for chosen in ([0, 1, 2], [0], [0, 1], [2, 1]):
        kept = {records[i].id for i in chosen}
        expected = evaluate_tubes([records[i] for i in chosen], [p for p in predictions if p.video_id in kept])
        assert precision(np.array(chosen)) == pytest.approx(expected.mean.ap)
    assert Precision(records, good)(np.array([1, 1, 0])) == 1
    empty = video(1, frames=2, size=square(0).shape)
    assert math.isnan(Precision([empty], [])(np.array([0])))


def test_a_report_has_the_paper_beside_ours_and_says_where_it_is_silent(tmp_path):
    rows = [{'layers': 1, 'AP': 12.345678, 'AP: low': 10.0, 'AP: high': 15.0, 'paper AP': None},
            {'layers': 9, 'AP': math.nan, 'AP: low': math.nan, 'AP: high': math.nan, 'paper AP': 47.4}]
    write_report(tmp_path / 'new', 'Title', rows, ['A note.'], lambda axes: axes.plot([1, 9], [1, 2]))
    with (tmp_path / 'new' / 'table.csv').open() as file:
        assert list(csv.reader(file)) == [['layers', 'AP', 'AP: low', 'AP: high', 'paper AP'],
                                          ['1', '12.35', '10.00', '15.00', 'n/a'],
                                          ['9', 'n/a', 'n/a', 'n/a', '47.40']]
    text = (tmp_path / 'new' / 'table.md').read_text()
    assert '| layers | AP | paper AP |' in text and '| 1 | 12.35 (10.00 to 15.00) | n/a |' in text
    assert '| 9 | n/a | 47.40 |' in text and text.endswith('A note.\n')


def test_chosen_layers_are_the_decoder_with_only_these():
    model = crowd_model()
    with torch.inference_mode():
        features = model.encode(model.normalize(torch.rand(1, 3, 64, 96) * 255))
        for k in (0, 2, 9):
            fixed = model.decode(features, routing='fixed', fixed_layers=k)
            chosen = decode_layers(model, features, range(k))
            assert torch.equal(fixed.queries, chosen.queries) and torch.equal(fixed.logits, chosen.logits)
            assert fixed.trace.executed == chosen.trace.executed
        ran = []
        for i, layer in enumerate(model.decoder.layers):
            layer.register_forward_hook(lambda *_, i=i: ran.append(i))
        assert decode_layers(model, features, [0, 7, 8]).trace.executed == (True, *[False] * 6, True, True)
        assert ran == [0, 7, 8]


def test_the_fixed_curve_is_interpolated_in_each_sample():
    class Point:
        def __init__(self, k, *ap):
            self.executed, self.ap = np.full(len(ap), float(k)), np.array(ap, float)

    fixed = [Point(1, 10, 20), Point(3, 30, 20), Point(9, 60, 80)]
    assert at_same_layers(fixed, np.array([2.0, 6.0])) == pytest.approx([20, 50])
    assert np.isnan(at_same_layers(fixed, np.array([0.5, 9.5]))).all()
    assert np.isnan(at_same_layers([], np.array([3.0, 3.0]))).all()


def test_several_weights_give_their_mean_and_reach():
    rows = [{'weights': name, 'decoding': 'TAR', 'AP': ap, 'AP: low': 0.0, 'AP: high': 99.0, 'paper AP': 48.4}
            for name, ap in (('a', 10.0), ('b', 14.0), ('c', 15.0))]
    assert mean_rows(rows, ['decoding'], 'weights') == [{
        'weights': 'mean of 3', 'decoding': 'TAR', 'AP': 13.0, 'AP: low': 10.0, 'AP: high': 15.0,
        'paper AP': pytest.approx(48.4)}]


def test_layers(weights, tmp_path):
    rows = study('layers', tmp_path, '--weights', str(weights), '--layers', '1', '4', '9', '--pairs', '1+2',
                 '--skip-bias', '1', '--resamples', '20')
    by_name = {row['decoding']: row for row in rows}
    assert list(by_name) == ['first 1', 'first 4', 'first 9', 'TAR', 'TAR, all executed', 'TAR, all skipped',
                             'TAR, random gates', '1+2', 'TAR, fixed gates 4', 'TAR, bias +1']
    layers = {name: float(row['layers']) for name, row in by_name.items()}
    # a video's first frame runs all nine, then only the warm-up layer
    assert layers['first 1'] == 1 and layers['1+2'] == 3
    assert layers['TAR, all skipped'] == pytest.approx(11 / 3, abs=0.01)
    assert layers['TAR, fixed gates 4'] == pytest.approx(17 / 3, abs=0.01)
    for name in ('all skipped', 'fixed gates 4', 'all executed'):
        assert by_name[f'TAR, {name}']['AP - fixed gates at same layers'] == '0.00'
    assert layers['TAR, bias +1'] <= layers['TAR'] < layers['first 9'] == layers['TAR, all executed'] == 9
    assert (by_name['first 1']['paper ms'], by_name['first 1']['paper AP']) == ('24.20', 'n/a')
    assert (by_name['first 9']['paper ms'], by_name['1+2']['paper ms']) == ('40.50', 'n/a')
    assert by_name['TAR, all executed']['AP - all executed'] == '0.00'
    assert by_name['first 9']['AP - first k at same layers'] == '0.00'


def seeing_model():
    """Fresh weights whose routers look at the picture, and find half of the layers worth their price on any."""
    torch.manual_seed(0)
    model = build_model('crowd:routers=seeing').eval()
    with torch.no_grad():
        model.decoder.routers.worth.bias.fill_(0.8)
        model.decoder.routers.price.fill_(0.1)
    return model


def test_controls_run_as_many_layers_as_tar(tmp_path):
    path = tmp_path / 'seeing.safetensors'
    save_weights(seeing_model(), path, {'preset': 'crowd'})
    rows = study('layers', tmp_path / 'out', '--weights', str(path), '--layers', '5', '--pairs', '--skip-bias',
                 '--resamples', '5', '--controls')
    layers = {row['decoding']: float(row['layers']) for row in rows}
    assert layers['TAR'] == pytest.approx(19 / 3, abs=0.01)         # nine, then five
    for name in ('order 5', 'fixed gates 5', 'by chance', 'by MSE', 'by confidence'):
        assert layers[f'TAR, {name}'] == layers['TAR'], name
    assert 11 / 3 <= layers['TAR, oracle'] <= layers['TAR'] + 1


def test_a_control_gives_the_greatest_number_of_layers_to_the_greatest_value():
    tar = Watched(seeing_model(), lambda *_: None)
    tar.counts = [8, 0, 0, 0, 3, 3, 0, 8]
    control = ByConfidence(seeing_model(), tar)
    for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        control.count(value)
    assert [control.count(value) for value in (0.9, 0.05, 0.45, 0.55)] == [8, 0, 3, 3]


def test_the_oracle_spends_layers_where_they_take_away_loss():
    tar = Watched(seeing_model(), lambda *_: None)
    oracle = Oracle(seeing_model(), tar, [])
    moves, rests = np.linspace(2, 1, 9), np.linspace(1.1, 1, 9)
    for losses, expected in ((moves, 8), (rests, 0)):
        oracle.losses, tar.counts = [moves, rests, losses], [8, 0, expected]
        assert oracle.count(0.0) == expected


def test_layers_needs_no_routers_and_takes_several_weights(weights, tmp_path):
    bare = tmp_path / 'bare.safetensors'
    save_weights(crowd_model(1, routing=False), bare, {'preset': 'crowd'})
    rows = study('layers', tmp_path / 'out', '--weights', str(bare), str(weights), '--layers', '1', '9', '--pairs',
                 '--skip-bias', '--resamples', '5')
    assert [row['decoding'] for row in rows if row['weights'].endswith('/bare')] == ['first 1', 'first 9']
    assert [row['weights'] for row in rows if row['decoding'] == 'TAR'][-1] == 'mean of 1'
    assert [row['weights'] for row in rows if row['decoding'] == 'first 9'][-1] == 'mean of 2'


@pytest.mark.parametrize(('words', 'said'), [
    (['--layers', '10'], '10 layers asked for'), (['--pairs', '5+5'], '10 layers asked for'),
    (['--controls'], 'for routers that look at the picture'),
    (['--videos', '0'], '--videos is 0'), (['--data', 'nowhere.json'], 'nowhere.json')])
def test_what_is_wrong_is_one_line(weights, tmp_path, words, said, capsys):
    assert main(['study', 'layers', '--out', str(tmp_path), *SMALL, '--weights', str(weights), *words]) == 1
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_more_layers_where_more_changes_is_a_positive_coefficient():
    # within each video layers rise with the difference; the video that differs more runs fewer
    calm, wild = np.array([[1, 5], [2, 6], [3, 7.0]]), np.array([[100, 1], [200, 2], [300, 3.0]])
    together, alone, *parts = rows_of([calm, wild], 50)
    assert together['Spearman'] < 0 < alone['Spearman'] == alone['Spearman: low'] == 1
    assert together['Spearman: low'] <= together['Spearman'] <= together['Spearman: high'] == 1
    assert together['paper direction'] == 'positive' and together['count'] == 6 == sum(p['count'] for p in parts)
    assert together['executed layers'] == 4 and parts[0]['executed layers'] == 5.5
    steady = np.array([[1, 9], [2, 9.0]])
    assert all(math.isnan(row['Spearman']) for row in rows_of([steady], 5))


def test_motion(weights, tmp_path):
    rows = study('motion', tmp_path, '--weights', str(weights), '--resamples', '20')
    assert [row['count'] for row in rows[:2]] == ['4', '4'] and rows[0]['paper Spearman'] == 'n/a'
    assert 1 <= float(rows[0]['executed layers']) < 9 and float(rows[0]['median MSE']) > 0
    all_run = study('motion', tmp_path, '--weights', str(weights), '--resamples', '5', '--skip-bias=-1e9')
    assert all_run[0]['executed layers'] == '9.00' and all_run[0]['Spearman'] == 'n/a'


def test_motion_needs_routers(tmp_path, capsys):
    bare = tmp_path / 'bare.safetensors'
    save_weights(crowd_model(routing=False), bare, {'preset': 'crowd'})
    assert main(['study', 'motion', '--out', str(tmp_path), *SMALL, '--weights', str(bare)]) == 1
    assert 'hold no routers' in capsys.readouterr().err


def test_profile(weights, tmp_path):
    rows = study('profile', tmp_path, '--weights', str(weights), '--timed', '2', '--warm-up', '1')
    assert [row['stage'] for row in rows] == ['backbone', 'pixel_decoder', 'decoder', 'tracker', 'all']
    assert [row['paper percent'] for row in rows] == ['17', '28', '52', '3', '100'] and rows[-1]['paper ms'] == '40.50'
    for routing in ('full', 'adaptive'):
        *parts, whole = (float(row[f'{routing} percent']) for row in rows)
        assert min(parts) > 0 and sum(parts) == pytest.approx(whole, abs=0.05) == 100


def test_each_variant_decodes_as_it_says():
    lines = lines_of(crowd_model(), 'cpu', 'float32')
    assert tuple(lines) == VARIANTS
    for variant, line in lines.items():
        state = line.segmenter.new_state()
        executed = [line.step(picture(k), state).routing.executed_layers for k in range(3)]
        assert (max(executed[1:]) < 9) == variant.tar and executed[0] == 9


def test_operations(weights, tmp_path):
    rows = study('operations', tmp_path, '--weights', str(weights), '--timed', '2', '--warm-up', '1')
    assert {row['variant']: row['paper frames/s'] for row in rows} == {
        'reference style': '24.70', 'fused attention': '27.80', 'small masks': '27.20', 'TAR': '31.70',
        'fused attention, small masks': 'n/a', 'all': '34.60'}
    for row in rows:
        assert float(row['frames/s']) == pytest.approx(1e3 / float(row['frame ms']), rel=0.01)
        assert float(row['frame ms']) > float(row['decoder ms']) > 0


TRAINING = ['--iterations', '2', '--resamples', '5', *(word for change in (
    'clip=2', 'batch=1', 'processes=1', 'sizes=[[0.0, 64, 96]]', 'loss.points=64') for word in ('--set', change))]


def test_synchronizer(weights, tmp_path):
    words = ['--weights', str(weights), '--seeds', '0', *TRAINING]
    rows = study('synchronizer', tmp_path, *words)
    kinds = [(name, router) for name in ('none', 'bipartite', 'attention') for router in ('on', 'off')]
    assert [(row['variant'], row['router']) for row in rows] == 2 * [('plain', 'off'), *kinds]
    mean = {(row['variant'], row['router']): row for row in rows[7:]}
    assert all(float(row['layers']) == 9 for (_, router), row in mean.items() if router == 'off')
    assert {kind: row['paper frames/s'] for kind, row in mean.items() if row['paper frames/s'] != 'n/a'} == {
        ('plain', 'off'): '24.70', ('attention', 'on'): '34.60', ('attention', 'off'): '24.20'}
    base = read_tensors(tmp_path / 'base.safetensors')
    runs = {path.name: read_tensors(path / 'model.safetensors') for path in tmp_path.glob('*_2_seed0')}
    assert set(runs) == {f'{name}_2_seed0' for name in ('plain', 'none', 'bipartite', 'attention')}
    for name, state in runs.items():
        # the image encoder is that of the base, the decoder has moved, routing is what the variant needs
        assert all(torch.equal(state[k], base[k].half()) for k in base if k.startswith(('backbone.', 'pixel_decoder.')))
        assert any(not torch.equal(state[k], base[k].half()) for k in base if k.startswith('decoder.'))
        parts = {k.split('.')[1] for k in state.keys() - base.keys()}
        assert parts == {'plain': set(), 'attention': {'routers', 'synchronizer'}}.get(name.split('_')[0], {'routers'})
    made = (tmp_path / 'none_2_seed0' / 'model.safetensors').stat().st_mtime_ns
    assert [r | {'frames/s': ''} for r in study('synchronizer', tmp_path, *words)] == [
        r | {'frames/s': ''} for r in rows]
    assert (tmp_path / 'none_2_seed0' / 'model.safetensors').stat().st_mtime_ns == made      # not trained again


def test_warmup(weights, tmp_path):
    rows = study('warmup', tmp_path, '--weights', str(weights), '--seeds', '0', '1', '--warmup-layers', '4', *TRAINING)
    assert [(row['variant'], row['router']) for row in rows] == 3 * [('4', 'on'), ('4', 'off')]
    assert [row['seed'] for row in rows[::2]] == ['0', '1', 'mean of 2']
    files = [tmp_path / f'4_2_seed{seed}' / 'model.safetensors' for seed in (0, 1)]
    routers = [read_tensors(file)['decoder.routers.weight1'] for file in files]
    assert not torch.equal(*routers)
    assert [len(r) for r in routers] == [5, 5], 'of nine layers'
    assert float(rows[0]['layers: low']) >= 4
    assert main(['study', 'warmup', '--out', str(tmp_path), *SMALL, '--weights', str(weights), '--warmup-layers', '9',
                 '--seeds', '0', *TRAINING]) == 1


def test_a_training_that_fails_ends_the_study(weights, tmp_path, capsys):
    assert main(['study', 'warmup', '--out', str(tmp_path), *SMALL, '--weights', str(weights), '--seeds', '0',
                 '--set', 'no_such_option=1']) == 1
    assert 'no_such_option' in capsys.readouterr().err
    assert main(['study', 'warmup', '--out', str(tmp_path), *SMALL, '--weights', str(weights), '--seeds', '0',
                 *TRAINING, '--adapter', str(weights)]) == 1
    assert '--adapter' in capsys.readouterr().err


def test_only_the_named_categories_count(tmp_path):
    given = dict(out=tmp_path, videos=4, frames=3, size=(64, 96))
    everything = open_videos(StudyInputs(**given))
    known = sorted({track.category for record in everything for track in record.tracks})
    some = open_videos(StudyInputs(**given, categories=(known[0],)))
    assert {track.category for record in some for track in record.tracks} == {known[0]} and len(some) == 4
    with pytest.raises(ValueError, match='no object of category cup'):
        open_videos(StudyInputs(**given, categories=('cup',)))
