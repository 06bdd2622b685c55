"""Routers that look at the picture: what they see, what they decide by it, and what they learn from."""

import math

import numpy as np
import pytest
import torch
from saved_weights import save_weights
from tiny_model import picture, tiny_model

from tar_vis_core.data.synth import SynthVideos
from tar_vis_core.models.seeing_routers import EVIDENCE, Past, SeeingRouters, evidence
from tar_vis_core.models.video_model import build_model
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.training.losses import LossWeights, make_target, set_losses, total_loss
from tar_vis_core.training.objective import batch_losses, frame_losses, worth_loss
from tar_vis_core.training.recipe import load_recipe
from tar_vis_core.training.starting_weights import start_model
from tar_vis_core.weights.loading import load_model

WARM_UP, LAYERS = 1, 9


def seeing(seed: int = 4):
    return tiny_model(seed, routers='seeing').eval()


def found(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """The evidence of two maps of mask features ``(1, D, S)`` for three queries, two of which are objects."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(1, 3, before.shape[1], generator=generator)
    return evidence(torch.tensor([[0.9, 0.7, 0.0]]), embeddings, before, now, torch.ones(1, 3))


def test_what_has_not_changed_gives_no_evidence_and_the_more_changes_the_more_there_is():
    generator = torch.Generator().manual_seed(0)
    before, other = (torch.randn(1, 8, 30, generator=generator) for _ in range(2))
    nothing, little, much = (found(before, before + share * other)[0] for share in (0.0, 0.05, 1.0))
    assert nothing.shape == (EVIDENCE,) and nothing.abs().max() < 1e-5
    grows = [k for k in range(EVIDENCE) if little[k].abs() < much[k].abs()]
    assert len(grows) >= EVIDENCE - 4 and 0 < little[0] < much[0]      # similarity (2) is given; certainty may fall


def test_a_query_that_is_no_object_says_nothing():
    before = torch.zeros(1, 8, 30)
    before[:, 0] = 1
    objects = torch.tensor([[0.0, 0.9]])
    embeddings = torch.zeros(1, 2, 8)
    embeddings[0, 0, 1], embeddings[0, 1, 2] = 5.0, 5.0         # each looks at a channel of its own
    now = before.clone()
    now[:, 1] = 3.0
    seen = evidence(objects, embeddings, before, now, torch.ones(1, 2))[0]
    assert abs(float(seen[0])) < 1e-5, 'only the first query, no object, sees channel 1'
    assert abs(float(evidence(objects.flip(1), embeddings, before, now, torch.ones(1, 2))[0, 0])) > 0.1


def test_queries_alone_are_not_enough_to_see_by():
    model = seeing()
    features = model.encode(torch.randn(1, 3, 64, 96))
    with pytest.raises(ValueError, match='give the `past` of the last output'):
        model.decode(features, model.decode(features).queries, 'adaptive')


@pytest.mark.parametrize(('price', 'expected'), [(1e6, WARM_UP), (1e-4, LAYERS), (0.04, WARM_UP + 4)])
def test_a_layer_runs_if_it_is_worth_its_price(price, expected):
    model = seeing()
    model.decoder.routers.price.fill_(price)
    segmenter = VideoSegmenter.from_model(model, 'cpu', options=SegmenterOptions(routing='adaptive', refresh_frames=0))
    state = segmenter.new_state()
    first, second = (segmenter.step(picture(seed), state) for seed in (1, 2))
    assert first.routing.executed_layers == LAYERS and second.routing.executed_layers == expected
    asked = second.routing.execute_probability[WARM_UP:]
    assert np.isfinite(asked).all() and ((asked >= 0.5) == second.routing.executed[WARM_UP:]).all()


def test_a_frame_in_which_nothing_was_refined_hands_on_what_it_got():
    model = seeing()
    first, second = (model.encode(torch.randn(1, 3, 64, 96)) for _ in range(2))
    past = model.decode(first).past
    model.decoder.routers.price.fill_(1e6)
    assert model.decode(second, past, 'adaptive').past is past
    model.decoder.routers.price.fill_(1e-4)
    assert not torch.equal(model.decode(second, past, 'adaptive').past.seen, past.seen)


def test_the_bias_moves_the_price():
    model = seeing()
    features = model.encode(torch.randn(1, 3, 64, 96))
    previous = model.decode(features).past
    with torch.no_grad():
        model.decoder.routers.worth.bias.fill_(0.8)
    model.decoder.routers.price.fill_(0.1)
    ran = [np.flatnonzero(model.decode(features, previous, 'adaptive', skip_bias=bias).trace.executed).tolist()
           for bias in (-math.inf, -1.0, 0.6, 0.8, math.inf)]
    # each of four layers is worth 0.2, and the prices are 0.04, 0.18 and 0.22; those of the finest level come first
    assert ran == [[*range(9)], [0, 2, 4, 5, 8], [0, 2, 4, 5, 8], [0], [0]]


def test_training_runs_as_many_layers_as_asked_for():
    model = seeing()
    first, second = (model.encode(torch.randn(1, 3, 64, 96)) for _ in range(2))
    past = model.decode(first).past
    for count, layers in ((0, []), (3, [2, 5, 8]), (8, range(1, 9))):
        gates = np.isin(np.arange(LAYERS), [0, *layers])
        out = model.decode(second, past, 'adaptive', gate=lambda layer, gates=gates: gates[layer:])
        trained = model.supervised(second, past, torch.tensor([count]))
        assert torch.allclose(trained.queries, out.queries, atol=1e-5)
        assert torch.allclose(trained.logits[-1], out.logits, atol=1e-4)


def test_a_batch_hands_on_what_it_got_for_frames_that_rest():
    before, now = (Past(torch.full((2, 3, 4), v), torch.full((2, 4, 5), v), torch.full((2, 3), v)) for v in (0.0, 1.0))
    for value in now.unless(torch.tensor([True, False]), before):
        assert (value[0] == 0).all() and (value[1] == 1).all()


def test_the_loss_of_an_exit_is_that_of_the_decoder_cut_there():
    model = seeing()
    clip = SynthVideos((64, 96), 2, length=1, seed=3)[0]
    sample = clip[0]
    sample.labels.clamp_(max=2)
    features = model.encode(model.normalize(sample.image[None]))
    target = make_target(sample, (64, 96))
    for depth in (WARM_UP, LAYERS):
        all_exits = model.supervised(features)
        loss, = frame_losses(model, all_exits, depth, features, [sample], [target], LossWeights(), None)
        out = model.decode(features, routing='fixed', fixed_layers=depth)
        terms = set_losses([out.logits], [out.mask_embeddings], features.mask_features, [target], LossWeights())
        assert loss.item() == pytest.approx(total_loss(terms, LossWeights()).item(), rel=1e-4)


def test_routers_learn_what_layers_take_away():
    torch.manual_seed(0)
    routers, generator = SeeingRouters(3), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(routers.parameters(), 1e-2)
    for _ in range(250):
        change = torch.rand(16, generator=generator) * (torch.rand(16, generator=generator) < 0.5)     # or rest
        loss = worth_loss(routers(change[:, None].expand(-1, EVIDENCE)), torch.full((16,), 2.0), 2 - 0.6 * change)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still, jump = routers(torch.tensor([0.0, 0.9])[:, None].expand(-1, EVIDENCE)).tolist()
    assert abs(still) < 0.1 and jump == pytest.approx(0.54, abs=0.1)


def test_only_what_routers_say_trains_if_nothing_else_does():
    torch.manual_seed(0)
    recipe = load_recipe('crowd_see')
    model, _ = start_model(recipe)
    model.requires_grad_(False)
    model.decoder.routers.requires_grad_(True)
    loss, terms = batch_losses(model, [SynthVideos((64, 96), 2, length=1, seed=3)[0]], recipe, 0.0, (0, 0))
    loss.backward()
    assert float(model.decoder.routers.price) == pytest.approx(recipe.price) != 0.05
    assert set(terms) == {'worth'} and model.decoder.routers.worth.bias.grad.abs().sum() > 0


def test_what_a_rest_costs_adds_to_what_layers_are_worth():
    recipe, losses = load_recipe('crowd_see'), []
    model, _ = start_model(recipe)
    for cost, worth in ((0.0, 0.3), (0.25, 0.55)):
        recipe.rest_cost = cost
        torch.nn.init.constant_(model.decoder.routers.worth.bias, worth)
        torch.manual_seed(0)
        loss, _ = batch_losses(model, [SynthVideos((64, 96), 2, length=1, seed=3)[0]], recipe, 0.0, (0, 0))
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_file_says_itself_what_routers_it_holds(tmp_path):
    model = seeing()
    torch.manual_seed(0)
    path = tmp_path / 'seeing.safetensors'
    save_weights(build_model('crowd:routers=seeing'), path, {'preset': 'crowd'})
    assert isinstance(load_model('crowd', path).decoder.routers, SeeingRouters)
    out = model.decode(model.encode(torch.randn(1, 3, 64, 96)))
    assert isinstance(out.past, Past) and out.past.seen.shape == (1, 32, 24)
