"""Ways to a device and back, and clocks of it."""

import os
import subprocess
import sys
import time
import warnings
from unittest import mock

import numpy as np
import pytest
import torch

from tar_vis_core.errors import DeviceError, DeviceLostError
from tar_vis_core.runtime import device as devices
from tar_vis_core.runtime.device import StageClock, _bytes_of, _from_bytes, pick_device, to_device, to_host, watched

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


@pytest.fixture
def gpus(monkeypatch):
    """A machine with one NVIDIA GPU; a test says what torch finds of it."""
    def found(count: int, built_for: str | None = '13.0', error: Exception | None = None):
        monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
        monkeypatch.setattr(devices, 'gpu_nodes', lambda: ['/dev/nvidia0'])
        monkeypatch.setattr(torch.version, 'cuda', built_for)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        monkeypatch.setattr(torch.cuda, 'init', mock.Mock(side_effect=error))
        monkeypatch.setattr(torch.cuda, 'get_arch_list', lambda: ['sm_75', 'sm_90'])
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (6, 1))
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'GeForce GTX 1080')
        monkeypatch.setattr(torch, 'ones', mock.Mock(side_effect=error) if count else torch.ones)
    return found


NO_KERNEL = RuntimeError('CUDA error: no kernel image is available for execution on the device\nCompile with ...')


@pytest.mark.parametrize(('machine', 'words'), [
    (dict(count=0, built_for=None), 'built without CUDA; install its CUDA build'),
    (dict(count=0, error=RuntimeError('The NVIDIA driver on your system is too old (found version 12020)')),
     'driver on your system is too old'),
    (dict(count=1, error=NO_KERNEL),
     r'built for sm_75 sm_90, cannot compute on GeForce GTX 1080 \(sm_61\): .*no kernel'),
])
def test_auto_says_why_it_leaves_a_gpu_alone(machine, words, gpus):
    gpus(**machine)
    with pytest.warns(RuntimeWarning, match=f'device auto takes the CPU: .*{words}.*Set device to cpu') as said:
        assert pick_device('auto') == CPU
    assert '\n' not in str(said[0].message)
    with pytest.raises(DeviceError, match=words):
        pick_device('cuda:0')


def test_auto_is_silent_where_the_gpu_is_hidden_or_there_is_none(gpus, monkeypatch):
    gpus(1, error=NO_KERNEL)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for hidden in ('', '-1'):
            monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
            assert pick_device('auto') == CPU
        monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
        gpus(0)
        monkeypatch.setattr(devices, 'gpu_nodes', list)
        assert pick_device('auto') == CPU


def test_auto_takes_a_gpu_that_computes_or_is_full(gpus):
    for error in (None, torch.cuda.OutOfMemoryError('CUDA out of memory')):
        gpus(1, error=error)
        assert pick_device('auto') == pick_device('cuda') == torch.device('cuda:0')


@pytest.mark.parametrize(('place', 'afterwards', 'raised'), [
    ('cuda:0', RuntimeError('CUDA error'), DeviceLostError), ('cuda:0', None, ValueError),
    ('cuda:0', None, torch.cuda.OutOfMemoryError), ('cpu', RuntimeError('CUDA error'), torch.AcceleratorError)])
def test_an_error_that_sticks_is_told_apart(place, afterwards, raised, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'synchronize', mock.Mock(side_effect=afterwards))
    kind = torch.AcceleratorError if raised is DeviceLostError else raised
    words = 'restart the process .illegal access.' if kind is not raised else 'illegal'
    with pytest.raises(raised, match=words), watched(torch.device(place)):
        raise kind('illegal access\nCUDA kernel errors might be reported later')


def test_auto_is_the_cpu_in_tests(gpus, monkeypatch):
    """Also in the processes that they start, on a machine with a GPU that torch has found already."""
    hidden = os.environ['CUDA_VISIBLE_DEVICES']
    gpus(1)
    assert pick_device('auto').type == 'cuda'
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
    assert pick_device('auto') == CPU


@pytest.mark.parametrize(('own', 'expected'), [
    ({}, '2000 None'), ({'OMP_WAIT_POLICY': 'ACTIVE'}, 'None ACTIVE'), ({'GOMP_SPINCOUNT': '7'}, '7 None')])
def test_threads_that_wait_spin_for_a_moment_unless_the_user_says_how_they_wait(own, expected):
    names = 'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'
    done = subprocess.run(
        [sys.executable, '-c', 'import os, sys, tar_vis_core; assert "torch" not in sys.modules; '
         f'print(*map(os.environ.get, {names}))'], capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name not in names} | own)
    assert done.stdout.strip() == expected
