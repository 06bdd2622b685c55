import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from decoder_outputs import decoder_output, permuted, random_orders
from parity_data import expected, formula, largest_gap, needs_parity_data, official_state
from torch import nn

from tar_vis_core.models.referring import ReferringTracker
from tar_vis_core.models.tracked import masks_of
from tar_vis_core.weights.official import rename


@pytest.fixture(scope='module')
def reference():
    return expected('synthetic_post')


@pytest.fixture(scope='module')
def official():
    tracker = ReferringTracker(256, 8, 2048, 6, 40)
    state = rename(official_state('dvispp_r50', part='tracker.'), 'the official tracker')
    tracker.load_state_dict({name.removeprefix('tracker.'): value for name, value in state.items()})
    return tracker.eval()


@pytest.fixture(scope='module')
def synthetic(reference):
    """Five frames whose queries are far from the identity order; the recording's `meta` tells how they are made."""
    meta = json.loads(str(reference['meta']))
    frames, queries = meta['T'], meta['Q']

    def normal(name, *shape):
        return torch.from_numpy(formula().rng_normal(f'synthetic.{name}', shape, meta['salt']))

    base = normal('base', queries, 512)
    embeddings = torch.stack([(base + 0.35 * normal(f'noise{t}', queries, 512))[normal(f'perm{t}', queries).argsort()]
                              for t in range(frames)])
    raw = 1.3 * embeddings + 0.2 * normal('nonorm', frames, queries, 512)
    return embeddings.float(), raw.float(), normal('mask_features', frames, 256, meta['h'], meta['w']).float()


@needs_parity_data
@pytest.mark.parametrize('calls', [(5,), (3, 2), (1, 1, 1, 1, 1)], ids=str)
@torch.no_grad()
def test_equals_the_reference_in_one_call_or_several(official, synthetic, reference, calls):
    memory, start = None, 0
    for count in calls:
        embeddings, raw, mask_features = (x[start:start + count] for x in synthetic)
        before = memory
        # of the recording's inputs, both kinds of embedding are free: a decoder's would share their second half
        frames = SimpleNamespace(embeddings=embeddings, raw_embeddings=raw)
        tracked, memory = official.track(frames, mask_features, memory)
        end = start + count
        assert largest_gap(tracked.logits, reference['tracker_logits'][start:end]) < 1e-4
        assert largest_gap(tracked.embeddings, reference['tracker_embds'][start:end]) < 1e-4
        first = raw[0] if before is None else before.output
        referred = official.ref_proj(torch.cat((first[None], tracked.embeddings[:-1])))
        assert largest_gap(referred, reference['tracker_references'][start:end]) < 1e-4
        masks = [masks_of(tracked, t, torch.arange(100), mask_features) for t in range(count)]
        assert largest_gap(torch.stack(masks, 1), reference['tracker_masks'][:, start:end]) < 1e-3
        order = torch.from_numpy(reference['tracker_indices'][end - 1])
        assert torch.equal(memory.embeddings, embeddings[-1][order])
        start = end


def tiny_tracker(layers=2, seed=0):
    torch.manual_seed(seed)
    return ReferringTracker(16, 4, 32, layers, 5).eval()


def frames_of(count=4, queries=12, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    base = normal(queries, 32)
    own = base + 0.2 * normal(count, queries, 32)
    output = decoder_output(normal(count, queries, 6), normal(count, queries, 16), own[..., :16], own[..., 16:])
    return output, normal(count, 16, 3, 4)


@torch.no_grad()
def test_the_order_of_a_later_frames_queries_does_not_matter():
    tracker, (frames, features) = tiny_tracker(), frames_of()
    orders = random_orders(4, 12)
    orders[0] = torch.arange(12)
    plain, _ = tracker.track(frames, features, None)
    mixed, _ = tracker.track(permuted(frames, orders), features, None)
    torch.testing.assert_close(mixed.logits, plain.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed.embeddings, plain.embeddings, rtol=0, atol=1e-5)
    assert (mixed.slots == np.arange(12)).all()


@torch.no_grad()
def test_the_order_of_the_first_frames_queries_is_the_order_of_slots():
    tracker, (frames, features) = tiny_tracker(), frames_of()
    order = torch.randperm(12)
    plain, _ = tracker.track(frames, features, None)
    mixed, _ = tracker.track(permuted(frames, order.expand(4, -1)), features, None)
    torch.testing.assert_close(mixed.logits, plain.logits[:, order], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_residual_is_the_matched_query_and_not_the_reference():
    tracker, (frames, features) = tiny_tracker(), frames_of()
    for layer in tracker.layers:  # attention and feed-forward give zero: residuals and norms remain
        for last in (layer.cross_attn.out_proj, layer.self_attn.out_proj, layer.linear2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    orders = random_orders(4, 12)
    tracked, _ = tracker.track(permuted(frames, orders), features, None)
    expected = frames.raw_embeddings[:, orders[0]]  # every slot keeps the object that it had first
    for _ in range(3 * len(tracker.layers)):
        expected = F.layer_norm(expected, (32,))
    torch.testing.assert_close(tracked.embeddings, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_masks_are_those_of_the_projected_features():
    tracker, (frames, features) = tiny_tracker(), frames_of()
    tracked, _ = tracker.track(frames, features, None)
    embedding = tracker.mask_embed(tracker.decoder_norm(tracked.embeddings))
    explicit = torch.einsum('tqd,tdhw->tqhw', embedding, tracker.mask_feature_proj(features))
    for t in range(4):
        rows = torch.tensor([3, 0, 7])
        torch.testing.assert_close(masks_of(tracked, t, rows, features), explicit[t, rows], rtol=0, atol=1e-5)
