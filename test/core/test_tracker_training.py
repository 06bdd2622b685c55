"""Losses at points, and how the referring tracker learns: one slot for each object through a clip."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from decoder_outputs import decoder_output, permuted, random_orders

from tar_vis_core.models.referring import ReferringTracker, mixed
from tar_vis_core.models.tracked import masks_of
from tar_vis_core.training.losses import LossWeights, Target, set_losses
from tar_vis_core.training.points import sample_at, uncertain_points
from tar_vis_core.training.tracker_losses import consistent_slots, contrast_loss, pairs_of

AT_POINTS = LossWeights(points=500)


def test_points_read_a_map_where_they_lie():
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 4, 8) + 0.5      # at x its value is 8 x
    points = torch.tensor([[[0.25, 0.5], [0.5, 0.3], [0.8125, 0.8]]])
    torch.testing.assert_close(sample_at(ramp, points)[0, 0], torch.tensor([2.0, 4.0, 6.5]))
    # of any resolution: the same picture twice as fine
    fine = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 8, 16) / 2 + 0.25
    torch.testing.assert_close(sample_at(fine, points)[0, 0], torch.tensor([2.0, 4.0, 6.5]))


def test_three_quarters_of_the_points_lie_where_a_mask_is_least_certain():
    torch.manual_seed(0)
    logits = torch.full((2, 32, 32), 9.0)
    logits[0, :, :8], logits[1, 20:] = 0.01, -0.01      # a quarter and three eighths are uncertain
    points = uncertain_points(logits, 400)
    assert points.shape == (2, 400, 2) and points.min() >= 0 and points.max() <= 1
    left, low = (points[0, :, 0] < 0.27).float().mean(), (points[1, :, 1] > 0.6).float().mean()
    assert 0.72 < left < 0.85 and 0.78 < low < 0.92     # 75 % of what there is, and a share of the random quarter


@pytest.mark.parametrize('points', [0, 3000])
def test_losses_at_points_agree_with_those_of_the_grid_and_vanish_for_the_truth(points):
    torch.manual_seed(1)
    size, stride = (16, 24), 4
    fine = torch.zeros(2, size[0] * stride, size[1] * stride)
    fine[0, 8:40, 8:32], fine[1, 20:60, 52:92] = 1, 1
    truth = fine if points else F.avg_pool2d(fine, stride)
    target = Target(truth, torch.tensor([0, 1]), torch.zeros(truth.shape[1:]), True, torch.arange(2))
    coarse = 30 * (F.avg_pool2d(fine, stride) - 0.5)
    logits = torch.full((1, 4, 3), -9.0)
    logits[0, 0, 1] = logits[0, 2, 0] = logits[0, 1, 2] = logits[0, 3, 2] = 9
    masks = torch.full((4, *size), -15.0)
    masks[2], masks[0] = coarse

    def losses(masks):
        features = torch.eye(masks[0].numel()).view(1, -1, *size)
        return set_losses([logits], [masks.flatten(1)[None]], features, [target], LossWeights(points=points))

    right = losses(masks)
    # points gather where a mask is uncertain, its edge, which a map of stride 4 cannot have exactly
    assert right['class'] < 1e-3 and right['mask'] < (0.2 if points else 0.01) and right['dice'] < 0.15
    wrong = masks.clone()
    wrong[2] = wrong[2].roll(6, 1)
    assert losses(wrong)['mask'] > right['mask'] + 0.3 and losses(wrong)['dice'] > right['dice'] + 0.1


def clip_of(*present: list[int], size: int = 4) -> list[Target]:
    """Targets of frames that show these instances; instance i is column i of a map ``size x size``."""
    masks = torch.zeros(size, size, size)
    for i in range(size):
        masks[i, :, i] = 1
    return [Target(masks[seen], torch.zeros(len(seen), dtype=torch.long), torch.zeros(size, size), True,
                   torch.tensor(seen, dtype=torch.long)) for seen in present]


def predictions(columns: list[list[int]], size: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slot q of frame t shows column ``columns[t][q]``, at one depth; mask features are the identity."""
    masks = torch.full((len(columns), len(columns[0]), size, size), -9.0)
    for t, row in enumerate(columns):
        for q, column in enumerate(row):
            masks[t, q, :, column] = 9
    features = torch.eye(size * size).view(1, -1, size, size).expand(len(columns), -1, -1, -1)
    return torch.zeros(1, *masks.shape[:2], 2), masks.flatten(2)[None], features


def test_an_object_is_matched_where_it_appears_first_and_keeps_its_slot():
    # frame 1 shows objects 0 and 1 the other way round; object 2 enters there, and slot 2 is free
    logits, masks, features = predictions([[1, 0, 3, 3], [0, 1, 2, 3], [2, 0, 1, 3]])
    targets = clip_of([0, 1], [0, 1, 2], [2])
    slots = consistent_slots(logits, masks, features, targets, AT_POINTS, (0, 0))
    assert slots.tolist() == [[1, 0, 2]]
    assert [[tuple(x.tolist()) for x in pairs_of(slots, target)[0]] for target in targets] == [
        [(1, 0), (0, 1)], [(1, 0, 2), (0, 1, 2)], [(2,), (0,)]]


