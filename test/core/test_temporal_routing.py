"""TAR: what runs, what does not, and that the quick way of deciding is the plain one."""

import itertools
import math

import numpy as np
import pytest
import torch

from tar_vis_core.models.frame_memory import FrameMemory
from tar_vis_core.models.masked_decoder import MaskedDecoder
from tar_vis_core.models.temporal_routing import EXECUTE, SKIP, Routers, straight_through

DIM, QUERIES, LAYERS = 32, 7, 9


@pytest.fixture
def decoder():
    return decoder_of()


def decoder_of() -> MaskedDecoder:
    torch.manual_seed(0)
    made = MaskedDecoder(DIM, heads=4, ffn=64, queries=QUERIES, classes=3, layers=LAYERS).eval()
    randomize(made.routers, seed=0)
    return made


def randomize(routers: Routers, seed: int, scale: float = 3.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        routers.weight2.copy_(scale * torch.randn(routers.weight2.shape, generator=generator))
        routers.bias2.zero_()


def a_frame(seed: int = 1, batch: int = 1):
    generator = torch.Generator().manual_seed(seed)
    sizes = (4, 6), (8, 12), (16, 24)
    levels = [torch.randn(batch, DIM, *size, generator=generator) for size in sizes]
    previous = torch.randn(batch, QUERIES, DIM, generator=generator)
    return torch.randn(batch, DIM, 32, 48, generator=generator), levels, previous


def count_layers(decoder) -> list[int]:
    ran: list[int] = []
    for i, layer in enumerate(decoder.layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    return ran


def one_by_one(decoder, mask_features, levels, previous, skip_bias=0.0):
    """The paper's recurrence with nothing batched: each router is asked alone, on the queries before its layer."""
    memory = FrameMemory(mask_features, levels, decoder.level_embed)
    x = decoder.query_feat.expand(1, -1, -1)
    executed = []
    for i in range(LAYERS):
        run = True
        if i >= decoder.warmup_layers:
            router = i - decoder.warmup_layers
            scores = decoder.routers(x, previous, router, router + 1)[0, 0]
            run = bool(scores[EXECUTE] - scores[SKIP] - skip_bias >= 0)
        if run:
            x = decoder.run_layer(i, x, memory)
        executed.append(run)
        if i == decoder.warmup_layers - 1:
            x = decoder.synchronizer(x, previous)
    return x, tuple(executed)


@torch.inference_mode()
@pytest.mark.parametrize('seed', range(12))
def test_asking_ahead_decides_as_asking_one_by_one(decoder, seed):
    randomize(decoder.routers, seed)
    mask_features, levels, previous = a_frame(seed)
    queries, executed = one_by_one(decoder, mask_features, levels, previous)
    out = decoder(mask_features, levels, previous, 'adaptive')
    assert out.trace.executed == executed
    torch.testing.assert_close(out.queries, queries, rtol=0, atol=0)


@torch.inference_mode()
def test_the_seeds_above_cover_runs_of_skips_and_of_executions(decoder):
    patterns = set()
    for seed in range(12):
        randomize(decoder.routers, seed)
        mask_features, levels, previous = a_frame(seed)
        patterns.add(decoder(mask_features, levels, previous, 'adaptive').trace.executed)
    assert len(patterns) > 5
    assert any(p[i:i + 2] == (False, False) for p in patterns for i in range(LAYERS))
    assert any(p[i:i + 2] == (True, True) for p in patterns for i in range(1, LAYERS))


@torch.inference_mode()
def test_skipped_layers_do_not_run(decoder):
    mask_features, levels, previous = a_frame()
    ran = count_layers(decoder)
    out = decoder(mask_features, levels, previous, 'adaptive')
    assert 0 < sum(out.trace.executed) < LAYERS
    assert ran == [i for i, e in enumerate(out.trace.executed) if e]


@torch.inference_mode()
def test_at_most_executed_plus_one_decisions_reach_the_host(decoder):
    calls = []
    ask = decoder.execute_probability
    decoder.execute_probability = lambda *args: calls.append(1) or ask(*args)
    for seed in range(12):
        randomize(decoder.routers, seed)
        mask_features, levels, previous = a_frame(seed)
        calls.clear()
        out = decoder(mask_features, levels, previous, 'adaptive')
        assert len(calls) <= sum(out.trace.executed[decoder.warmup_layers:]) + 1


@torch.inference_mode()
def test_all_executed_is_every_layer_in_turn_bit_for_bit(decoder):
    mask_features, levels, previous = a_frame()
    out = decoder(mask_features, levels, previous, 'adaptive', skip_bias=-math.inf)
    queries, executed = one_by_one(decoder, mask_features, levels, previous, skip_bias=-math.inf)
    assert out.trace.executed == executed == (True,) * LAYERS
    assert torch.equal(out.queries, queries)


@torch.inference_mode()
def test_a_first_frame_and_all_fixed_layers_are_the_full_decoder_bit_for_bit(decoder):
    mask_features, levels, _ = a_frame()
    full = decoder(mask_features, levels, None, 'full')
    for other in (decoder(mask_features, levels, None, 'adaptive'),
                  decoder(mask_features, levels, None, 'fixed', fixed_layers=LAYERS)):
        assert torch.equal(full.queries, other.queries)
        assert torch.equal(full.logits, other.logits)
        assert other.trace.executed == (True,) * LAYERS


@torch.inference_mode()
def test_all_skipped_leaves_the_synchronized_queries(decoder):
    mask_features, levels, previous = a_frame()
    ran = count_layers(decoder)
    out = decoder(mask_features, levels, previous, 'adaptive', skip_bias=math.inf)
    assert ran == [0]
    memory = FrameMemory(mask_features, levels, decoder.level_embed)
    first = decoder.run_layer(0, decoder.query_feat.expand(1, -1, -1), memory)
    assert torch.equal(out.queries, decoder.synchronizer(first, previous))


@torch.inference_mode()
def test_fixed_runs_the_first_layers_only(decoder):
    mask_features, levels, _ = a_frame()
    ran = count_layers(decoder)
    assert decoder(mask_features, levels, None, 'fixed', fixed_layers=4).trace.executed == (True,) * 4 + (False,) * 5
    assert ran == [0, 1, 2, 3]


@torch.inference_mode()
def test_a_tie_executes(decoder):
    with torch.no_grad():
        decoder.routers.weight2.zero_()
        decoder.routers.bias2.zero_()
    mask_features, levels, previous = a_frame()
    out = decoder(mask_features, levels, previous, 'adaptive')
    assert out.trace.executed == (True,) * LAYERS
    assert np.allclose(out.trace.execute_probability[1:], 0.5)


@torch.inference_mode()
def test_probabilities_are_nan_where_no_router_was_asked(decoder):
    mask_features, levels, previous = a_frame()
    full = decoder(mask_features, levels, previous, 'full').trace
    assert np.isnan(full.execute_probability).all()
    trace = decoder(mask_features, levels, previous, 'adaptive').trace
    assert np.isnan(trace.execute_probability[0])
    asked = trace.execute_probability[1:]
    assert ((asked >= 0.5) == np.array(trace.executed[1:])).all()


@torch.inference_mode()
def test_the_same_frame_twice_gives_the_same_answer(decoder):
    mask_features, levels, previous = a_frame()
    first, second = (decoder(mask_features, levels, previous, 'adaptive') for _ in range(2))
    assert torch.equal(first.queries, second.queries) and first.trace.executed == second.trace.executed


def test_training_form_decides_and_computes_as_inference_does(decoder):
    mask_features, levels, previous = a_frame()
    trained = decoder.supervised(mask_features, levels, previous)
    with torch.inference_mode():
        out = decoder(mask_features, levels, previous, 'adaptive')
    assert [bool(e) for e in trained.executed[0]] == list(out.trace.executed[1:])
    torch.testing.assert_close(trained.queries, out.queries, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trained.logits[-1], out.logits, rtol=1e-5, atol=1e-5)


def test_gates_are_per_sample(decoder):
    mask_features, levels, previous = a_frame(batch=6)
    together = decoder.supervised(mask_features, levels, previous)
    assert len({tuple(row.tolist()) for row in together.executed}) > 1
    for n in range(6):
        alone = decoder.supervised(mask_features[n:n + 1], [x[n:n + 1] for x in levels], previous[n:n + 1])
        assert torch.equal(alone.executed[0], together.executed[n])
        torch.testing.assert_close(alone.queries[0], together.queries[n], rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_router_and_the_synchronizer(decoder):
    mask_features, levels, previous = a_frame(batch=2)
    out = decoder.supervised(mask_features, levels, previous)
    out.logits[-1].square().mean().backward()
    assert (decoder.routers.weight2.grad.abs().amax((1, 2)) > 0).all()
    assert decoder.synchronizer.attention.in_proj_weight.grad.abs().max() > 0


def test_straight_through_is_one_hot_forwards_and_softmax_backwards():
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0]], requires_grad=True)
    gate = straight_through(scores)
    assert gate.tolist() == [[1, 0], [0, 1], [0, 1]]
    gate[:, EXECUTE].sum().backward()
    soft = scores.detach().clone().requires_grad_()
    soft.softmax(-1)[:, EXECUTE].sum().backward()
    torch.testing.assert_close(scores.grad, soft.grad)


