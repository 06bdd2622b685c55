import pytest
import torch

from tar_vis_core.models.query_matching import match_embeddings


def test_finds_the_permutation_that_was_applied():
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(50, 32, generator=generator)
    order = torch.randperm(50, generator=generator)
    current = (reference + 0.1 * torch.randn(50, 32, generator=generator))[order] * 3
    indices = match_embeddings(reference, current)
    assert torch.equal(order[indices], torch.arange(50))


def test_the_whole_cost_counts_not_the_first_best():
    # greedy would give slot 0 its best query 0 and leave slot 1 with an opposite one
    reference = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    current = torch.tensor([[1.0, 0.05], [0.3, -1.0]])
    assert match_embeddings(reference, current).tolist() == [1, 0]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_around_it_costs_no_digits(dtype):
    # both angles are equal in 8 bits of mantissa
    reference = torch.tensor([[1.0, 0.0], [1.0, 0.004]])
    with torch.autocast('cpu', dtype=dtype):
        assert match_embeddings(reference, reference.flip(0)).tolist() == [1, 0]


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), 0.0])
def test_a_query_without_direction_takes_what_is_left(bad):
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(6, 8, generator=generator)
    current = reference.clone()
    current[4] = bad
    assert match_embeddings(reference, current).tolist() == [0, 1, 2, 3, 4, 5]


def test_nothing_but_nan_still_gives_each_query_once():
    indices = match_embeddings(torch.full((5, 4), float('nan')), torch.full((5, 4), float('nan')))
    assert sorted(indices.tolist()) == [0, 1, 2, 3, 4]


def test_half_precision_and_gradients_are_taken_as_they_come():
    reference = torch.eye(4, dtype=torch.float16)
    current = torch.eye(4, dtype=torch.float16).flip(0).requires_grad_()
    assert match_embeddings(reference, current).tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize('shapes', [((4, 8), (5, 8)), ((4, 8), (4, 7)), ((8,), (8,))])
def test_shapes_that_differ_are_refused(shapes):
    with pytest.raises(ValueError, match=r'\(Q, D\)'):
        match_embeddings(torch.ones(shapes[0]), torch.ones(shapes[1]))
