"""The three ways into the last frame's slots, and presets with another form of TAR."""

import math

import pytest
import torch
from saved_weights import save_weights
from test_temporal_routing import DIM, LAYERS, QUERIES, a_frame, randomize

from tar_vis_core.errors import WeightsError
from tar_vis_core.models.masked_decoder import MaskedDecoder
from tar_vis_core.models.presets import STUDIED, SYNCHRONIZERS, find_preset
from tar_vis_core.models.temporal_routing import into_slots
from tar_vis_core.models.video_model import build_model
from tar_vis_core.weights.loading import load_model


def decoder_with(synchronizer: str, warmup_layers: int = 1) -> MaskedDecoder:
    torch.manual_seed(0)
    made = MaskedDecoder(DIM, heads=4, ffn=64, queries=QUERIES, classes=3, layers=LAYERS, warmup_layers=warmup_layers,
                         synchronizer=synchronizer).eval()
    randomize(made.routers, seed=0)
    return made


def test_queries_and_their_positions_move_into_the_slots_they_are_nearest_to():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, QUERIES, DIM, generator=generator)
    position = torch.randn(QUERIES, DIM, generator=generator)
    orders = [torch.randperm(QUERIES, generator=generator) for _ in range(2)]
    previous = torch.stack([3 * q[order] + 0.1 for q, order in zip(queries, orders)])
    moved, places, order_of = into_slots(queries, previous, position)
    for k, order in enumerate(orders):
        assert torch.equal(moved[k], queries[k, order]) and torch.equal(places[k], position[order])
        assert torch.equal(order_of[k], order)


@torch.no_grad()
def test_a_permutation_changes_the_order_of_the_answers_and_nothing_else():
    decoder = decoder_with('bipartite')
    mask_features, levels, _ = a_frame()
    plain = decoder(mask_features, levels)
    order = torch.randperm(QUERIES, generator=torch.Generator().manual_seed(1))
    # slots that resemble the queries after the warm-up layer, in another order
    previous = decoder(mask_features, levels, routing='fixed', fixed_layers=1).queries[:, order]
    moved = decoder(mask_features, levels, previous, 'adaptive', skip_bias=-math.inf)
    assert all(moved.trace.executed)
    assert torch.allclose(moved.queries, plain.queries[:, order], atol=1e-5)
    assert torch.allclose(moved.logits, plain.logits[:, order], atol=1e-5)


@torch.no_grad()
def test_without_a_synchronizer_all_layers_are_the_plain_decoder():
    decoder = decoder_with('none')
    mask_features, levels, previous = a_frame()
    routed = decoder(mask_features, levels, previous, 'adaptive', skip_bias=-math.inf)
    assert torch.equal(routed.queries, decoder(mask_features, levels).queries)


@pytest.mark.parametrize('synchronizer', SYNCHRONIZERS)
@pytest.mark.parametrize('warmup_layers', [1, 3])
@torch.no_grad()
def test_training_and_inference_decode_alike(synchronizer, warmup_layers):
    decoder = decoder_with(synchronizer, warmup_layers)
    executed = set()
    for seed in range(3):
        mask_features, levels, previous = a_frame(seed)
        out = decoder(mask_features, levels, previous, 'adaptive')
        trained = decoder.supervised(mask_features, levels, previous)
        assert out.trace.executed[warmup_layers:] == tuple(trained.executed[0].bool().tolist())
        assert torch.allclose(out.queries, trained.queries, atol=1e-5)
        executed.add(out.trace.executed)
    assert len(executed) > 1        # routers that decide


def test_only_attention_has_weights_and_an_unknown_way_is_refused():
    keys = {way: {name for name in decoder_with(way).state_dict() if name.startswith('synchronizer')}
            for way in SYNCHRONIZERS}
    assert keys['attention'] and not keys['bipartite'] and not keys['none']
    with pytest.raises(ValueError, match=r"'atention', expected one of attention, bipartite, none"):
        decoder_with('atention')


def test_a_preset_takes_another_form_of_tar_and_its_weights_remember(tmp_path):
    assert find_preset('crowd') is STUDIED['crowd']
    name = 'crowd:synchronizer=bipartite,warmup_layers=3'
    config = find_preset(name)
    assert (config.synchronizer, config.warmup_layers, config.family) == ('bipartite', 3, 'crowd')
    save_weights(build_model(name), tmp_path / 'w.safetensors', {'preset': name})
    model = load_model(name, tmp_path / 'w.safetensors')
    assert model.decoder.permutes and model.decoder.routers.weight1.shape[0] == 6
    with pytest.raises(WeightsError, match='made for preset'):
        load_model('crowd', tmp_path / 'w.safetensors')


@pytest.mark.parametrize('name', ['crowd:synchronizer=some', 'crowd:warmup_layers=9', 'crowd:warmup_layers=0',
                                  'crowd:queries=3', 'crowed:synchronizer=none', 'crowd:routers=shared'])
def test_a_wrong_preset_says_what_is_expected(name):
    with pytest.raises(ValueError, match=r'expected|did you mean'):
        find_preset(name)
