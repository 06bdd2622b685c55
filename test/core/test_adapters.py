"""TAR adapters: Synchronizer and Routers apart from weights that stay as they are."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from saved_weights import save_weights
from weights_cases import add_tiny_presets, one_line

from tar_vis_core.commands.main import main
from tar_vis_core.errors import WeightsError
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.weights.loading import content_hash, is_routing, load_model, read_header, save_tensors, split_adapter
from tar_vis_core.weights.manifest import packaged_weights, sha256_of
from tar_vis_core.weights.verify import verify


@pytest.fixture
def files(monkeypatch, tmp_path):
    """(full, base, adapter) of an untrained model."""
    tiny = add_tiny_presets(monkeypatch)
    paths = [tmp_path / f'{name}.safetensors' for name in ('full', 'base', 'adapter')]
    save_weights(VideoInstanceModel(tiny), paths[0], {'preset': 'tiny', 'class_names': '\n'.join(tiny.class_names)})
    split_adapter(*paths)
    return paths


def equal(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def test_base_and_adapter_together_are_the_whole(files):
    full, base, adapter = files
    whole, plain = load_model('tiny', full), load_model('tiny', base)
    assert plain.decoder.routers is None and not plain.config.routing
    before = sha256_of(base)
    both = load_model('tiny', base, adapter)
    assert both.config.routing and both.config == whole.config and equal(both, whole)
    assert sha256_of(base) == before
    assert all(is_routing(name) for name in read_header(adapter).shapes)
    assert read_header(adapter).metadata == {'kind': 'adapter', 'preset': 'tiny', 'base': content_hash(base)}


def test_the_packaged_weights_can_be_split_from_the_command_line(tmp_path, capsys):
    base, adapter = tmp_path / 'base.safetensors', tmp_path / 'adapter.safetensors'
    full = packaged_weights('nano')
    assert main(['weights', 'split', str(full), '--base', str(base), '--adapter', str(adapter)]) == 0
    assert equal(load_model('nano', base, adapter), load_model('nano', full))
    assert 'adapter for nano' in verify(str(adapter))[0] and 'without' in verify(str(base))[0]


def test_a_content_hash_is_of_tensors_alone(files, tmp_path):
    _, base, _ = files
    state = load_file(base)
    save_tensors(dict(reversed(state.items())), tmp_path / 'same', {'note': 'other metadata'})
    assert content_hash(tmp_path / 'same') == content_hash(base)
    name = 'decoder.query_feat'
    for change in ({name: state[name] + 1e-6}, {name: state[name].T}, {name: state[name].half()},
                   {'new': torch.zeros(1)}):
        save_tensors({**state, **change}, tmp_path / 'other')
        assert content_hash(tmp_path / 'other') != content_hash(base)


@pytest.mark.parametrize(('case', 'expected'), [
    ('another base', 'made for other weights than'), ('another preset', "an adapter for preset 'tiny', not for"),
    ('a base with routers', 'has a Synchronizer and Routers of its own'), ('a whole model', 'is no adapter'),
    ('a base', 'is no adapter'), ('a tensor short', '1 missing (decoder.routers.bias1)'), ('no file', 'not found')])
def test_an_adapter_on_what_it_was_not_made_for_is_one_clear_line(case, expected, files, tmp_path):
    full, base, adapter = files
    preset = 'tiny'
    if case == 'another base':
        state = load_file(base)
        state['decoder.query_feat'] += 1
        base = tmp_path / 'trained_on.safetensors'
        save_tensors(state, base, {'preset': 'tiny'})
    elif case == 'another preset':
        preset, base = 'tiny_ctvis', tmp_path / 'ctvis.safetensors'
        save_weights(VideoInstanceModel(replace(load_model('tiny', full).config, routing=False, reid=True)), base,
                     {'preset': preset})
    elif case == 'a base with routers':
        base = full
    elif case == 'a whole model':
        adapter = full
    elif case == 'a base':
        adapter = shutil.copy(base, tmp_path / 'copy')
    elif case == 'a tensor short':
        state, metadata = load_file(adapter), read_header(adapter).metadata
        del state['decoder.routers.bias1']
        save_tensors(state, adapter, metadata)
    else:
        adapter.unlink()
    with pytest.raises(WeightsError) as error:
        load_model(preset, base, adapter)
    assert expected in one_line(error)


def test_an_adapter_is_not_weights(files):
    with pytest.raises(WeightsError, match="kind 'adapter', expected the weights of a whole model"):
        load_model('tiny', files[2])


def test_there_must_be_something_to_split(files, tmp_path):
    full, base, _ = files
    with pytest.raises(WeightsError, match='nothing to split'):
        split_adapter(base, tmp_path / 'a', tmp_path / 'b')
    with pytest.raises(WeightsError, match='must be three files'):
        split_adapter(full, full, tmp_path / 'b')
