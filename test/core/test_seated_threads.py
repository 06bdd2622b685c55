"""While a step runs, its threads have processors of their own, or are fewer; afterwards all is as it was."""

import functools
import json
import os
import subprocess
import sys
import textwrap

import pytest

from tar_vis_core.runtime import kernels

pytestmark = [
    pytest.mark.skipif(not hasattr(os, 'sched_getaffinity') or len(os.sched_getaffinity(0)) < 2,
                       reason='needs Linux and two processors'),
    pytest.mark.skipif(kernels.compiled() is None, reason='the kernels were not built')]

START = '''
import ctypes, json, os, sys
allowed = set(sorted(os.sched_getaffinity(0))[:{processors}])
os.sched_setaffinity(0, allowed)
import numpy as np, torch
from tar_vis_core.runtime import kernels
torch.set_num_threads(2)
before = {{int(task) for task in os.listdir('/proc/self/task')}}
torch.ones(1000, 1000).exp()     # makes the team
(other,) = {{int(task) for task in os.listdir('/proc/self/task')}} - before
kernels.LOAD, kernels.PROCESSORS = b'load', len(allowed)

def running(number):
    with open('load', 'w') as file:
        file.write(f'0.20 0.18 0.12 {{number}}/80 11206')

running(1)
here = ctypes.CDLL(None).sched_getcpu
masks = lambda: [sorted(os.sched_getaffinity(task)) for task in (0, other)]
'''


@pytest.fixture
def in_a_process(tmp_path):
    return functools.partial(run_in_a_process, tmp_path)


def run_in_a_process(folder, code: str, processors: int = 2):
    """Run code after ``START`` in a process of its own, whose threads are new, and return what it prints as JSON."""
    program = START.format(processors=processors) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120,
                          cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_thread_leaves_the_processor_of_another_one(in_a_process):
    found = in_a_process('''
        for attempt in range(100):
            with kernels.seated_threads():
                pass
            os.sched_setaffinity(other, {place := here()})       # beside this thread, unless it moves now
            with kernels.seated_threads():
                inside, now = masks(), here()
            if now == place:
                break
        print(json.dumps([now == place, place, sorted(allowed), inside, masks()]))
        ''')
    stayed, place, allowed, inside, after = found
    (elsewhere,) = set(allowed) - {place}
    assert stayed
    assert inside == [[place], [elsewhere]]
    assert after == [allowed, [elsewhere]]


def test_the_caller_is_freed_after_an_error(in_a_process):
    before, after = in_a_process('''
        before = masks()[0]
        try:
            with kernels.seated_threads():
                raise ValueError
        except ValueError:
            pass
        print(json.dumps([before, masks()[0]]))
        ''')
    assert after == before


def test_there_are_as_many_threads_as_others_leave_processors(in_a_process):
    """The programs that run are counted over some steps, as one that has just woken will sleep again."""
    threads = in_a_process('''
        def threads(steps):
            for step in range(steps):
                with kernels.seated_threads():
                    inside = torch.get_num_threads()
            return inside

        found = []
        for number, steps in (1, 1), (3, 1), (1, 9), (2, 9), (9, 9), (1, 20):
            running(number)
            found.append(threads(steps))
        print(json.dumps([found, torch.get_num_threads()]))
        ''')
    assert threads == [[2, 2, 2, 1, 1, 2], 2]


def test_on_one_processor_there_is_one_thread(in_a_process):
    assert in_a_process('''
        with kernels.seated_threads():
            inside = torch.get_num_threads()
        print(json.dumps([inside, torch.get_num_threads()]))
        ''', processors=1) == [1, 2]


def test_nothing_is_done_where_others_have_processors_of_their_own(in_a_process):
    inside, allowed = in_a_process('''
        kernels.PROCESSORS += 1
        running(9)
        for step in range(9):
            with kernels.seated_threads():
                inside = torch.get_num_threads(), masks()
        print(json.dumps([inside, sorted(allowed)]))
        ''')
    assert inside == [2, [allowed, allowed]]


def test_a_step_seats_its_threads_and_frees_the_caller(in_a_process):
    allowed, after = in_a_process('''
        from tar_vis_core.segmenter import VideoSegmenter
        segmenter = VideoSegmenter()
        before = set(os.listdir('/proc/self/task'))
        segmenter.step(np.zeros((64, 96, 3), np.uint8), segmenter.new_state())
        (other,) = (int(task) for task in set(os.listdir('/proc/self/task')) - before)
        print(json.dumps([sorted(allowed), masks()]))
        ''')
    assert after[0] == allowed and len(after[1]) == 1


def test_a_segmenter_that_is_ready_leaves_no_thread_that_another_ones_would_wait_for(in_a_process):
    """With helpers of two threads there are more than processors, and then libgomp's sleep at once as they wait."""
    before, ready, stepped = in_a_process('''
        import os
        from tar_vis_core.segmenter import VideoSegmenter
        threads = lambda: len(os.listdir('/proc/self/task'))
        before = threads() - 1      # the team of two
        segmenter = VideoSegmenter()
        segmenter.warm_up(64, 96)
        ready = threads()
        segmenter.step(np.zeros((64, 96, 3), np.uint8), segmenter.new_state())
        print(json.dumps([before, ready, threads()]))
        ''')
    assert ready == before < stepped