def test_a_slot_that_has_its_object_takes_no_other():
    # object 1 enters where slot 0, which holds object 0, shows it best
    logits, masks, features = predictions([[0, 3, 3], [1, 3, 2]])
    slots = consistent_slots(logits, masks, features, clip_of([0], [0, 1]), AT_POINTS, (0, 0))
    assert slots[0, 0] == 0 and slots[0, 1] in (1, 2)
    # more objects than slots: the last ones get none, and no slot is shared
    logits, masks, features = predictions([[0, 1], [2, 3]])
    targets = clip_of([0, 1], [0, 1, 2, 3])
    slots = consistent_slots(logits, masks, features, targets, AT_POINTS, (0, 0))
    assert slots.tolist() == [[0, 1, -1, -1]]
    assert pairs_of(slots, targets[1])[0][0].tolist() == [0, 1]


def test_in_dvis_a_slot_may_be_given_a_second_object():
    logits, masks, features = predictions([[0, 3, 3], [1, 3, 2]])
    slots = consistent_slots(logits, masks, features, clip_of([0], [0, 1]), AT_POINTS, (0, 0), shared=True)
    assert slots.tolist() == [[0, 0]]


def test_each_depth_is_matched_by_itself():
    one, other = predictions([[0, 1, 3]]), predictions([[3, 0, 1]])
    logits, masks = (torch.cat(pair) for pair in zip(one[:2], other[:2], strict=True))
    slots = consistent_slots(logits, masks, one[2], clip_of([0, 1]), AT_POINTS, (0, 0))
    assert slots.tolist() == [[0, 1], [1, 2]]


def test_the_contrast_is_the_written_formula():
    torch.manual_seed(2)
    references = torch.randn(3, 5, 4)
    targets = clip_of([0, 1], [0, 1], [1])
    slots = torch.tensor([3, 1])
    expected = []
    for i, seen in ((1, [3, 1]), (2, [1])):
        for slot in seen:
            scores = references[i - 1] @ references[i, slot]
            negatives = torch.cat((scores[:slot], scores[slot + 1:]))
            expected.append(torch.log1p((negatives - scores[slot]).exp().sum()))
    torch.testing.assert_close(contrast_loss(references, slots, targets), torch.stack(expected))


def tiny_tracker() -> ReferringTracker:
    torch.manual_seed(3)
    return ReferringTracker(16, 4, 32, 3, 5)


def frames_of(frames: int = 4, queries: int = 6):
    generator = torch.Generator().manual_seed(4)
    drift = torch.randn(queries, 16, generator=generator) + 0.1 * torch.randn(frames, queries, 16, generator=generator)
    other = torch.randn(queries, 16, generator=generator).expand(frames, -1, -1)
    return permuted(decoder_output(torch.zeros(frames, queries, 6), torch.zeros(frames, queries, 16), drift, other),
                    random_orders(frames, queries))


def test_the_last_layer_of_training_is_what_inference_gives():
    tracker, frames = tiny_tracker(), frames_of()
    features = torch.randn(4, 16, 8, 8)
    with torch.no_grad():
        tracked, _ = tracker.track(frames, features, None)
        made = tracker.supervised(frames.raw_embeddings, frames.embeddings)
    assert len(made.logits) == len(made.mask_embeddings) == 3 and made.references.shape == (4, 6, 32)
    torch.testing.assert_close(made.logits[-1], tracked.logits)
    assert not torch.allclose(made.logits[0], made.logits[-1], atol=1e-3)
    masks = torch.einsum('tqd,tdhw->tqhw', made.mask_embeddings[-1], tracker.mask_feature_proj(features))
    for t in range(4):
        torch.testing.assert_close(masks[t], masks_of(tracked, t, torch.arange(6), features), rtol=1e-4, atol=1e-5)
    # the slots follow the objects: undoing the frames' orders by the slots' own gives one order
    orders = random_orders(4, 6)
    found = torch.stack([order[slots] for order, slots in zip(orders, made.orders, strict=True)])
    assert (found == found[0]).all()


def test_noise_mixes_two_queries_and_names_the_heavier():
    torch.manual_seed(5)
    queries = 10 * torch.eye(40)[None]
    order, mixture = mixed(queries)
    assert (mixture[0].argmax(-1) == order).all()
    torch.testing.assert_close(mixture.sum(-1), torch.full((1, 40), 10.0))
    assert 5 < (order != torch.arange(40)).sum() < 35
    assert ((mixture[0] > 0).sum(-1) <= 2).all()


def test_noise_spares_the_first_frame_and_training_reaches_every_part():
    tracker, frames = tiny_tracker(), frames_of()
    plain = tracker.supervised(frames.raw_embeddings, frames.embeddings)
    torch.manual_seed(6)
    noisy = tracker.supervised(frames.raw_embeddings, frames.embeddings, noise=1.0)
    torch.testing.assert_close(noisy.logits[-1][0], plain.logits[-1][0])
    assert not torch.allclose(noisy.logits[-1][1], plain.logits[-1][1], atol=1e-3)
    loss = sum(x.square().sum() for x in (*noisy.logits, *noisy.mask_embeddings))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in tracker.named_parameters()
               if not name.startswith('mask_feature_proj'))
