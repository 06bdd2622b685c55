"""The command tar-vis, as a process where it matters."""

import json
import subprocess
import sys

import cv2
import pytest
from coco_files import write_coco
from saved_weights import save_weights
from tiny_model import picture

from tar_vis_core.commands.main import main
from tar_vis_core.models.presets import PRESETS
from tar_vis_core.models.video_model import build_model

LAYERS = PRESETS['nano'].decoder_layers


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """Weights that mean nothing, for the mechanics."""
    path = tmp_path_factory.mktemp('weights') / 'untrained.safetensors'
    save_weights(build_model('nano'), path, {'preset': 'nano'})
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('frames')
    for k in range(5):
        cv2.imwrite(str(path / f'{k}.png'), picture(k))
    return path


def test_help_names_every_command():
    done = subprocess.run([sys.executable, '-m', 'tar_vis_core.commands.main', '--help'], capture_output=True,
                          text=True)
    assert done.returncode == 0
    assert all(f'\n    {command} ' in done.stdout for command in ('run', 'train', 'eval', 'bench', 'weights'))


def test_the_library_and_its_command_know_no_ros():
    code = 'import sys, tar_vis_core.commands.main, tar_vis_core.segmenter; sys.exit(any(m.startswith("rclpy") or ' \
           'm.startswith("tar_vis_ros") for m in sys.modules))'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_run_writes_a_line_and_a_picture_a_frame(folder, untrained, tmp_path, capsys):
    assert main(['run', str(folder), '--out', str(tmp_path), '--weights', str(untrained)]) == 0
    lines = [json.loads(line) for line in (tmp_path / 'instances.jsonl').read_text().splitlines()]
    assert [line['frame_index'] for line in lines] == [0, 1, 2, 3, 4]
    assert all(len(line['executed']) == LAYERS for line in lines)
    video = cv2.VideoCapture(str(tmp_path / 'overlay.mp4'))
    count = 0
    while video.read()[0]:
        count += 1
    assert count == 5
    assert '5 frames' in capsys.readouterr().out


def test_bench_reports_three_lines_and_what_they_executed(untrained, tmp_path, monkeypatch):
    from tar_vis_core.benchmark import measurement

    both = dict.fromkeys(('reference style', 'all layers'), 0.1)
    monkeypatch.setattr(measurement, 'memory_and_power', lambda *_: {'peak_memory_gb': both, 'power_w': both})
    path = tmp_path / 'bench.json'
    assert main(['bench', '--frames', '4', '--warm-up', '1', '--size', '96x64', '--short-side', '64', '--weights',
                 str(untrained), '--json', str(path)]) == 0
    lines = json.loads(path.read_text())['lines']
    assert list(lines) == ['reference style', 'all layers', 'TAR']
    for entry in lines.values():
        assert entry['frames'] == 3 and entry['median_ms']['total'] > 0
        assert entry['executed_layers'] == pytest.approx(sum(entry['executed_by_stride'].values()))
    assert lines['all layers']['executed_layers'] == LAYERS and 'SET' not in lines['TAR']['routing']


def test_eval_compares_layers_routing_and_controls(untrained, tmp_path, capsys):
    data = write_coco(tmp_path / 'data', images=2)
    assert main(['eval', '--data', str(data), '--weights', str(untrained), '--layers', '0', str(LAYERS),
                 '--short-side', '64', '--json', str(tmp_path / 'eval.json')]) == 0
    rows = {row['name']: row for row in json.loads((tmp_path / 'eval.json').read_text())}
    assert list(rows) == ['first 0', f'first {LAYERS}', 'TAR', 'TAR, all executed', 'TAR, all skipped',
                          'TAR, random gates']
    assert rows['first 0']['executed'] == 0 and rows[f'first {LAYERS}']['executed'] == LAYERS
    assert rows['TAR, all executed']['executed'] == LAYERS and rows['TAR, all skipped']['executed'] == 1
    assert f'first {LAYERS}' in capsys.readouterr().out


@pytest.mark.parametrize(('words', 'said'), [
    (['run', 'nowhere.mp4'], 'nowhere.mp4'), (['bench', '--size', 'big'], "--size is 'big'"),
    (['bench', '--frames', '3'], '--frames is 3'), (['run', 'photographs', '--device', 'cuda:7'], 'cuda:7'),
    (['run', 'photographs', '--routing', 'ful'], "did you mean 'full'"),
    (['weights', 'convert', 'nowhere.pth', '-o', 'out.safetensors'], 'nowhere.pth'),
    (['eval', '--data', 'nowhere.json'], 'nowhere.json')])
def test_what_is_wrong_is_one_line(words, said, untrained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extra = [] if words[0] == 'weights' else ['--weights', str(untrained)]
    assert main([*words, *extra]) == 1
    error = capsys.readouterr().err
    assert said in error and error.strip().count('\n') == 0
