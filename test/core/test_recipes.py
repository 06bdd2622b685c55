"""Every recipe of the paper runs at toy size on a download in miniature, and trains the parts that it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from saved_weights import save_weights
from video_files import shrink_presets, write_download

from tar_vis_core.models.class_sets import OVIS, YOUTUBE_VIS_2019
from tar_vis_core.training.recipe import load_recipe
from tar_vis_core.training.starting_weights import start_model
from tar_vis_core.training.train import main
from tar_vis_core.weights.loading import load_model, read_header

TOY = ('processes=1', 'batch=2', 'iterations=3', 'checkpoint_every=10', 'precision=float32', 'short_sides=[48,64]',
       'max_side=96', 'sizes=[[0,64,96]]', 'loss.points=64', 'grad_clip=10', 'lr=1e-3')
SHRUNK = """import sys, pytest, video_files
from tar_vis_core.training.train import main
video_files.shrink_presets(pytest.MonkeyPatch())
sys.exit(main(sys.argv[1:]))"""       # `tar-vis train` of small models
SEGMENTER = 'backbone.', 'pixel_decoder.', 'decoder.'
ROUTING = 'decoder.synchronizer.', 'decoder.routers.'


@pytest.fixture(scope='module')
def download(tmp_path_factory):
    return write_download(tmp_path_factory.mktemp('download'))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    shrink_presets(monkeypatch)


def train(recipe, download, out, *options, changes=()):
    words = [word for change in (*TOY, *changes) for word in ('--set', change)]
    return main([recipe, '--data', str(download), '--out', str(out), '--device', 'cpu', *words, *map(str, options)])


def moved(recipe, out, init=None, changes=()):
    """Names of tensors that training changed, of all those that the run has."""
    before = start_model(load_recipe(recipe, [*TOY, *changes]), init)[0].state_dict()
    after = torch.load(out / 'last.pt', weights_only=True)['model']
    assert before.keys() == after.keys()
    assert all(torch.isfinite(value).all() for value in after.values())
    return {name for name in before if not torch.equal(before[name], after[name])}, before.keys()


def columns(out):
    header, *rows = [line.split(',') for line in (out / 'log.csv').read_text().splitlines()]
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(header)}


@pytest.fixture
def segmenter(tmp_path):
    """Weights as the official ones are: no routing, no tracker."""
    model = start_model(load_recipe('minvis_ytvis19', ['preset=ctvis_r50']))[0]
    path = tmp_path / 'ctvis.safetensors'
    save_weights(model, path, {'preset': 'ctvis_r50', 'class_set': 'youtube_vis_2019',
                               'class_names': '\n'.join(YOUTUBE_VIS_2019)})
    return path


def test_minvis_trains_the_whole_segmenter_and_has_no_routing(download, tmp_path):
    assert train('minvis_ytvis19', download, tmp_path) == 0
    names, known = moved('minvis_ytvis19', tmp_path)
    assert not any(name.startswith(ROUTING) for name in known)
    for part in (*SEGMENTER, 'backbone.norm.running_mean', 'decoder.class_embed'):
        assert any(name.startswith(part) for name in names), part
    model = load_model('minvis_r50', tmp_path / 'model.safetensors')
    assert model.config.class_names == YOUTUBE_VIS_2019 and model.decoder.routers is None


def test_tar_on_minvis_trains_the_decoder_and_leaves_the_encoder_as_it_was(download, tmp_path):
    first, second = tmp_path / 'minvis', tmp_path / 'tar'
    assert train('minvis_ytvis19', download, first) == 0
    init = first / 'model.safetensors'
    assert train('tar_minvis_ytvis19', download, second, '--init', init) == 0
    names, _ = moved('tar_minvis_ytvis19', second, init)
    assert all(name.startswith('decoder.') for name in names)    # not even the statistics of a frozen batch norm move
    assert {'decoder.routers.weight2', 'decoder.synchronizer.norm.weight', 'decoder.class_embed.weight'} <= names
    log = columns(second)
    assert all(0 < p < 1 for p in log['execute_probability'])
    assert load_model('minvis_r50', second / 'model.safetensors').decoder.routers is not None


@pytest.mark.parametrize('half', ['first', 'second'])
def test_the_tracker_of_dvispp_trains_alone(download, tmp_path, segmenter, half):
    # the second half of a run matches by the tracker's own predictions
    changes = ('iterations=4', 'tracker_noise=1.0') if half == 'second' else ('iterations=9',)
    stop = 4 if half == 'second' else 3
    assert train('dvispp_tracker_ytvis19', download, tmp_path, '--init', segmenter, '--stop-at', stop,
                 changes=changes) == 0
    names, known = moved('dvispp_tracker_ytvis19', tmp_path, segmenter, changes)
    assert names == {name for name in known if name.startswith('tracker.')}
    log = columns(tmp_path)
    assert all(value > 0 for term in ('tracker_class', 'tracker_mask', 'tracker_dice', 'tracker_reid')
               for value in log[term])
    assert 'class' not in log                           # the frozen segmenter is not charged


@pytest.mark.parametrize('half', ['first', 'second'])
def test_the_tracker_of_dvis_trains_alone_and_without_a_contrast(download, tmp_path, half):
    changes, stop = (['iterations=4'], 4) if half == 'second' else (['iterations=9'], 3)
    minvis = tmp_path / 'minvis.safetensors'
    save_weights(start_model(load_recipe('minvis_ytvis19', TOY))[0], minvis, {
        'preset': 'minvis_r50', 'class_set': 'youtube_vis_2019', 'class_names': '\n'.join(YOUTUBE_VIS_2019)})
    assert train('dvis_tracker_ytvis19', download, tmp_path, '--init', minvis, '--stop-at', stop,
                 changes=changes) == 0
    names, known = moved('dvis_tracker_ytvis19', tmp_path, minvis, changes)
    assert names == {name for name in known if name.startswith('tracker.')}
    log = columns(tmp_path)
    assert all(value > 0 for term in ('tracker_class', 'tracker_mask', 'tracker_dice') for value in log[term])
    assert not {'class', 'tracker_reid'} & log.keys()
    assert load_model('dvis_r50', tmp_path / 'model.safetensors').config.tracker == 'referring_2023'


def test_the_tracker_of_dvis_daq_says_that_it_cannot_be_trained(download, tmp_path, capsys):
    assert train('dvis_tracker_ytvis19', download, tmp_path, changes=['preset=dvis_daq_r50']) == 1
    assert 'DVIS-DAQ (preset dvis_daq_r50) cannot be trained yet' in capsys.readouterr().err


def test_tar_on_dvispp_trains_routing_and_tracker_with_the_segmenter_frozen(download, tmp_path, segmenter):
    assert train('tar_dvispp_ytvis19', download, tmp_path, '--init', segmenter) == 0
    names, known = moved('tar_dvispp_ytvis19', tmp_path, segmenter)
    assert all(name.startswith((*ROUTING, 'tracker.')) for name in names)
    assert {name for name in known if name.startswith(('decoder.routers.weight2', 'decoder.synchronizer.'))} <= names
    assert {'tracker.ref_proj.layers.0.weight', 'tracker.class_embed.weight'} <= names
    assert {'class', 'tracker_class', 'execute_probability'} <= columns(tmp_path).keys()
    model = load_model('dvispp_r50', tmp_path / 'model.safetensors')
    assert model.decoder.routers is not None and model.tracker is not None


def test_other_classes_start_with_fresh_heads_and_all_else_must_fit(download, tmp_path, segmenter, capsys):
    recipe = load_recipe('minvis_ytvis19', ['preset=ctvis_r50', 'classes=ovis'])
    model, notes = start_model(recipe, segmenter)
    assert len(notes) == 1 and 'youtube_vis_2019 (40 classes)' in notes[0] and 'ovis (25)' in notes[0]
    assert model.decoder.class_embed.out_features == len(OVIS) + 1
    whole = start_model(load_recipe('minvis_ytvis19', ['preset=ctvis_r50']), segmenter)[0]
    loaded, other = model.state_dict(), whole.state_dict()
    assert all(torch.equal(loaded[k], other[k]) for k in other if not k.startswith('decoder.class_embed.'))
    # as many classes, but others: their rows mean something else
    _, notes = start_model(load_recipe('minvis_ytvis19', ['preset=ctvis_r50', 'classes=youtube_vis_2021']), segmenter)
    assert len(notes) == 1 and 'afresh' in notes[0]
    # minvis has no re-identification head
    assert train('minvis_ytvis19', download, tmp_path / 'out', '--init', segmenter) == 1
    error = capsys.readouterr().err
    assert 'unexpected' in error and 'reid_embed' in error


def test_own_classes_come_from_a_text_file(download, tmp_path):
    (tmp_path / 'names.txt').write_text('cat\ndog\ngiant panda\nperson\n')
    assert train('minvis_ytvis19', download, tmp_path, changes=[f'classes={tmp_path / "names.txt"}']) == 0
    metadata = read_header(tmp_path / 'model.safetensors').metadata
    assert metadata['class_names'] == 'cat\ndog\ngiant panda\nperson' and metadata['class_set'] == 'custom'
    assert load_model('minvis_r50', tmp_path / 'model.safetensors').decoder.class_embed.out_features == 5


def test_a_category_that_the_model_does_not_know_is_named(download, tmp_path, capsys):
    (tmp_path / 'names.txt').write_text('cat\ndog\n')
    assert train('minvis_ytvis19', download, tmp_path, changes=[f'classes={tmp_path / "names.txt"}']) == 1
    error = capsys.readouterr().err
    assert "'person' is none of" in error and 'classes' in error and error.count('\n') == 1


def test_a_bad_picture_stops_the_run_by_name_or_is_replaced_and_listed(tmp_path, capsys):
    download = write_download(tmp_path)
    bad = sorted((download / 'ytvis_2019' / 'train' / 'JPEGImages' / '00002').iterdir())
    for path in bad:
        path.write_bytes(b'no picture')
    assert train('minvis_ytvis19', download, tmp_path / 'a', changes=['batch=8']) == 1
    assert 'JPEGImages/00002/' in capsys.readouterr().err
    assert train('minvis_ytvis19', download, tmp_path / 'b', changes=['batch=8', 'skip_bad=true']) == 0
    lines = (tmp_path / 'b' / 'bad_samples.txt').read_text().splitlines()
    assert lines and all('JPEGImages/00002/' in line for line in lines)


def test_workers_make_the_samples_that_the_run_would_make_itself(download, tmp_path, segmenter):
    assert train('dvispp_tracker_ytvis19', download, tmp_path / '0', '--init', segmenter) == 0
    # in a process of its own, as users start it: workers are forked, and this one has loaded much that they do not need
    words = [word for change in (*TOY, 'workers=2') for word in ('--set', change)]
    subprocess.run([sys.executable, '-c', SHRUNK, 'dvispp_tracker_ytvis19', '--data', download, '--out', tmp_path / '2',
                    '--device', 'cpu', *words, '--init', segmenter], check=True, timeout=240,
                   env=dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1] / 'helpers')))
    one, two = (torch.load(tmp_path / name / 'last.pt', weights_only=True)['model'] for name in ('0', '2'))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_mixed_precision_trains(download, tmp_path, precision):
    changes = [f'precision={precision}', 'iterations=10']
    assert train('tar_minvis_ytvis19', download, tmp_path, changes=changes) == 0
    assert 'decoder.routers.weight2' in moved('tar_minvis_ytvis19', tmp_path)[0]
    scaler = torch.load(tmp_path / 'last.pt', weights_only=True)['scaler']
    assert bool(scaler) == (precision == 'float16')     # what it has learnt goes into the checkpoint


def test_a_loss_that_is_not_finite_stops_with_its_batch_saved(download, tmp_path, capsys):
    assert train('minvis_ytvis19', download, tmp_path, changes=['loss.mask=.inf']) == 1
    assert 'iteration 0: the loss is' in capsys.readouterr().err
    batch = torch.load(tmp_path / 'non_finite_0.pt', weights_only=True)
    assert len(batch['clips']) == 2 and batch['clips'][0][0]['image'].dtype == torch.uint8
