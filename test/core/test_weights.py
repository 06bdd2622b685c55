import json
import os
import struct
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_weights import save_weights
from weights_cases import add_tiny_presets, one_line

from tar_vis_core.errors import WeightsError
from tar_vis_core.models.class_sets import CLASS_SETS
from tar_vis_core.models.presets import PRESETS
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.weights import manifest
from tar_vis_core.weights.loading import load_model, load_weights, read_header
from tar_vis_core.weights.verify import verify, verify_entry

OFFICIAL = [name for name, config in PRESETS.items() if config.family not in ('nano',)]


@pytest.fixture
def tiny(monkeypatch):
    return add_tiny_presets(monkeypatch)


@pytest.fixture
def small():
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def test_what_was_saved_is_what_is_loaded(small, tmp_path):
    path = tmp_path / 'small.safetensors'
    save_weights(small, path, {'preset': 'none'})
    other = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    assert load_weights(other, path) == {'preset': 'none'}
    for name, value in small.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert [p.name for p in tmp_path.iterdir()] == ['small.safetensors']


def test_half_precision_files_are_widened(small, tmp_path):
    save_weights(small, tmp_path / 'half', dtype=torch.float16)
    assert load_file(tmp_path / 'half')['0.weight'].dtype == torch.float16
    before = small[0].weight.detach().clone()
    load_weights(small, tmp_path / 'half')
    assert small[0].weight.dtype == torch.float32
    assert torch.equal(small[0].weight, before.half().float())


def damage(kind, path):
    content = path.read_bytes()
    if kind == 'truncated':
        path.write_bytes(content[:-8])
    elif kind == 'cut in its header':
        path.write_bytes(content[:40])
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'another kind of file':
        path.write_bytes(b'<html>404 not found</html>' * 40)
    elif kind == 'a header that claims to be huge':
        path.write_bytes(struct.pack('<Q', 2 ** 62) + content[8:])
    elif kind == 'a pickle':
        torch.save({'0.weight': torch.ones(2, 3)}, path)
    elif kind == 'missing':
        path.unlink()
    elif kind == 'a folder':
        path.unlink()
        path.mkdir()
    else:
        state = load_file(path)
        if kind == 'a tensor short':
            del state['0.bias']
        elif kind == 'a tensor too many':
            state['2.weight'] = torch.ones(1)
        elif kind == 'another shape':
            state['0.weight'] = torch.ones(3, 2)
        elif kind == 'another type':
            state['0.weight'] = torch.ones(2, 3, dtype=torch.int64)
        elif kind == 'not finite':
            state['1.running_var'][1] = float('nan')
        save_file(state, path)


@pytest.mark.parametrize(('kind', 'expected'), [
    ('missing', 'not found'), ('a folder', 'is a folder'), ('empty', 'an empty file'), ('truncated', 'truncated'),
    ('cut in its header', 'truncated'), ('another kind of file', 'no weights file'),
    ('a pickle', 'tar-vis weights convert'), ('a header that claims to be huge', 'no weights file'),
    ('a tensor short', r'1 missing (0.bias)'), ('a tensor too many', r'1 unexpected (2.weight)'),
    ('another shape', '0.weight is (3, 2), expected (2, 3)'),
    ('another type', '0.weight is stored as torch.int64'), ('not finite', '1.running_var holds numbers')])
def test_a_bad_file_is_one_clear_line_and_leaves_the_model_alone(kind, expected, small, tmp_path):
    path = tmp_path / 'small.safetensors'
    save_weights(small, path)
    damage(kind, path)
    with torch.no_grad():
        small[0].weight.fill_(5)
    with pytest.raises(WeightsError) as error:
        load_weights(small, path)
    text = one_line(error)
    assert expected in text and str(path) in text
    assert (small[0].weight == 5).all()


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads everything')
def test_a_file_without_permission(small, tmp_path):
    save_weights(small, tmp_path / 'small')
    (tmp_path / 'small').chmod(0)
    with pytest.raises(WeightsError, match='cannot read'):
        load_weights(small, tmp_path / 'small')


def test_saving_into_no_folder_is_an_error(small, tmp_path):
    with pytest.raises(WeightsError, match='cannot write'):
        save_weights(small, tmp_path / 'nowhere' / 'small')


def test_the_file_says_whether_it_routes_and_what_it_names(tiny, tmp_path):
    model = VideoInstanceModel(replace(tiny, classes=2))
    save_weights(model, tmp_path / 'routed', {'preset': 'tiny', 'class_names': 'cup\nspoon'})
    header = read_header(tmp_path / 'routed')
    assert header.has_routing and header.class_names == ('cup', 'spoon')
    loaded = load_model('tiny', tmp_path / 'routed')
    assert loaded.decoder.routers is not None and loaded.config.class_names == ('cup', 'spoon')
    assert not loaded.training
    with pytest.raises(WeightsError, match="made for preset 'tiny', not for 'nano'"):
        load_model('nano', tmp_path / 'routed')


def test_every_packaged_file_is_the_one_of_the_manifest():
    entries = [entry for entry in manifest.manifest() if entry.file]
    for entry in entries:
        assert manifest.sha256_of(entry.path) == entry.sha256 and entry.path.stat().st_size == entry.size, entry.file
        load_model(entry.preset, entry.path)
    listed = {entry.path for entry in entries}
    assert listed == set((manifest.FOLDER / 'files').glob('*.safetensors'))


def test_every_entry_of_the_manifest_says_what_a_user_must_know():
    entries = manifest.manifest()
    assert len({entry.name for entry in entries}) == len(entries)
    assert {entry.preset for entry in entries} >= set(OFFICIAL)
    for entry in entries:
        assert entry.licence and entry.source
        assert entry.preset == '' or entry.class_set in CLASS_SETS
        assert not entry.url or (entry.url.startswith('https://') and '/blob/' not in entry.url)
        assert entry.non_commercial or not entry.name.startswith('minvis')
    names = [entry.path.name for entry in entries if entry.path]
    assert len(set(names)) == len(names)   # one folder holds them all


