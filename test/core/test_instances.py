import numpy as np
import pytest

from tar_vis_core.instances import Instance, TrackStatus, decode_runs, encode_runs


def decode_as_the_message_says(runs, height, width):
    """The five lines that InstanceMask.msg gives a reader in any language."""
    flat, value = [], False
    for run in runs:
        flat += [value] * int(run)
        value = not value
    return np.array(flat, bool).reshape(height, width)


MASKS = {
    'empty': np.zeros((3, 4), bool),
    'full': np.ones((3, 4), bool),
    'one pixel': np.ones((1, 1), bool),
    'first pixel': np.arange(12).reshape(3, 4) == 0,
    'last pixel': np.arange(12).reshape(3, 4) == 11,
    'checkers': np.indices((5, 7)).sum(0) % 2 == 0,
    'row': np.ones((1, 9), bool),
    'transposed': (np.arange(20).reshape(5, 4) % 3 == 0).T,
}


@pytest.mark.parametrize('name', MASKS)
def test_runs_give_the_mask_back(name):
    mask = MASKS[name]
    runs = encode_runs(mask)
    assert runs.dtype == np.uint32
    assert runs.sum() == mask.size
    assert np.array_equal(decode_runs(runs, *mask.shape), mask)
    assert np.array_equal(decode_as_the_message_says(runs, *mask.shape), mask)


def test_random_masks_survive_the_round_trip():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = rng.random(rng.integers(1, 40, 2)) < rng.random()
        assert np.array_equal(decode_runs(encode_runs(mask), *mask.shape), mask)


def test_the_first_run_is_background_and_no_other_is_empty():
    assert encode_runs(np.array([[True, True, False]])).tolist() == [0, 2, 1]
    assert encode_runs(np.array([[False, True, True]])).tolist() == [1, 2]
    assert (encode_runs(MASKS['checkers'])[1:] > 0).all()


@pytest.mark.parametrize('size', [(0, 0), (0, 5), (5, 0)])
def test_a_mask_without_pixels_is_one_run_of_nothing(size):
    assert encode_runs(np.zeros(size, bool)).tolist() == [0]
    assert decode_runs(np.array([0]), *size).shape == size


@pytest.mark.parametrize('shape', [(4,), (2, 3, 4)])
def test_what_is_no_mask_is_refused(shape):
    with pytest.raises(ValueError, match='two axes'):
        encode_runs(np.zeros(shape, bool))


@pytest.mark.parametrize('runs', [[3], [3, 10], [0, 12, 1], []])
def test_runs_that_do_not_fill_the_box_are_refused(runs):
    with pytest.raises(ValueError, match='3 x 4 = 12'):
        decode_runs(np.array(runs, np.uint32), 3, 4)


def test_an_instance_puts_its_crop_back_into_the_image():
    mask = np.zeros((10, 20), bool)
    mask[2:5, 4:9] = np.indices((3, 5)).sum(0) % 2 == 0
    runs = encode_runs(mask[2:5, 4:9])
    instance = Instance(1, TrackStatus.NEW, 0, 0, 'person', 0.9, (4, 2, 5, 3), int(mask.sum()), runs)
    assert np.array_equal(instance.mask(10, 20), mask)
    assert np.array_equal(instance.crop(), mask[2:5, 4:9])
