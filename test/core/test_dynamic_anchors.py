"""Tracks of DVIS-DAQ open, hide, come back and end; whatever the sizes, as the plain restatement has it."""

import itertools
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from decoder_outputs import changed, decoder_output
from restated_daq import restated
from torch import nn

from tar_vis_core.instances import RoutingTrace, TrackStatus
from tar_vis_core.models.dynamic_anchors import DynamicAnchorNetwork, slot_starts
from tar_vis_core.models.presets import PRESETS
from tar_vis_core.models.tracked import masks_of
from tar_vis_core.models.video_model import Features
from tar_vis_core.segmenter import VideoSegmenter
from tar_vis_core.tracking import anchored_tracks
from tar_vis_core.tracking.anchored_tracks import AnchoredTracker


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def lively(dim: int, heads: int, layers: int, classes: int, seed: int) -> DynamicAnchorNetwork:
    """A network with random weights whose rows differ and whose scores go up and down."""
    torch.manual_seed(seed)
    network = DynamicAnchorNetwork(dim, heads, 2 * dim, layers, classes)
    for name, value in network.named_parameters():
        if name.endswith(('in_proj_weight', 'out_proj.weight')):
            nn.init.normal_(value, std=1.5 * dim ** -0.5)
        elif name.startswith('pos_embed') and value.dim() == 2:
            nn.init.normal_(value, std=2.5 * dim ** -0.5)
        elif name in ('class_embed.weight', 'mask_embed.layers.2.weight', 'mask_feature_proj.weight'):
            nn.init.normal_(value, std=2 * dim ** -0.5)
    network.class_embed.bias[-1] = 6
    return network.eval()


