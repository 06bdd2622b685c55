import json
import os
import pickle
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from parity_data import FOLDER, needs_parity_data
from weights_cases import add_tiny_preset, one_line

from tar_vis_core.errors import WeightsError
from tar_vis_core.models.video_model import VideoInstanceModel, build_model
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.official import convert_official, modernize, read_checkpoint, rename


@pytest.fixture
def tiny(monkeypatch):
    return add_tiny_preset(monkeypatch)


def official_names(model) -> dict[str, torch.Tensor]:
    """A model's tensors under their official names."""
    changes = (('pixel_decoder.lateral.0.', 'sem_seg_head.pixel_decoder.adapter_1.'),
               ('pixel_decoder.lateral.1.', 'sem_seg_head.pixel_decoder.adapter_1.norm.'),
               ('pixel_decoder.output.0.', 'sem_seg_head.pixel_decoder.layer_1.'),
               ('pixel_decoder.output.1.', 'sem_seg_head.pixel_decoder.layer_1.norm.'),
               ('pixel_decoder.level_embed', 'sem_seg_head.pixel_decoder.transformer.level_embed'),
               ('pixel_decoder.layers.', 'sem_seg_head.pixel_decoder.transformer.encoder.layers.'),
               ('pixel_decoder.', 'sem_seg_head.pixel_decoder.'),
               ('decoder.', 'sem_seg_head.predictor.'))
    parts = {'cross_attn': ('cross_attention', 'multihead_attn'), 'cross_norm': ('cross_attention', 'norm'),
             'self_attn': ('self_attention', 'self_attn'), 'self_norm': ('self_attention', 'norm'),
             'linear1': ('ffn', 'linear1'), 'linear2': ('ffn', 'linear2'), 'ffn_norm': ('ffn', 'norm')}
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith('decoder.layers.'):
            _, _, layer, part, *rest = name.split('.')
            kind, inner = parts[part]
            name = '.'.join(('sem_seg_head.predictor', f'transformer_{kind}_layers', layer, inner, *rest))
        elif name in ('decoder.query_feat', 'decoder.query_embed', 'decoder.level_embed'):
            name = f'sem_seg_head.predictor.{name.removeprefix("decoder.")}.weight'
        else:
            for ours, theirs in changes:
                if name.startswith(ours):
                    name = theirs + name.removeprefix(ours)
                    break
        state[name] = value
    return state


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


def test_another_data_set_needs_its_class_names(tiny, tmp_path):
    state = official_names(VideoInstanceModel(replace(tiny, routing=False, classes=3)))
    torch.save({'model': state}, tmp_path / 'three.pth')
    with pytest.raises(WeightsError, match='has 3 classes, but 40 class names') as error:
        convert_official(tmp_path / 'three.pth', tmp_path / 'ours', 'tiny')
    one_line(error)
    convert_official(tmp_path / 'three.pth', tmp_path / 'ours', 'tiny', ('a', 'b', 'c'))
    assert load_model('tiny', tmp_path / 'ours').config.class_names == ('a', 'b', 'c')


@pytest.mark.parametrize(('change', 'expected'), [
    (lambda s: s.pop('backbone.res3.2.conv2.weight'), r'1 missing (backbone.res3.2.conv2.weight)'),
    (lambda s: s.update({'tracker.ref_proj.layers.0.weight': torch.ones(2, 2)}), 'tracker.ref_proj.layers.0.weight'),
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


class Hostile:
    """Unpickling this runs a command."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pickle'])
def test_no_code_of_a_checkpoint_runs(form, tmp_path):
    mark = str(tmp_path / 'was_here')
    content = {'model': {'backbone.stem.conv1.weight': Hostile(mark)}}
    path = tmp_path / ('hostile.pkl' if form == 'pickle' else 'hostile.pth')
    if form == 'pickle':
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == 'zip')
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path)
    assert 'weights_only' not in one_line(error)
    assert not os.path.exists(mark)


@pytest.mark.parametrize(('name', 'content'), [
    ('a.pth', b''), ('a.pth', b'version https://git-lfs.github.com/spec/v1\n'), ('a.pkl', b''), ('a.pkl', b'\x80\x02}'),
    ('a.pth', b'PK\x03\x04 and nothing more'), ('a.pkl', pickle.dumps([1, 2])),
    ('a.pkl', pickle.dumps({'blobs': {}})), ('a.safetensors', b'')])
def test_a_file_that_is_no_checkpoint(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as error:
        read_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in one_line(error)


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match='not found'):
        convert_official(tmp_path / 'none.pth', tmp_path / 'ours')


def test_a_truncated_checkpoint(tiny, tmp_path):
    path = as_written_by('plain state dict', official_names(build_model('tiny', routing=False)), tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match='damaged, truncated') as error:
        convert_official(path, tmp_path / 'ours', 'tiny')
    one_line(error)


def test_modern_names_stay_as_they_are():
    names = ('sem_seg_head.pixel_decoder.adapter_1.weight', 'sem_seg_head.predictor.query_feat.weight',
             'backbone.stem.conv1.weight')
    modern = modernize(dict.fromkeys(names, torch.ones(1)))
    assert tuple(modern) == names
    assert modernize(modern) == modern


@needs_parity_data
def test_the_name_table_covers_the_official_key_list():
    rows = json.loads((FOLDER / 'keys_minvis_r50.json').read_text())
    shapes = {name: tuple(shape) for name, shape, _ in rows}
    renamed = rename({name: torch.empty(shape, device='meta') for name, shape in shapes.items()}, 'keys')
    with torch.device('meta'):
        expected = build_model('minvis_r50', routing=False).state_dict()
    assert {n: tuple(v.shape) for n, v in renamed.items()} == {n: tuple(v.shape) for n, v in expected.items()}
    assert len(renamed) == len(shapes) - 1  # criterion.empty_weight belongs to the loss
