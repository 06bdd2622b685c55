"""A run that is killed at any time and resumed gives the weights of one that was not, bit for bit."""

import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from coco_files import write_coco

from tar_vis_core.training.train import main
from tar_vis_core.weights.loading import read_tensors
from tar_vis_core.weights.manifest import packaged_weights

ITERATIONS = 5


def command(data, out, processes: int, torchrun: bool = False) -> list[str]:
    changes = ('data=[instances.json]', f'processes={processes}', 'batch=2', 'warmup=1', 'sizes=[[0, 64, 96]]',
               'checkpoint_every=1', 'precision=float32', f'iterations={ITERATIONS}', 'backbone_from=0.5')
    starter = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)] if torchrun else []
    return [sys.executable, *starter, '-m', 'tar_vis_core.training.train', 'nano', '--data', str(data), '--out',
            str(out), '--device', 'cpu', *(word for change in changes for word in ('--set', change))]


def kill_after_checkpoints(words: list[str], out, count: int, wait: float) -> None:
    """Start a run, wait for ``count`` new checkpoints and ``wait`` seconds more, and end all its processes."""
    checkpoint, seen, last = out / 'last.pt', 0, None
    last = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    run = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while seen < count:
        assert run.poll() is None and time.monotonic() < deadline
        now = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        seen, last = seen + (now != last), now
        time.sleep(0.005)
    time.sleep(wait)
    assert run.poll() is None, 'it ended before it was killed'
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


@pytest.mark.parametrize('processes', [1, 2])
def test_a_killed_run_goes_on_as_if_it_never_stopped(tmp_path, processes):
    write_coco(tmp_path, images=3)
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    # with two processes the whole run is torchrun's: it must not matter who starts them
    init = ['--init', str(packaged_weights('nano'))]     # with Routers, which a run on stills alone would not have
    subprocess.run([*command(tmp_path, whole, processes, torchrun=processes > 1), *init], check=True, timeout=240)
    words = command(tmp_path, parts, processes)
    if processes == 1:
        kill_after_checkpoints([*words, *init], parts, 1, 0.0)
    kill_after_checkpoints([*words, *init, '--resume'], parts, 3 - processes, 0.15)
    (parts / 'last.tmp').write_bytes(b'half a checkpoint')
    with (parts / 'log.csv').open('a') as log:
        log.write('4,0.1')       # half a row of an iteration that no checkpoint has
    done = torch.load(parts / 'last.pt', weights_only=True)['iteration']
    assert 1 <= done < ITERATIONS
    result = subprocess.run([*words, '--resume'], check=True, timeout=240, capture_output=True, text=True)
    assert f'going on after {done} iterations' in result.stdout
    assert (parts / 'log.csv').read_text() == (whole / 'log.csv').read_text()
    weights, others = (read_tensors(folder / 'model.safetensors') for folder in (whole, parts))
    assert weights and all(torch.equal(value, others[name]) for name, value in weights.items())
    one, other = (torch.load(folder / 'last.pt', weights_only=True) for folder in (whole, parts))
    assert one['iteration'] == other['iteration'] == ITERATIONS
    for part in ('model', 'average'):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    for number, moments in one['optimizer']['state'].items():
        assert all(torch.equal(v, other['optimizer']['state'][number][k]) for k, v in moments.items())


@pytest.mark.parametrize('processes', [1, 2])
def test_a_full_disk_is_one_line(tmp_path, processes):
    write_coco(tmp_path, images=3)
    done = subprocess.run(command(tmp_path, tmp_path / 'out', processes), capture_output=True, text=True, timeout=240,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8)))
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert re.search(r'^tar-vis train: .*(cannot write|cannot meet)', done.stderr, re.M), done.stderr


def test_a_file_in_place_of_the_folder_is_named(tmp_path, capsys):
    (tmp_path / 'out').write_text('mine')
    assert main(['nano', '--data', str(tmp_path), '--out', str(tmp_path / 'out')]) == 1
    assert 'cannot be a folder for results' in capsys.readouterr().err