def video(frames: int, queries: int, dim: int, classes: int, size: tuple[int, int], seed: int, first=0.3):
    """Random decoder outputs; some masks are empty. ``first`` is the share of queries that show something at first."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    own = normal(queries, dim)
    logits = 2 * normal(frames, queries, classes + 1)
    logits[..., -1] += torch.where(torch.rand(queries, generator=generator) < first, 0.0, 30.0)
    masks = normal(frames, queries, *size) - 0.5
    masks[:, 0], masks[frames // 2] = -1, masks[frames // 2].clamp(max=0)
    return list(zip(own + 0.8 * normal(frames, queries, dim), logits, masks, normal(frames, dim, *size), strict=True))


CASES = {   # queries, width, heads, layers, classes, map, frames, threshold, slots decide, share shown at first, seed
    'usual': (9, 32, 4, 2, 3, (5, 9), 20, 0.1, True, 0.3, 2),
    'slots idle': (9, 32, 4, 2, 3, (5, 9), 16, 0.1, False, 0.3, 1),
    'more rows than queries': (3, 48, 8, 3, 5, (7, 4), 12, 0.1, True, 1.0, 2),
    'nothing at first': (6, 32, 2, 1, 4, (1, 11), 16, 0.1, True, 0.0, 0),
    'nothing ever': (5, 32, 2, 1, 4, (3, 3), 12, 0.9999999, True, 0.0, 4),
    'one query': (1, 32, 4, 2, 2, (4, 4), 24, 0.1, True, 1.0, 0),
}


@pytest.mark.parametrize('case', CASES)
def test_equals_the_plain_restatement(case):
    queries, dim, heads, layers, classes, size, count, threshold, slots, first, seed = CASES[case]
    network, frames = lively(dim, heads, layers, classes, seed), video(count, queries, dim, classes, size, seed, first)
    table = torch.randn(queries, dim, generator=torch.Generator().manual_seed(seed))
    expected = restated(network, table, threshold, slots, frames)
    tracker, memory, gaps = AnchoredTracker(network, table, threshold, slots), None, []
    for (embeddings, logits, masks, features), plain in zip(frames, expected, strict=True):
        tracked, memory = tracker.step(embeddings, logits, masks, features, memory)
        assert tracked.slots[0].tolist() == plain.numbers
        assert tracked.hidden[0].tolist() == [n >= 0 and not s for n, s in zip(plain.numbers, plain.seen, strict=True)]
        own = masks_of(tracked, 0, torch.arange(len(plain.numbers)), features[None])
        gaps += [(tracked.logits[0] - plain.logits).abs().amax(1), (own - plain.masks).abs().amax((1, 2))]
        if plain.places:
            gaps += [(memory.places - torch.stack(plain.places)).abs().amax(1),
                     (memory.queries - torch.stack(plain.queries)).abs().amax(1)]
    gaps = torch.cat(gaps)
    assert gaps.max() < 2e-2 and gaps.median() < 1e-4     # a pixel within rounding of 0 moves a place
    # what the case is for
    history: dict[int, list[bool]] = {}
    for plain in expected:
        for number, seen in zip(plain.numbers, plain.seen, strict=True):
            history.setdefault(number, []).append(seen)
    history.pop(-1)
    ended = history.keys() - set(expected[-1].numbers)
    again = [number for number, seen in history.items() if (False, True) in set(itertools.pairwise(seen))]
    rows = max(len(plain.numbers) for plain in expected)
    assert {'usual': len(history) > 9 and ended and again, 'slots idle': ended and again,
            'more rows than queries': rows > 2 * queries + 5 and again, 'one query': ended == history.keys() and again,
            'nothing at first': expected[0].numbers == [-1] * queries and len(history) > 5 and ended,
            'nothing ever': not history}[case]


class ScriptedNetwork(nn.Module):
    """A network that recognises: object i is channel i of what a query shows, and only that it is shown counts.

    A track is seen if some query shows its object; an anchor is if its query shows one that no track has.
    """

    def heads(self, x):
        shown = x[:, -1:]
        return torch.cat((20 * shown - 10, 0 * shown), 1), x[:, :-1], 0 * x[:, -1]

    def first(self, embeddings):
        return torch.cat((embeddings, embeddings.sum(1, keepdim=True)), 1)

    def forward(self, tracks, track_places, embeddings, places):
        known, there = tracks[:, :-1], embeddings.sum(0)
        return torch.cat((torch.cat((known, (known @ there)[:, None].clamp(max=1)), 1),
                          torch.cat((embeddings, (embeddings @ (1 - known.sum(0).clamp(max=1)))[:, None]), 1)))

    def places(self, masks, mask_features):
        return torch.zeros(len(masks), mask_features.shape[0])


def watch(shown: list[list[int]], objects: int = 4) -> list[dict[int, int]]:
    """Track numbers of the objects that are seen in each frame, of which frame t shows the objects ``shown[t]``."""
    tracker, memory, found = AnchoredTracker(ScriptedNetwork(), None, 0.5, False), None, []
    for things in shown:
        embeddings = torch.zeros(objects, objects)
        embeddings[range(len(things)), things] = 1
        logits = torch.cat((20 * embeddings.sum(1, keepdim=True) - 10, torch.zeros(objects, 1)), 1)
        tracked, memory = tracker.step(embeddings, logits, *torch.zeros(2, objects, 2, 2), memory)
        found.append({int(row[:-1].argmax()): int(slot) for row, slot, hidden in zip(
            tracked.embeddings[0], tracked.slots[0], tracked.hidden[0], strict=True) if slot >= 0 and not hidden})
    return found


def test_an_object_that_enters_gets_a_track_and_keeps_it_while_others_leave():
    found = watch([[0, 1], [1, 0], [2, 1], [2], [3, 2, 0]])
    assert found == [{0: 0, 1: 1}, {0: 0, 1: 1}, {1: 1, 2: 2}, {2: 2}, {0: 0, 2: 2, 3: 3}]


@pytest.mark.parametrize(('away', 'same'), [(1, True), (7, True), (8, False), (20, False)])
def test_an_object_comes_back_as_itself_within_seven_frames_and_as_a_new_one_later(away, same):
    found = watch([[0, 1], [0, 1], *[[1]] * away, [1, 0], [0]])
    assert found[-2] == {1: 1, 0: 0 if same else 2} and found[-1] == {0: 0 if same else 2}


def test_each_sighting_starts_the_count_anew():
    found = watch([[0], *[[]] * 7, [0], *[[]] * 7, [0], *[[]] * 8, [0]])
    assert [next(iter(frame.values())) for frame in found if frame] == [0, 0, 0, 1]


def test_a_stream_may_begin_empty_and_become_empty():
    found = watch([[], [], [3], *[[]] * 9, [3, 1], []])
    assert [frame for frame in found if frame] == [{3: 0}, {3: 1, 1: 2}]


def test_no_more_tracks_are_opened_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(anchored_tracks, 'MAX_TRACKS', 2)
    with pytest.warns(RuntimeWarning, match='2 tracks are open'):
        found = watch([[0], [0, 1, 2, 3], [0, 1], *[[0]] * 8, [0, 3]])
    assert found[:3] == [{0: 0}, {0: 0, 1: 1}, {0: 0, 1: 1}] and found[-1] == {0: 0, 3: 2}


CORNERS = ((8, 8), (8, 56), (40, 8), (40, 56))      # of the objects, 16x24 pixels each
LEVELS = (60, 110, 160, 210)                         # their grey


def scene(things: list[int]) -> np.ndarray:
    """An image ``(64, 96, 3)`` that shows these objects."""
    image = np.zeros((64, 96, 3), np.uint8)
    for thing in things:
        y, x = CORNERS[thing]
        image[y:y + 16, x:x + 24] = LEVELS[thing]
    return image


class Recogniser(nn.Module):
    """Segments :func:`scene` by grey levels, with the tracker of DVIS-DAQ behind it."""

    mixes = False

    def __init__(self):
        super().__init__()
        self.config = replace(PRESETS['dvis_daq_r50'], class_names=('thing',), classes=1, short_side=64, routing=False)
        self.tracker, self.decoder = ScriptedNetwork(), SimpleNamespace(query_feat=None)
        self.register_buffer('pixel_mean', torch.zeros(3, 1, 1))

    def prepare(self, pixels, short_side):
        return pixels.permute(2, 0, 1)[None].float()

    def encode(self, images):
        grey = F.avg_pool2d(images, 4).mean(1, keepdim=True)
        return Features(torch.where((grey - torch.tensor(LEVELS)[:, None, None]).abs() < 5, 6.0, -6.0), [], None)

    def decode(self, features, *_):
        shown = torch.diag_embed((features.mask_features > 0).flatten(2).any(2).float())
        logits = F.pad(20 * shown.sum(2, keepdim=True) - 10, (0, 1))
        return replace(decoder_output(logits, shown, shown), trace=RoutingTrace((True,) * 9, np.full(9, np.nan)))


def test_500_frames_through_the_segmenter_keep_ids_and_take_no_more_memory_than_100():
    # two of four objects at a time, a new pair every sixth frame; now and then there is nothing for a frame
    segmenter, sizes, runs, last_seen = VideoSegmenter.from_model(Recogniser(), 'cpu'), [], {}, {}
    state = segmenter.new_state()
    for t in range(500):
        pair = [] if t % 6 == 3 else [t // 6 % 4, (t // 6 + 1) % 4]
        result = segmenter.step(scene(pair), state, t / 10)
        seen = [instance for instance in result.instances if instance.status != TrackStatus.LOST]
        assert len(seen) == len(pair) and result.reset_reason == ''
        last_seen |= dict.fromkeys((instance.track_id for instance in seen), t)
        assert all(t - last_seen[instance.track_id] <= 7 for instance in result.instances), 'then it is gone'
        for instance in seen:
            y, x = instance.box[1::-1]
            assert instance.box[2:] == (24, 16)
            thing = CORNERS.index((y, x))
            assert thing in pair
            # an object is there for two pairs in a row, and away for as long
            runs.setdefault((thing, (t // 6 - (thing == pair[0])) // 4), set()).add(instance.track_id)
        if t % 7 == 0:
            sizes.append(len(pickle.dumps(state)))      # of tensors also what views hold
    assert all(len(ids) == 1 for ids in runs.values()), 'an object keeps its id while it is there'
    assert len(set().union(*runs.values())) == len(runs) > 75, 'and comes back as another'
    assert max(sizes) < 1.02 * max(sizes[:14])      # numbers have more digits


def test_a_clip_at_once_is_its_frames_one_by_one_and_leaves_its_memory_as_it_was():
    queries, frames = 6, 9
    tracker = AnchoredTracker(lively(32, 4, 2, 3, 1), torch.randn(queries, 32), 0.1, True)
    embeddings, logits, _, features = (torch.stack(x) for x in zip(
        *video(frames, queries, 32, 3, (4, 5), 1), strict=True))
    decoded = decoder_output(logits, torch.randn(frames, queries, 32), embeddings)
    at_once, after = tracker.track(decoded, features, None)
    memory, rows = None, set()
    for t in range(frames):
        if t == 4:
            given, before = memory, [torch.as_tensor(value).clone() for value in vars(memory).values()]
        one, memory = tracker.track(changed(decoded, lambda x, t=t: x[t:t + 1]), features[t:t + 1], memory)
        count = one.slots.shape[1]
        rows.add(count)
        assert one.slots[0].tolist() == at_once.slots[t, :count].tolist() and (at_once.slots[t, count:] == -1).all()
        assert one.hidden[0].tolist() == at_once.hidden[t, :count].tolist() and not at_once.hidden[t, count:].any()
        for name in ('logits', 'mask_embeddings', 'mask_bias', 'embeddings', 'logits_so_far'):
            torch.testing.assert_close(getattr(one, name)[0], getattr(at_once, name)[t, :count], rtol=0, atol=1e-5)
    assert all(torch.equal(torch.as_tensor(a), b) for a, b in zip(vars(given).values(), before, strict=True))
    assert len(rows) > 1 and memory.numbers.tolist() == after.numbers.tolist()


def test_rows_without_a_query_of_their_own_take_the_nearest():
    table = torch.eye(3, 5)
    rows = torch.tensor([[9, 1, 0, 0, 0], [0, 2, 1, 0, 0], [1, 0, 9, 0, 0], [8, 0, 0, 0, 1], [0, 0, 0, 1, 0.0]])
    found = slot_starts(rows, table).tolist()
    assert found[:3] == [0, 1, 2] and found[3] == 0 and found[4] == 0     # no direction in common: the first
    assert sorted(slot_starts(rows[:2], table).tolist()) == [0, 1]
    # one to one where it is possible, even if that is not the nearest
    assert sorted(slot_starts(torch.tensor([[9.0, 1, 0, 0, 0], [9, 2, 0, 0, 0]]), table).tolist()) == [0, 1]


def test_rounding_does_not_choose_between_equal_rows():
    """Tracks that anchors without a mask open are equal; the last digits of products differ from machine to machine."""
    generator = torch.Generator().manual_seed(1)
    rows, table = torch.randn(9, 16, generator=generator), torch.randn(12, 16, generator=generator)
    rows[6] = rows[4] = rows[1]
    expected = slot_starts(rows, table).tolist()
    assert len(set(expected)) == 9
    for _ in range(20):
        assert slot_starts(rows * (1 + 1e-6 * torch.randn(9, 16, generator=generator)), table).tolist() == expected