@pytest.mark.parametrize('preset', OFFICIAL)
def test_official_presets_have_no_packaged_file_and_say_what_to_do(preset):
    with pytest.raises(WeightsError) as error:
        manifest.packaged_weights(preset)
    text = one_line(error)
    assert all(f'tar-vis weights {action}' in text for action in ('list', 'get', 'convert'))


def test_an_unknown_name_of_weights_names_the_nearest():
    with pytest.raises(WeightsError, match="did you mean 'minvis_ovis_R50'"):
        manifest.find_weights('minvis_ovis_r50')


def test_fetched_files_lie_where_the_user_says(monkeypatch, tmp_path):
    entry = manifest.find_weights('minvis_ovis_R50')
    monkeypatch.delenv('TAR_VIS_WEIGHTS', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert entry.path == tmp_path / '.cache/tar_vis/weights/minvis_ovis_R50.pth'
    monkeypatch.setenv('TAR_VIS_WEIGHTS', str(tmp_path))
    assert entry.state == 'absent'
    entry.path.write_bytes(b'')
    assert entry.path.parent == tmp_path and entry.state == 'fetched'


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'nano'"):
        manifest.packaged_weights('nan')


def test_packaged_weights_that_are_missing_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(manifest, 'FOLDER', tmp_path)
    entry = dict(name='own', preset='nano', class_set='nano', licence='Apache-2.0', source='', file='own.safetensors')
    (tmp_path / 'manifest.json').write_text(json.dumps({'weights': [entry]}))
    with pytest.raises(WeightsError, match=r'are missing: expected .*own\.safetensors; install the package again'):
        manifest.packaged_weights('nano')
    (tmp_path / 'own.safetensors').write_bytes(b'one')
    assert manifest.packaged_weights('nano') == tmp_path / 'own.safetensors'


@pytest.mark.parametrize(('names', 'class_set'), [
    (CLASS_SETS['ovis'], 'ovis'), (CLASS_SETS['youtube_vis_2021'], 'youtube_vis_2021'), (('cup', 'spoon'), 'custom')])
def test_classes_are_those_of_the_file(names, class_set, tiny, tmp_path):
    save_weights(VideoInstanceModel(replace(tiny, classes=len(names))), tmp_path / 'a', {
        'preset': 'tiny', 'class_names': '\n'.join(names), 'class_set': class_set})
    config = load_model('tiny', tmp_path / 'a').config
    assert (config.class_set, config.class_names, config.classes) == (class_set, names, len(names))


@pytest.mark.parametrize('names', [('cup', 'spoon', 'cup'), ('cup', '\x1b[2J')])
def test_class_names_that_are_none_are_refused(names, tiny, tmp_path):
    save_weights(VideoInstanceModel(replace(tiny, classes=len(names))), tmp_path / 'a', {
        'preset': 'tiny', 'class_names': '\n'.join(names)})
    with pytest.raises(WeightsError, match='class names are damaged'):
        load_model('tiny', tmp_path / 'a')


def test_what_is_no_model_is_not_loaded_as_one(tiny, tmp_path):
    save_weights(VideoInstanceModel(tiny), tmp_path / 'a', {'preset': 'tiny', 'kind': 'backbone'})
    with pytest.raises(WeightsError, match="is of kind 'backbone', expected the weights of a whole model") as error:
        load_model('tiny', tmp_path / 'a')
    one_line(error)


def test_verify_names_what_is_wrong(tiny, tmp_path, monkeypatch):
    file = tmp_path / 'a.safetensors'
    model = VideoInstanceModel(tiny)
    save_weights(model, file, {'preset': 'tiny'})
    assert manifest.sha256_of(file) in verify(str(file))[0] and 'tiny, youtube_vis_2019' in verify(str(file))[0]
    with torch.no_grad():
        model.pixel_decoder.level_embed[0, 0] = float('inf')
    for metadata, expected in (
            ({'preset': 'tiny'}, 'pixel_decoder.level_embed holds numbers'),
            ({}, 'does not say for which preset'),
            ({'kind': 'backbone', 'backbone': 'none'}, 'expected one of r50')):
        save_weights(model, file, metadata)
        with pytest.raises(WeightsError) as error:
            verify(str(file))
        assert expected in one_line(error)
    with pytest.raises(WeightsError, match='not found'):
        verify('nowhere.safetensors')
    monkeypatch.setenv('TAR_VIS_WEIGHTS', str(tmp_path / 'empty'))
    with pytest.raises(WeightsError, match='weights get minvis_ovis_R50'):
        verify('minvis_ovis_R50')
    nano = manifest.find_weights('nano')
    packaged = [entry for entry in manifest.manifest() if entry.file]
    assert len(verify()) == 2 * len(packaged) and 'as in the manifest' in verify('nano')[0]
    with pytest.raises(WeightsError, match='expected 00'):
        verify_entry(replace(nano, sha256='00'), nano.path)
    with pytest.raises(WeightsError, match='weights get dvispp_ovis_R50'):
        verify('dvispp_ovis_R50')
    elsewhere = tmp_path / 'minvis_ovis_R50.pth'
    elsewhere.write_bytes(b'content')
    assert manifest.sha256_of(elsewhere) in verify(str(elsewhere))[0]
    (tmp_path / 'nano.safetensors').write_bytes(b'content')
    with pytest.raises(WeightsError, match=f'expected {nano.sha256}'):
        verify(str(tmp_path / 'nano.safetensors'))
