import json
import pickle
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from parity_data import FOLDER, needs_parity_data
from safetensors.torch import load_file
from weights_cases import TINY, add_tiny_presets, official_names, one_line

from tar_vis_core.commands.main import main
from tar_vis_core.errors import WeightsError
from tar_vis_core.models.backbones.swin import relative_position_index
from tar_vis_core.models.class_sets import CLASS_SETS
from tar_vis_core.models.presets import PRESETS
from tar_vis_core.models.video_model import VideoInstanceModel, build_model
from tar_vis_core.weights.loading import load_model, shapes_of
from tar_vis_core.weights.official import convert_official, recognise, rename, with_later_names, without_extras


@pytest.fixture
def tiny(monkeypatch):
    return add_tiny_presets(monkeypatch)


def as_written_by(kind, state, folder):
    """The checkpoint forms that are about: (path of the file)."""
    extra = {'criterion.empty_weight': torch.ones(41), 'pixel_mean': torch.ones(3, 1, 1),
             'pixel_std': torch.ones(3, 1, 1)}
    path = folder / 'official.pth'
    if kind == 'training checkpoint':
        torch.save({'model': OrderedDict(state | extra), 'iteration': 5999,
                    'optimizer': {'state': {}, 'param_groups': [{'lr': np.float64(1e-4)}]},
                    'scheduler': {'last_epoch': 5999, 'hook': Scheduler()}}, path)
    elif kind == 'plain state dict':
        torch.save(state, path)
    elif kind == 'before torch 1.6':
        torch.save({'model': state}, path, _use_new_zipfile_serialization=False)
    elif kind == 'wrapped':
        torch.save({'model': {f'module.{name}': value for name, value in state.items()}}, path)
    elif kind == 'old names':
        old = {name.replace('sem_seg_head.pixel_decoder.', 'sem_seg_head.')
               .replace('query_feat', 'static_query'): value for name, value in state.items()}
        assert old.keys() != state.keys()
        torch.save({'model': old}, path)
    else:  # numpy arrays in a pickle, old names as well
        path = folder / 'official.pkl'
        arrays = {name.replace('sem_seg_head.pixel_decoder.', 'sem_seg_head.'): value.numpy()
                  for name, value in state.items()}
        path.write_bytes(pickle.dumps({'model': arrays, '__author__': 'somebody'}, protocol=2))
    return path


class Scheduler:
    """An object such as training checkpoints carry along."""


@pytest.mark.parametrize('kind', ['training checkpoint', 'plain state dict', 'before torch 1.6', 'wrapped',
                                  'old names', 'numpy pickle'])