def test_a_new_router_executes_everything():
    scores = Routers(8, DIM)(torch.randn(2, QUERIES, DIM), torch.randn(2, QUERIES, DIM))
    assert scores.shape == (2, 8, 2) and (scores[..., EXECUTE] > scores[..., SKIP]).all()
    torch.testing.assert_close(scores.softmax(-1)[..., EXECUTE], torch.full((2, 8), 0.7311), rtol=0, atol=1e-3)


@pytest.mark.parametrize('open_layers', [(), (3,), (1, 4, 8), range(1, 9)])
def test_a_gate_decides_in_the_routers_place(decoder, open_layers):
    mask_features, levels, previous = a_frame()
    ran, asked = count_layers(decoder), []
    gates = [float(i in open_layers) for i in range(LAYERS)]
    out = decoder(mask_features, levels, previous, 'adaptive', gate=lambda layer: asked.append(layer) or gates[layer:])
    assert ran == [0, *open_layers] and out.trace.executed == tuple(i in ran for i in range(LAYERS))
    assert asked[0] == 1 and all(before < after for before, after in itertools.pairwise(asked))


def test_adaptive_needs_routers_and_one_frame_at_a_time(decoder):
    mask_features, levels, previous = a_frame(batch=2)
    with pytest.raises(ValueError, match='one frame at a time'):
        decoder(mask_features, levels, previous, 'adaptive')
    plain = MaskedDecoder(DIM, heads=4, ffn=64, queries=QUERIES, classes=3, routing=False)
    with pytest.raises(ValueError, match='no routers'):
        plain(mask_features[:1], [x[:1] for x in levels], previous[:1], 'adaptive')
    with pytest.raises(ValueError, match="'sometimes'"):
        plain(mask_features, levels, None, 'sometimes')
