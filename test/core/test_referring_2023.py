"""DVIS's tracker of 2023 against a plain restatement, at several sizes; and its training form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from decoder_outputs import decoder_output
from restated_daq import decoder_layer
from scipy.optimize import linear_sum_assignment

from tar_vis_core.models.referring_2023 import ReferringTracker2023
from tar_vis_core.models.tracked import masks_of


def frames_of(count: int, queries: int, dim: int, seed: int) -> torch.Tensor:
    """The same objects in a new order in every frame, ``(T, Q, D)``."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(queries, dim, generator=generator)
    noise = 0.3 * torch.randn(count, queries, dim, generator=generator)
    return torch.stack([(own + n)[torch.randperm(queries, generator=generator)] for n in noise])


def restated(network: ReferringTracker2023, frames: torch.Tensor) -> tuple[list[torch.Tensor], list[list[int]]]:
    """States after the last layer, and the query that each slot starts from, frame by frame."""
    states, orders, reference, known = [], [], None, None
    for e in frames:
        order = list(range(len(e)))
        if known is not None:
            cost = np.array([[1 - float(F.cosine_similarity(c, g, dim=0)) for g in known] for c in e])
            slot_of_query = dict(zip(*(x.tolist() for x in linear_sum_assignment(cost)), strict=True))
            order = [slot_of_query[s] for s in range(len(e))]      # the inverse of what one expects
        x = e[order]
        for layer in network.layers:
            x = decoder_layer(layer, x, x if reference is None else reference, e, e)
        reference, known = x, e[order]
        states.append(x)
        orders.append(order)
    return states, orders


@pytest.mark.parametrize(('queries', 'dim', 'heads', 'layers'), [(7, 16, 4, 2), (12, 48, 8, 3), (1, 16, 2, 1)])
@torch.no_grad()
def test_equals_the_plain_restatement(queries, dim, heads, layers):
    torch.manual_seed(queries)
    network = ReferringTracker2023(dim, heads, 2 * dim, layers, 3).eval()
    embeddings, features = frames_of(5, queries, dim, queries), torch.randn(5, dim, 3, 5)
    states, orders = restated(network, embeddings)
    # all but the normed queries is none of its business
    frames = decoder_output(torch.randn(5, queries, 4), torch.randn(5, queries, dim), embeddings,
                            reid=torch.randn(5, queries, 9))
    frames.queries = torch.randn(5, queries, dim)
    tracked, memory = network.track(frames, features, None)
    torch.testing.assert_close(tracked.embeddings, torch.stack(states), rtol=0, atol=1e-5)
    torch.testing.assert_close(memory.embeddings, embeddings[-1][orders[-1]])
    trained = network.supervised(embeddings, embeddings)
    assert trained.orders.tolist() == orders
    assert queries == 1 or any(order != np.argsort(order).tolist() for order in orders), 'the direction matters'
    normed = network.decoder_norm(torch.stack(states))
    torch.testing.assert_close(tracked.logits, network.class_embed(normed), rtol=0, atol=1e-5)
    torch.testing.assert_close(trained.logits[-1], tracked.logits)
    assert len(trained.logits) == len(trained.mask_embeddings) == layers
    masks = torch.einsum('tqd,tdhw->tqhw', network.mask_embed(normed), features)
    for t in range(5):
        own = masks_of(tracked, t, torch.arange(queries), features)
        torch.testing.assert_close(own, masks[t], rtol=1e-4, atol=1e-4)
