import os
import struct
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights_cases import add_tiny_presets, one_line

from tar_vis_core import weights
from tar_vis_core.errors import WeightsError
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.weights.loading import load_model, load_weights, read_header, save_weights


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
    ('missing', 'not found'), ('a folder', 'is a folder'), ('empty', 'truncated'), ('truncated', 'truncated'),
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
    entries = weights.manifest()
    for entry in entries:
        assert weights.sha256_of(entry.path) == entry.sha256, entry.file
        assert entry.licence and entry.source
        load_model(entry.preset, entry.path)
    listed = {entry.path for entry in entries}
    assert listed == set((weights.FOLDER / 'files').glob('*.safetensors'))


def test_minvis_has_no_packaged_file_and_says_what_to_do():
    with pytest.raises(WeightsError, match='tar-vis weights convert') as error:
        weights.packaged_weights('minvis_r50')
    one_line(error)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'nano'"):
        weights.packaged_weights('nan')


def test_manifest_entries_are_replaced_and_found(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, 'FOLDER', tmp_path)
    (tmp_path / 'manifest.json').write_text('{"weights": []}')
    (tmp_path / 'files').mkdir()
    file = tmp_path / 'files' / 'nano.safetensors'
    for content in (b'one', b'two'):
        file.write_bytes(content)
        weights.add_to_manifest(file, 'nano', 'Apache-2.0', 'a test')
    assert len(weights.manifest()) == 1
    assert weights.packaged_weights('nano') == file
    assert weights.manifest()[0].sha256 == weights.sha256_of(file)
    file.unlink()
    with pytest.raises(WeightsError, match='are missing'):
        weights.packaged_weights('nano')
