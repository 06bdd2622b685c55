"""Whatever starts processes ends them: also when it is killed, and when its terminal is closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from building import ROOT

pytest.importorskip('rclpy')

PARENT = '''
import time
from tar_vis_ros.process.children import ChildProcess, StopRequest
interrupt, child = StopRequest(), ChildProcess('server', 'http.server', ['0'])
print(child._process.pid, flush=True)
while not interrupt():
    time.sleep(0.05)
with interrupt.ignored():
    child.end()
print('in order', flush=True)
'''
PATIENCE_S = 60


def runs(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2][0] != 'Z'
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != 'linux', reason='a way of Linux')
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number):
    parent = subprocess.Popen([sys.executable, '-c', PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        assert runs(child)
        parent.send_signal(number)
        assert parent.stdout.read() == ('' if number == signal.SIGKILL else 'in order\n')
        parent.wait(PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while runs(child):
            assert time.monotonic() < deadline, 'the child is left behind'
            time.sleep(0.05)
    finally:
        parent.kill()
        if runs(child):
            os.kill(child, signal.SIGKILL)
