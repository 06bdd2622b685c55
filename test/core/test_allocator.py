"""A step's memory is there for the next step, and goes back to the system when it is told to."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='memory is read as Linux tells it')

BEGIN = """
import sys
import torch
from tar_vis_core.runtime.allocator import give_back_free_memory, keep_freed_memory

if sys.argv[1] == 'kept' and not keep_freed_memory():
    print('not here')
    sys.exit()

def step():
    a = torch.zeros(12_000_000)          # 48 MB: more than glibc keeps by itself
    b = a + 1
"""
FAULTS = """
import resource

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(20):                      # until the free blocks have found their places
    step()
print(sum(faults() for _ in range(20)))
"""
HELD = """
def held():
    return int(open('/proc/self/statm').read().split()[1]) * 4096 // 10**6

first = held()
step()
kept = held() - first
give_back_free_memory()
print(kept, held() - first)
"""


def said_by(program: str, mode: str) -> list[int]:
    found = subprocess.run([sys.executable, '-c', BEGIN + program, mode], capture_output=True, text=True, check=True)
    if 'not here' in found.stdout:
        pytest.skip('this C library has no mallopt')
    return [int(word) for word in found.stdout.split()]


def test_freed_blocks_are_used_again():
    assert said_by(FAULTS, 'kept')[0] < said_by(FAULTS, 'plain')[0] / 4


def test_what_is_free_goes_back_when_it_is_told_to():
    kept, left = said_by(HELD, 'kept')
    assert kept > 90 and left < 10, 'MB of the step'
