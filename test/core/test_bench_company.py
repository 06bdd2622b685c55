"""What a measurement may have beside it: busy processes, and another network that takes its turns."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tar_vis_core.benchmark import measurement, report
from tar_vis_core.benchmark.company import Rival, busy_processes
from tar_vis_core.benchmark.contenders import FULL, REFERENCE, RIVAL
from tar_vis_core.benchmark.measurement import BenchRun
from tar_vis_core.commands.main import main


def processor_s(pid: int) -> float:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def test_busy_processes_work_and_end_with_the_block():
    with busy_processes(2):
        workers = multiprocessing.active_children()
        before = [processor_s(worker.pid) for worker in workers]
        time.sleep(1.5)
        assert len(workers) == 2 and all(processor_s(w.pid) > b for w, b in zip(workers, before, strict=True))
    assert not any(worker.is_alive() for worker in workers)


def test_both_rounds_are_measured_and_told(monkeypatch, capsys):
    """The other network is stood in for; the rest is real."""
    monkeypatch.setattr(measurement, 'memory_and_power', lambda *_: {
        'peak_memory_gb': {REFERENCE: 0.2, FULL: 0.1}, 'power_w': {REFERENCE: None, FULL: None}})
    run = BenchRun(untrained=True, frames=3, warm_up=1, size='96x64', short_side=64, beside=1)
    figures = measurement.measure(run)
    assert figures['idle'].keys() == figures['busy'].keys() >= {REFERENCE, FULL}
    assert all(0 < times['median_ms'] <= times['p95_ms'] for times in figures['busy'].values())
    figures['configuration']['against'] = 'other.onnx'
    figures['idle'][RIVAL] = {'median_ms': figures['idle'][FULL]['median_ms'] * 2, 'p95_ms': 1e3}
    figures['busy'][RIVAL] = {'median_ms': figures['busy'][FULL]['median_ms'] / 3, 'p95_ms': 1e3}
    report.print_figures(figures)
    said = capsys.readouterr().out
    assert '1 busy beside it' in said and 'idle: all layers takes 0.50 times as long as the network alone of ' in said
    assert '1 busy beside it: all layers takes 3.00 times' in said


@pytest.mark.parametrize('free', [False, True])
def test_another_network_is_timed_on_the_image(free, tmp_path):
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    from onnx_files import colour_model

    path = colour_model(tmp_path / 'other.onnx', free=free)
    assert Rival.begin(str(path), 1).endswith('64x96') or free
    assert Rival.take(np.zeros((64, 96, 3), np.uint8)) > 0


@pytest.mark.parametrize(('changes', 'said'), [
    ({'beside': -1}, '--beside is -1'), ({'against': 'nowhere.onnx'}, 'nowhere.onnx')])
def test_wrong_company_is_refused_in_one_line(changes, said, capsys):
    words = [word for name, value in changes.items() for word in (f'--{name}', str(value))]
    assert main(['bench', '--untrained', '--frames', '3', '--warm-up', '1', '--size', '96x64', '--short-side', '64',
                 *words]) == 1
    assert said in capsys.readouterr().err
