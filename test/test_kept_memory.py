"""A step's memory is there for the next step: the system need not hand it out page by page again."""

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import torch
from tar_vis_core.kept_memory import keep_freed_memory

if sys.argv[1] == 'kept' and not keep_freed_memory():
    print('not here')
    sys.exit()

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    a = torch.zeros(12_000_000)          # 48 MB: more than glibc keeps by itself
    b = a + 1
    del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(20):                      # until the free blocks have found their places
    step()
print(sum(step() for _ in range(20)))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='page faults are counted on Linux')
def test_freed_blocks_are_used_again():
    faults = {}
    for mode in ('kept', 'plain'):
        found = subprocess.run([sys.executable, '-c', MEASURE, mode], capture_output=True, text=True, check=True)
        if 'not here' in found.stdout:
            pytest.skip('this C library has no mallopt')
        faults[mode] = int(found.stdout)
    assert faults['kept'] < faults['plain'] / 4
