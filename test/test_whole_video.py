import numpy as np
import pytest
import torch
from parity_data import expected, formula, largest_gap, needs_parity_data

from tar_vis_core.evaluation.whole_video import match_frames, resize_mask_logits, segment_video


@pytest.fixture
def synthetic():
    """Five frames whose queries are far from the identity order; the recording's `meta` tells how they are made."""
    def normal(name, *shape):
        return torch.from_numpy(formula().rng_normal(f'synthetic.{name}', shape))

    base = normal('base', 100, 512)
    embeddings = [(base + 0.35 * normal(f'noise{t}', 100, 512))[normal(f'perm{t}', 100).argsort()].float()
                  for t in range(5)]
    class_logits = (2 * normal('logits', 5, 100, 41)).float()
    mask_logits = (3 * normal('masks', 100, 5, 12, 20)).float().transpose(0, 1)
    return class_logits, mask_logits, embeddings, expected('synthetic_post')


@needs_parity_data
def test_matching_equals_the_reference_on_shuffled_queries(synthetic):
    class_logits, mask_logits, embeddings, reference = synthetic
    slots = match_frames(embeddings)
    assert np.array_equal(slots.numpy(), reference['minvis_indices'])
    assert (slots[1:] != torch.arange(100)).float().mean() > 0.9  # else the case would prove nothing
    averaged = torch.stack([frame[row] for frame, row in zip(class_logits, slots, strict=True)]).mean(0)
    assert largest_gap(averaged, reference['minvis_logits']) < 1e-4
    permuted = torch.stack([frame[row] for frame, row in zip(mask_logits, slots, strict=True)], dim=1)
    assert largest_gap(permuted, reference['minvis_masks']) < 1e-3


@needs_parity_data
def test_averaging_top_k_and_resizing_equal_the_reference(synthetic):
    class_logits, mask_logits, embeddings, reference = synthetic
    video = segment_video(class_logits, mask_logits, embeddings, (48, 80), (45, 77), (90, 150))
    assert largest_gap(video.scores, reference['minvis_scores']) < 1e-4
    assert video.labels.tolist() == reference['minvis_labels'].tolist()
    areas = reference['minvis_mask_areas']
    assert (np.abs(video.masks.sum((2, 3)).numpy() - areas) <= np.maximum(3, 1e-3 * areas)).all()


def test_one_query_may_come_with_several_classes():
    logits = torch.full((3, 4), -9.0)  # three queries, three classes and no-object
    logits[1, :3] = torch.tensor([5.0, 4.9, 4.8])
    video = segment_video([logits], [torch.ones(3, 2, 2)], [torch.eye(3)], (8, 8), (8, 8), (5, 7), max_instances=3)
    assert video.queries.tolist() == [1, 1, 1]
    assert video.labels.tolist() == [0, 1, 2]
    assert video.masks.shape == (3, 1, 5, 7)


def test_masks_follow_their_query_through_a_swap():
    embeddings = [torch.eye(2), torch.eye(2).flip(0)]
    left, right = torch.full((4, 4), -5.0), torch.full((4, 4), -5.0)
    left[:, :2], right[:, 2:] = 5.0, 5.0
    masks = [torch.stack([left, right]), torch.stack([right, left])]
    logits = [torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]])]
    video = segment_video(logits, masks, embeddings, (16, 16), (16, 16), (16, 16), max_instances=2)
    assert video.labels.tolist() == [0, 1]
    assert video.masks[0, :, :, :8].all() and not video.masks[0, :, :, 8:].any()
    assert video.masks[1, :, :, 8:].all() and not video.masks[1, :, :, :8].any()


def test_what_lies_in_the_padding_is_cut_off():
    logits = torch.full((1, 8, 8), -5.0)
    logits[:, :, 6:] = 5.0  # columns 24.. of a 32 wide input, whose image is 20 wide
    assert not (resize_mask_logits(logits, (32, 32), (32, 20), (64, 40)) > 0).any()


def test_frames_that_are_missing_are_an_error():
    with pytest.raises(ValueError, match='2 class logits'):
        segment_video([torch.ones(1, 2)] * 2, [torch.ones(1, 2, 2)], [torch.ones(1, 3)], (8, 8), (8, 8), (8, 8))
