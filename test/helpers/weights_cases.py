"""What the tests of weights files share."""

from dataclasses import replace

from tar_vis_core.models.backbones import BACKBONES
from tar_vis_core.models.backbones.resnet import ResNet50
from tar_vis_core.models.presets import PRESETS, find_preset

SMALL = dict(dim=32, queries=4, decoder_ffn=16, encoder_layers=1, encoder_ffn=16, decoder_layers=2, heads=2)
TINY = {'tiny': replace(find_preset('minvis_r50'), **SMALL),
        'tiny_ctvis': replace(find_preset('ctvis_r50'), **SMALL),
        **{f'tiny_{family}': replace(find_preset(f'{family}_r50'), **SMALL, tracker_layers=2, tracker_ffn=16)
           for family in ('dvispp', 'dvis', 'dvis_daq')}}


class NarrowResNet(ResNet50):
    channels = (16, 32, 48, 80)


def add_tiny_presets(monkeypatch):
    """A preset of each official family on ResNet-50 whose weights are a megabyte; gives MinVIS's."""
    monkeypatch.setitem(BACKBONES, 'r50', NarrowResNet)
    for name, config in TINY.items():
        monkeypatch.setitem(PRESETS, name, config)
    return TINY['tiny']


def one_line(error) -> str:
    text = str(error.value)
    assert '\n' not in text and 10 < len(text) < 600
    return text


def official_names(model):
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
    slot_parts = {**parts, 'slot_norm': ('cross_attention', 'norm'),
                  'input_norm': ('cross_attention', 'slot_attn.norm_inputs'),
                  'project_inputs': ('cross_attention', 'slot_attn.project_k'),
                  'place_norm': ('cross_attention', 'slot_attn.project_q.0'),
                  'project_places': ('cross_attention', 'slot_attn.project_q.1')}
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith(('decoder.layers.', 'tracker.layers.')):
            owner, _, layer, part, *rest = name.split('.')
            kind, inner = parts[part]
            prefix = 'tracker' if owner == 'tracker' else 'sem_seg_head.predictor'
            name = '.'.join((prefix, f'transformer_{kind}_layers', layer, inner, *rest))
        elif name.startswith('tracker.slot_layers.'):
            _, _, layer, part, *rest = name.split('.')
            kind, inner = slot_parts[part]
            name = '.'.join((f'tracker.slot_{kind}_layers', layer, inner, *rest))
        elif name in ('tracker.new_ins_embeds', 'tracker.bg_slots'):
            name += '.weight'
        elif name in ('decoder.query_feat', 'decoder.query_embed', 'decoder.level_embed'):
            name = f'sem_seg_head.predictor.{name.removeprefix("decoder.")}.weight'
        else:
            for ours, theirs in changes:
                if name.startswith(ours):
                    name = theirs + name.removeprefix(ours)
                    break
        state[name] = value
    return state
