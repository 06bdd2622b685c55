"""Files of a backbone alone, from which training starts."""

import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from weights_cases import TINY, NarrowResNet, one_line

from tar_vis_core.commands.main import main
from tar_vis_core.errors import WeightsError
from tar_vis_core.models.backbones import BACKBONES
from tar_vis_core.models.backbones.swin import SwinL, relative_position_index
from tar_vis_core.models.backbones.vit_adapter import ViTAdapterL
from tar_vis_core.models.presets import PRESETS
from tar_vis_core.models.video_model import build_model
from tar_vis_core.weights.backbone import load_backbone
from tar_vis_core.weights.loading import load_model, read_header, save_tensors
from tar_vis_core.weights.official import convert_official
from tar_vis_core.weights.verify import verify


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small backbones of every kind, and a preset on each."""
    for name, made in (('r50', NarrowResNet),
                       ('swin_l', partial(SwinL, embed_dim=8, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2), window=4)),
                       ('vit_adapter_l', partial(ViTAdapterL, embed_dim=32, depth=4, heads=2, grid=3, inner=8,
                                                 deform_heads=2))):
        monkeypatch.setitem(BACKBONES, name, made)
        monkeypatch.setitem(PRESETS, f'tiny_{name}', replace(TINY['tiny'], backbone=name))


def trained(backbone):
    torch.manual_seed(1)
    model = BACKBONES[backbone]()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.normal_()
    return model.state_dict()


def imagenet_r50(folder):
    """detectron2's R-50.pkl: numpy, no prefix, a classifier."""
    state = trained('r50')
    arrays = {name: value.numpy() for name, value in state.items()}
    content = {'model': {**arrays, 'stem.fc.weight': arrays['stem.conv1.weight'], 'stem.fc.bias': arrays[
        'stem.conv1.norm.bias']}, '__author__': 'somebody', 'matching_heuristics': True}
    (folder / 'R-50.pkl').write_bytes(pickle.dumps(content))
    return folder / 'R-50.pkl', state, {'stem.fc.weight', 'stem.fc.bias', '__author__', 'matching_heuristics'}, 0


def imagenet_swin(folder):
    """A Swin file as detectron2 projects convert it: torch tensors in a plain pickle, a classifier, masks."""
    state = {name: value for name, value in trained('swin_l').items() if not name.startswith('norm')}
    extra = {'norm.weight': torch.ones(64), 'norm.bias': torch.ones(64), 'head.weight': torch.ones(9, 64),
             'head.bias': torch.ones(9), 'layers.1.blocks.1.attn_mask': torch.zeros(4, 16, 16)}
    index = {f'layers.{stage}.blocks.0.attn.relative_position_index': relative_position_index(4) for stage in range(4)}
    path = folder / 'swin_large_patch4_window12_384_22k.pkl'
    path.write_bytes(pickle.dumps({'model': state | extra | index, 'matching_heuristics': True}))
    return path, state, extra.keys() | index.keys() | {'matching_heuristics'}, 8


def dinov2(folder):
    """The published DINOv2 file: a plain state dict with patches of 14 pixels."""
    state = {name.removeprefix('vit_module.'): value for name, value in trained('vit_adapter_l').items()
             if name.startswith('vit_module.')}
    state['patch_embed.proj.weight'] = torch.randn(32, 3, 14, 14)
    torch.save(state, folder / 'dinov2_vitl14_pretrain.pth')
    expected = {f'vit_module.{name}': value for name, value in state.items()}
    expected['vit_module.patch_embed.proj.weight'] = F.interpolate(
        state['patch_embed.proj.weight'], (16, 16), mode='bilinear', align_corners=True)
    return folder / 'dinov2_vitl14_pretrain.pth', expected, set(), len(trained('vit_adapter_l')) - len(expected)


FILES = {'r50': imagenet_r50, 'swin_l': imagenet_swin, 'vit_adapter_l': dinov2}


