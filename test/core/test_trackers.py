"""What every tracker promises, whichever way it keeps identities."""

import numpy as np
import pytest
import torch
from decoder_outputs import changed, drifting_objects, one_cell_each, permuted, random_orders
from tiny_model import picture, tiny_model
from torch import Tensor

from tar_vis_core.models.referring import ReferringTracker
from tar_vis_core.models.referring_2023 import ReferringTracker2023
from tar_vis_core.tracking.memory_bank import MemoryBankTracker
from tar_vis_core.tracking.tracker import MatchingTracker

FRAMES, QUERIES = 6, 16


def make(name, seed=0):
    torch.manual_seed(seed)
    return {'matching': MatchingTracker, 'memory_bank': MemoryBankTracker,
            'referring': lambda: ReferringTracker(16, 4, 32, 2, 5).eval(),
            'referring_2023': lambda: ReferringTracker2023(16, 4, 32, 2, 5).eval()}[name]()


# that of DVIS-DAQ, whose rows come and go, is in test_dynamic_anchors.py
trackers = pytest.mark.parametrize('name', ['matching', 'referring', 'referring_2023', 'memory_bank'])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def shuffled(frames=FRAMES):
    """Objects whose queries are in another order in every frame; (frames, orders, mask features)."""
    orders = random_orders(frames, QUERIES)
    return permuted(drifting_objects(frames, QUERIES), orders), orders, one_cell_each(frames, QUERIES)


def tensors_of(memory) -> list[Tensor]:
    values = [memory] if isinstance(memory, Tensor) else vars(memory).values()
    return [torch.as_tensor(value) for value in values]


@trackers
def test_one_frame_at_a_time_is_the_clip_at_once(name):
    tracker, (frames, _, features) = make(name), shuffled()
    at_once, last = tracker.track(frames, features, None)
    memory = None
    for t in range(FRAMES):
        one = slice(t, t + 1)
        tracked, memory = tracker.track(changed(frames, lambda x, one=one: x[one]), features[one], memory)
        assert np.array_equal(tracked.slots[0], at_once.slots[t])
        for field in ('logits', 'mask_embeddings', 'embeddings', 'mask_bias'):
            single, clip = getattr(tracked, field), getattr(at_once, field)
            if clip is not None:
                torch.testing.assert_close(single[0], clip[t], rtol=0, atol=1e-5)
    for single, clip in zip(tensors_of(memory), tensors_of(last), strict=True):
        torch.testing.assert_close(single, clip, rtol=0, atol=1e-5)


@trackers
def test_a_call_leaves_its_memory_as_it_was(name):
    tracker, (frames, _, features) = make(name), shuffled()
    _, memory = tracker.track(changed(frames, lambda x: x[:3]), features[:3], None)
    before = [value.clone() for value in tensors_of(memory)]
    rest = [tracker.track(changed(frames, lambda x: x[3:]), features[3:], memory)[0].slots for _ in range(2)]
    assert np.array_equal(*rest)
    for now, then in zip(tensors_of(memory), before, strict=True):
        assert torch.equal(now, then)


@trackers
def test_slots_are_unique_within_a_frame_and_follow_the_objects(name):
    tracker, (frames, orders, features) = make(name), shuffled()
    tracked, _ = tracker.track(frames, features, None)
    for row in tracked.slots:
        assert len(np.unique(row)) == QUERIES and row.min() == 0
    if 'referring' not in name:  # whose rows are the slots; see test_referring.py
        of_object = np.take_along_axis(tracked.slots, orders.argsort(1).numpy(), 1)
        assert (of_object == of_object[0]).all()


@pytest.mark.parametrize('name', ['matching', 'memory_bank'])
def test_the_order_of_later_queries_permutes_slots_with_them(name):
    frames, features = drifting_objects(FRAMES, QUERIES), one_cell_each(FRAMES, QUERIES)
    orders = random_orders(FRAMES, QUERIES, seed=5)
    orders[0] = torch.arange(QUERIES)
    plain, _ = make(name).track(frames, features, None)
    mixed, _ = make(name).track(permuted(frames, orders), features, None)
    assert np.array_equal(mixed.slots, np.take_along_axis(plain.slots, orders.numpy(), 1))


@trackers
def test_the_memory_does_not_grow_in_300_frames(name):
    tracker, memory = make(name), None
    frames, features = drifting_objects(4, QUERIES), one_cell_each(4, QUERIES)
    sizes = []
    for _ in range(75):
        _, memory = tracker.track(frames, features, memory)
        sizes.append(sum(value.numel() for value in tensors_of(memory)))
    assert max(sizes) == sizes[0]


@trackers
@pytest.mark.parametrize('bad', [float('nan'), float('inf'), 0.0, 1e30], ids=str)
def test_numbers_gone_wrong_do_not_stop_it(name, bad):
    tracker, (frames, _, features) = make(name), shuffled()

    def spoil(x):
        x = x.clone()
        x[2:4], x[1, :3] = bad, bad
        return x

    tracked, _ = tracker.track(changed(frames, spoil), features, None)
    assert tracked.slots.shape == (FRAMES, QUERIES)
    for row in tracked.slots:
        assert len(np.unique(row[row >= 0])) == (row >= 0).sum()
    if 'referring' not in name:  # whose objects live in its output; the segmenter begins such a stream anew
        assert (tracked.slots[4:] >= 0).all()


@trackers
def test_one_query_is_enough(name):
    frames, features = drifting_objects(3, 1), torch.ones(3, 16, 2, 2)
    tracked, _ = make(name).track(frames, features, None)
    assert tracked.slots.tolist() == [[0], [0], [0]]


FAMILIES = {'minvis': {}, 'ctvis': dict(reid=True),
            'dvispp': dict(reid=True, tracker_layers=2, tracker_ffn=32, tracker='referring'),
            'dvis': dict(tracker_layers=2, tracker_ffn=32, tracker='referring_2023')}


@pytest.mark.parametrize('family', FAMILIES)
def test_a_batch_of_two_is_two_singles(family):
    model = tiny_model(family=family, classes=20, **FAMILIES[family]).eval()
    images = torch.stack([torch.from_numpy(picture(seed)).permute(2, 0, 1) for seed in (1, 2)]).float()

    def decode(images):
        features = model.encode(model.normalize(images))
        decoded = model.decode(features)
        return decoded, torch.einsum('nkd,ndhw->nkhw', decoded.mask_embeddings, features.mask_features)

    both, masks = decode(images)
    for i in range(2):
        single, mask = decode(images[i:i + 1])
        for field in ('queries', 'logits', 'embeddings', 'raw_embeddings'):
            torch.testing.assert_close(getattr(both, field)[i], getattr(single, field)[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(masks[i], mask[0], rtol=0, atol=2e-5 * float(masks.abs().max()))
    assert (both.logits[0] - both.logits[1]).abs().max() > 0.1   # two images are two results