def test_every_form_of_an_official_file_gives_the_same_model(kind, tiny, tmp_path):
    torch.manual_seed(3)
    model = build_model('tiny', routing=False)
    source = as_written_by(kind, official_names(model), tmp_path)
    done = convert_official(source, tmp_path / 'ours.safetensors', 'tiny')
    assert (done.tensors, done.classes) == (len(model.state_dict()), 40)
    loaded = load_model('tiny', done.path)
    assert loaded.decoder.routers is None
    assert loaded.config.class_names == tiny.class_names
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.parametrize('family', TINY)
def test_every_family_is_told_by_its_keys(family, tiny, tmp_path, monkeypatch):
    model = build_model(family, routing=False)
    torch.save({'model': official_names(model)}, tmp_path / 'a.pth')
    done = convert_official(tmp_path / 'a.pth', tmp_path / 'ours', family)
    loaded = load_model(family, done.path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    for other in {*TINY, 'minvis_swin_l'} - {family}:
        with pytest.raises(WeightsError, match=f'a checkpoint of .+ on r50, not of preset {other!r}') as error:
            convert_official(tmp_path / 'a.pth', tmp_path / 'other', other)
        one_line(error)
    with pytest.raises(WeightsError, match='expected'):   # the full-size preset of the same family
        convert_official(tmp_path / 'a.pth', tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


def with_classes(tiny, count, path):
    torch.save({'model': official_names(VideoInstanceModel(replace(tiny, routing=False, classes=count)))}, path)
    return path


@pytest.mark.parametrize(('name', 'count', 'class_set', 'said'), [
    ('minvis_ytvis19_R50.pth', 40, 'youtube_vis_2019', "the file's name"),
    ('minvis_ytvis21_R50.pth', 40, 'youtube_vis_2021', "the file's name"),
    ('YouTube-VIS-2021.pth', 40, 'youtube_vis_2021', "the file's name"),
    ('model_final.pth', 40, 'youtube_vis_2019', 'assumed'),
    ('minvis_ytvis21_R50.pth', 25, 'ovis', 'has 25'), ('model_final.pth', 80, 'coco', 'has 80')])
def test_classes_are_told_by_their_number_and_the_file_name(name, count, class_set, said, tiny, tmp_path):
    done = convert_official(with_classes(tiny, count, tmp_path / name), tmp_path / 'ours', 'tiny')
    assert (done.class_set, done.classes) == (class_set, count)
    assert any(class_set in note and said in note for note in done.notes)
    config = load_model('tiny', done.path).config
    assert (config.class_set, config.class_names) == (class_set, CLASS_SETS[class_set])


def test_classes_may_be_given(tiny, tmp_path):
    forty = with_classes(tiny, 40, tmp_path / 'ytvis19.pth')
    assert convert_official(forty, tmp_path / 'ours', 'tiny', 'youtube_vis_2021').class_set == 'youtube_vis_2021'
    three = with_classes(tiny, 3, tmp_path / 'three.pth')
    (tmp_path / 'names.txt').write_text('cup\n\n spoon \nfork\n')
    convert_official(three, tmp_path / 'ours', 'tiny', tmp_path / 'names.txt')
    config = load_model('tiny', tmp_path / 'ours').config
    assert (config.class_set, config.class_names) == ('custom', ('cup', 'spoon', 'fork'))


@pytest.mark.parametrize(('classes', 'expected'), [
    (None, 'has 3 classes, which no known set has'), ('ovis', 'has 3 classes, but ovis has 25'),
    ('no_set', 'neither one of'), ('twice.txt', 'names a class twice'), ('two.txt', 'two.txt has 2')])
def test_a_wrong_number_of_classes_is_one_clear_line(classes, expected, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_classes(tiny, 3, tmp_path / 'three.pth')
    (tmp_path / 'twice.txt').write_text('a\nb\na\n')
    (tmp_path / 'two.txt').write_text('a\nb\n')
    with pytest.raises(WeightsError) as error:
        convert_official('three.pth', 'ours', 'tiny', classes)
    assert expected in one_line(error)
    assert not (tmp_path / 'ours').exists()


@pytest.mark.parametrize(('change', 'expected'), [
    (lambda s: s.pop('backbone.res3.2.conv2.weight'), r'1 missing (backbone.res3.2.conv2.weight)'),
    (lambda s: s.update({'tracker.ref_proj.layers.0.weight': torch.ones(2, 2)}), 'a checkpoint of dvispp on r50'),
    (lambda s: s.update({'refiner.decoder_norm.weight': torch.ones(2)}), 'is an offline checkpoint'),
    (lambda s: s.update({'tracker.bg_slots.weight': torch.ones(5, 2)}), 'a checkpoint of dvis_daq on r50'),
    (lambda s: s.update({'sem_seg_head.predictor.slots': torch.ones(2, 2)}), 'names that no known model has'),
    (lambda s: s.update({'backbone.extra.weight': torch.ones(2)}), '1 unexpected (backbone.extra.weight)'),
    (lambda s: s.update({'sem_seg_head.predictor.query_feat.weight': torch.ones(9, 32)}),
     'decoder.query_feat is (9, 32), expected (4, 32)'),
    (lambda s: s.update({'backbone.stem.conv1.weight': 'text'}), 'backbone.stem.conv1.weight is no tensor'),
    (lambda s: s.clear(), 'expected a mapping'),
])
def test_a_checkpoint_that_does_not_fit_is_refused(change, expected, tiny, tmp_path):
    state = official_names(build_model('tiny', routing=False))
    change(state)
    torch.save({'model': state}, tmp_path / 'bad.pth')
    (tmp_path / 'ours').write_text('kept')
    with pytest.raises(WeightsError) as error:
        convert_official(tmp_path / 'bad.pth', tmp_path / 'ours', 'tiny')
    assert expected in one_line(error)
    assert (tmp_path / 'ours').read_text() == 'kept'


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match='not found'):
        convert_official(tmp_path / 'none.pth', tmp_path / 'ours')


def test_a_truncated_checkpoint(tiny, tmp_path):
    path = as_written_by('plain state dict', official_names(build_model('tiny', routing=False)), tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match='only a part of it was downloaded or copied') as error:
        convert_official(path, tmp_path / 'ours', 'tiny')
    one_line(error)


def test_the_source_is_never_written_over(tiny, tmp_path):
    path = as_written_by('plain state dict', official_names(build_model('tiny', routing=False)), tmp_path)
    (tmp_path / 'link.safetensors').symlink_to(path)
    for out in (path, tmp_path / 'link.safetensors'):
        with pytest.raises(WeightsError, match='is the source itself'):
            convert_official(path, out, 'tiny')
    assert len(convert_official(path, tmp_path / 'ours', 'tiny').dropped) == 0


def test_what_is_left_out_is_said_with_the_reason(tiny, tmp_path, capsys):
    path = as_written_by('training checkpoint', official_names(build_model('tiny', routing=False)), tmp_path)
    done = convert_official(path, tmp_path / 'ours', 'tiny')
    assert dict(done.dropped) == {
        'criterion.empty_weight': 'weights of the training loss',
        **dict.fromkeys(('pixel_mean', 'pixel_std'), "constants of the input, which are the preset's"),
        **dict.fromkeys(('iteration', 'optimizer', 'scheduler'), 'beside the model: state of the training, notes')}
    assert main(['weights', 'convert', str(path), '-o', str(tmp_path / 'ours'), '--preset', 'tiny']) == 0
    said = capsys.readouterr().out
    assert 'preset tiny' in said and 'classes: youtube_vis_2019; assumed' in said
    assert 'dropped 1 (criterion.empty_weight): weights of the training loss' in said
    assert main(['weights', 'convert', str(path), '-o', str(tmp_path / 'no'), '--preset', 'minvis_swin_l']) == 1
    assert 'a checkpoint of minvis on r50' in capsys.readouterr().err


def test_half_precision_is_widened_and_numbers_must_be_finite(tiny, tmp_path):
    state = official_names(build_model('tiny', routing=False))
    name = 'sem_seg_head.predictor.class_embed.bias'
    state = {key: value.bfloat16() if key == name else value for key, value in state.items()}
    torch.save(state, tmp_path / 'a.pth')
    convert_official(tmp_path / 'a.pth', tmp_path / 'ours', 'tiny')
    stored = load_file(tmp_path / 'ours')['decoder.class_embed.bias']
    assert stored.dtype == torch.float32 and torch.equal(stored, state[name].float())
    state[name][3] = float('nan')
    torch.save(state, tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match=r'decoder\.class_embed\.bias holds numbers that are not finite'):
        convert_official(tmp_path / 'a.pth', tmp_path / 'ours', 'tiny')


def test_a_relative_position_index_must_be_the_computed_one(tmp_path):
    name = 'backbone.layers.0.blocks.0.attn.relative_position_index'
    index = relative_position_index(4)
    assert without_extras({name: index.int()}, tmp_path) == ({}, [
        (name, 'derived from the window size, and equal to what this model computes')])
    for other in (index.flip(0), index[:15], torch.zeros(3, 3, dtype=torch.int64), torch.tensor(3)):
        with pytest.raises(WeightsError, match='not the index of a square window'):
            without_extras({name: other}, tmp_path)


def test_a_backbone_or_a_family_that_no_preset_has(tiny, tmp_path):
    state = official_names(build_model('tiny', routing=False))
    strange = {name.replace('backbone.res', 'backbone.stage'): value for name, value in state.items()}
    torch.save(strange, tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match='its backbone is none of r50, swin_l, vit_adapter_l'):
        convert_official(tmp_path / 'a.pth', tmp_path / 'ours')
    vit = {'sem_seg_head.predictor.query_feat.weight': torch.ones(1), 'backbone.vit_module.cls_token': torch.ones(1)}
    torch.save(vit, tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match="there is no model 'minvis' on backbone 'vit_adapter_l'; there are"):
        convert_official(tmp_path / 'a.pth', tmp_path / 'ours')


def test_modern_names_stay_as_they_are():
    names = ('sem_seg_head.pixel_decoder.adapter_1.weight', 'sem_seg_head.predictor.query_feat.weight',
             'backbone.stem.conv1.weight')
    modern = with_later_names(dict.fromkeys(names, torch.ones(1)))
    assert tuple(modern) == names
    assert with_later_names(modern) == modern


@needs_parity_data
@pytest.mark.parametrize(('family', 'preset'), [
    ('minvis_r50', 'minvis_r50'), ('minvis_swinl', 'minvis_swin_l'), ('ctvis_r50_in_dvispp', 'ctvis_r50'),
    ('dvispp_r50', 'dvispp_r50'), ('dvispp_vitl', 'dvispp_vit_adapter_l'),
    ('dvis_r50', 'dvis_r50'), ('dvis_swinl', 'dvis_swin_l'), ('dvis_daq_r50', 'dvis_daq_r50'),
    ('dvis_daq_swinl', 'dvis_daq_swin_l'), ('dvis_daq_vitl', 'dvis_daq_vit_adapter_l')])
def test_the_name_table_covers_the_official_key_lists(family, preset):
    rows = json.loads((FOLDER / f'keys_{family}.json').read_text())
    index = 'relative_position_index'
    official = {name: torch.empty(shape, device='meta') for name, shape, _ in rows if not name.endswith(index)}
    state, dropped = without_extras(official, 'keys')
    # belongs to the loss
    assert [name for name, _ in dropped] == [f'{"daq_" * ("daq" in family)}criterion.empty_weight']
    assert recognise(state, 'keys') == preset
    classes = state['sem_seg_head.predictor.class_embed.bias'].shape[0] - 1
    with torch.device('meta'):
        config = replace(PRESETS[preset], routing=False, classes=classes)
        expected = VideoInstanceModel(config).state_dict()
    assert shapes_of(rename(state, 'keys')) == shapes_of(expected)
