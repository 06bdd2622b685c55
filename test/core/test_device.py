"""Ways to a device and back, and clocks of it."""

import time

import numpy as np
import torch

from tar_vis_core.runtime.device import StageClock, _bytes_of, _from_bytes, to_device, to_host

CPU = torch.device('cpu')


def test_tensors_of_every_type_travel_together():
    """What a GPU sends as one transfer; the bytes are made and read the same way here."""
    generator = torch.Generator().manual_seed(0)
    sent = [torch.arange(3), torch.rand(5, 2, generator=generator).half(), torch.tensor([True]), torch.rand(0, 4),
            (255 * torch.rand(3, 7, generator=generator)).to(torch.uint8), torch.rand(4, 3, generator=generator).t(),
            torch.tensor(1.5, dtype=torch.float64)]
    together = _bytes_of(sent)
    assert together.dtype == torch.uint8 and together.ndim == 1
    for there, here in zip(_from_bytes(together, sent), sent, strict=True):
        assert there.dtype == here.dtype and torch.equal(there, here)
    for there, here in zip(to_host(*sent), sent, strict=True):
        assert torch.equal(there, here)


def test_an_image_that_may_not_be_written_to_is_read_all_the_same():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    image.flags.writeable = False
    assert np.array_equal(to_device(image, CPU).numpy(), image)


def test_stages_that_come_twice_add_up():
    clock = StageClock(CPU)
    for stage in ('a', 'b', 'a'):
        time.sleep(0.01)
        clock.lap(stage)
    times = clock.times()
    assert list(times) == ['a', 'b', 'total'] and times['a'] >= 20 and times['b'] >= 10
    assert times['total'] >= times['a'] + times['b']
