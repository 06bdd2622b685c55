"""Results of a run are whole or not there: videos, lines of JSON, weights, checkpoints, on a disk that fills up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from little_room import little_room

from tar_vis_core.errors import WeightsError
from tar_vis_core.evaluation.results_json import write_results
from tar_vis_core.evaluation.tubes import TubePrediction
from tar_vis_core.io.whole_files import WriteError
from tar_vis_core.media.recording import JsonLines, OverlayVideo
from tar_vis_core.training.run_state import save_whole
from tar_vis_core.weights.loading import save_tensors

ROOT = Path(__file__).parents[2]
NOISE = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)


def record(path: Path, frames: int) -> None:
    with closing(OverlayVideo(path)) as video:
        for index in range(frames):
            video.add(index / 10, np.roll(NOISE, 5 * index, 1))


@pytest.mark.parametrize('frames', [1, 5, 12, 13, 40])
def test_a_video_has_its_name_when_it_is_whole(tmp_path, frames):
    record(tmp_path / 'overlay.mp4', frames)
    assert [p.name for p in tmp_path.iterdir()] == ['overlay.mp4']
    capture = cv2.VideoCapture(str(tmp_path / 'overlay.mp4'))
    assert [capture.read()[0] for _ in range(frames + 1)] == [True] * frames + [False]


@pytest.mark.parametrize('size', [0, 100, 6000, 30_000, 100_000])
@pytest.mark.parametrize('frames', [3, 30])
def test_a_video_for_which_there_is_no_room_is_one_error_and_no_file(tmp_path, size, frames):
    record(tmp_path / 'whole.mp4', frames)
    if (tmp_path / 'whole.mp4').stat().st_size <= size:
        return
    (tmp_path / 'whole.mp4').unlink()
    with pytest.raises(WriteError, match=r'cannot write .*overlay\.mp4'), little_room(size):
        record(tmp_path / 'overlay.mp4', frames)
    assert not list(tmp_path.iterdir())


def test_a_video_in_a_folder_that_is_not_there_is_one_error(tmp_path):
    with pytest.raises(WriteError, match='no/overlay'):
        record(tmp_path / 'no' / 'overlay.mp4', 20)


def test_lines_have_their_name_at_the_end_and_are_all_there(tmp_path):
    with closing(JsonLines(tmp_path / 'a.jsonl')) as lines:
        for index in range(5):
            lines.write({'index': index, 'name': 'ß'})
        assert not (tmp_path / 'a.jsonl').exists()
    assert [json.loads(line)['index'] for line in (tmp_path / 'a.jsonl').read_bytes().splitlines()] == list(range(5))
    assert [p.name for p in tmp_path.iterdir()] == ['a.jsonl']


def test_lines_for_which_there_is_no_room_are_one_error_and_no_file(tmp_path):
    with pytest.raises(WriteError, match=r'cannot write .*a\.jsonl'), little_room(1000), \
            closing(JsonLines(tmp_path / 'a.jsonl')) as lines:
        for index in range(500):
            lines.write({'index': index})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('write', 'error'), [
    (lambda path: save_tensors({'a': torch.zeros(5000)}, path), WeightsError),
    (lambda path: save_whole({'a': torch.zeros(5000)}, path), WriteError),
    (lambda path: write_results(path, [TubePrediction(1, 'cat', .5, [None] * 3000)], {1: 'cat'}), WriteError)])
def test_other_results_are_whole_or_not_there(tmp_path, write, error):
    path = tmp_path / 'result.bin'
    write(path)
    whole = path.read_bytes()
    with pytest.raises(error, match=r'cannot write .*result\.bin') as caught, little_room(5000):
        write(path)
    assert '\n' not in str(caught.value)
    assert path.read_bytes() == whole and [p.name for p in tmp_path.iterdir()] == ['result.bin']


@pytest.mark.parametrize('size', [500, 6000])
def test_a_run_on_a_full_disk_ends_with_one_line(tmp_path, size):
    (tmp_path / 'pictures').mkdir()
    for index in range(4):
        cv2.imwrite(str(tmp_path / 'pictures' / f'{index}.png'), np.roll(NOISE, index, 0))
    program = (f'import resource, sys\nfrom tar_vis_core.commands.main import main\n'
               f'resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, -1))\nsys.exit(main(sys.argv[1:]))')
    done = subprocess.run([sys.executable, '-c', program, 'run', str(tmp_path / 'pictures'), '--out',
                           str(tmp_path / 'out')], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'overlay.mp4' not in done.stdout and 'cannot write' in done.stderr.splitlines()[-1]
    assert not [p.name for p in (tmp_path / 'out').iterdir() if p.name != 'instances.jsonl']