@pytest.mark.parametrize('backbone', FILES)
def test_a_backbone_file_is_told_converted_and_loaded(backbone, tmp_path):
    path, expected, dropped, untrained = FILES[backbone](tmp_path)
    done = convert_official(path, tmp_path / 'ours.safetensors')
    assert (done.backbone, done.preset, done.tensors) == (backbone, '', len(expected))
    assert {name for name, _ in done.dropped} == set(dropped)
    assert any(f'{untrained} tensors start untrained' in note for note in done.notes) == (untrained > 0)
    assert set(read_header(done.path).shapes) == {f'backbone.{name}' for name in expected}
    assert f'backbone {backbone}' in verify(str(done.path))[0]
    model = build_model(f'tiny_{backbone}')
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_backbone(model, done.path)
    for name, value in model.state_dict().items():
        wanted = expected.get(name.removeprefix('backbone.')) if name.startswith('backbone.') else None
        assert torch.equal(value, before[name] if wanted is None else wanted), name


def test_resized_patches_keep_their_corners(tmp_path):
    """Bilinear with aligned corners: the corner values stay where they are."""
    path, _, _, _ = dinov2(tmp_path)
    state = torch.load(path)
    convert_official(path, tmp_path / 'ours')
    model = build_model('tiny_vit_adapter_l')
    load_backbone(model, tmp_path / 'ours')
    ours, theirs = model.backbone.vit_module.patch_embed.proj.weight.detach(), state['patch_embed.proj.weight']
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(ours[..., row, column], theirs[..., row, column])


@pytest.mark.parametrize(('change', 'expected'), [
    (lambda s: s.pop('res3.1.conv2.weight'), '1 missing (backbone.res3.1.conv2.weight)'),
    (lambda s: s.update({'res6.weight': s['stem.conv1.weight']}), '1 unexpected (backbone.res6.weight)'),
    (lambda s: s.update({'res3.1.conv2.weight': s['stem.conv1.weight']}), '1 of another shape'),
    (lambda s: [s.pop(name) for name in [*s] if name.startswith('res2')], 'neither a known model nor a backbone')])
def test_a_backbone_that_does_not_fit_is_one_clear_line(change, expected, tmp_path):
    state = trained('r50')
    change(state)
    torch.save({'model': state}, tmp_path / 'a.pth')
    with pytest.raises(WeightsError) as error:
        convert_official(tmp_path / 'a.pth', tmp_path / 'ours')
    assert expected in one_line(error) and not (tmp_path / 'ours').exists()


def test_a_backbone_serves_only_models_on_it(tmp_path):
    convert_official(imagenet_r50(tmp_path)[0], tmp_path / 'ours')
    with pytest.raises(WeightsError, match='holds a backbone r50, expected backbone swin_l'):
        load_backbone(build_model('tiny_swin_l'), tmp_path / 'ours')
    with pytest.raises(WeightsError, match="kind 'backbone', expected the weights of a whole model"):
        load_model('tiny_r50', tmp_path / 'ours')
    with pytest.raises(WeightsError, match="is a backbone r50, but preset 'tiny_swin_l' is on swin_l"):
        convert_official(tmp_path / 'R-50.pkl', tmp_path / 'other', 'tiny_swin_l')
    model = build_model('tiny_r50')
    save_tensors(model.state_dict(), tmp_path / 'model', {'preset': 'tiny_r50'})
    with pytest.raises(WeightsError, match='holds a model, expected backbone r50'):
        load_backbone(model, tmp_path / 'model')


def test_the_command_says_what_a_backbone_is_for(tmp_path, capsys):
    path, *_ = imagenet_r50(tmp_path)
    assert main(['weights', 'convert', str(path), '-o', str(tmp_path / 'ours')]) == 0
    said = capsys.readouterr().out
    assert 'backbone r50, for training to start from' in said and 'part of a classifier' in said
