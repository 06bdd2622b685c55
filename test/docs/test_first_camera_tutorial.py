"""What the tutorial "first camera" prints runs, and the words that it quotes are those that the node says."""

from __future__ import annotations

import re
import sys

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('skimage')

import cv2
from building import ROOT, BuiltProcess
from launch_files import declared
from node_process import NodeProcess, nano_weights, wait_until

from tar_vis_ros.process.children import ChildProcess

PAGE = (ROOT / 'docs/tutorials/first_camera.md').read_text()


def test_the_script_that_looks_prints_instances_and_diagnostics_and_saves_the_overlay(tmp_path, ros_env):
    (tmp_path / 'look.py').write_text(re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)[0])
    weights = nano_weights(tmp_path)
    given = {'weights': weights} if weights else {}
    node = NodeProcess(tmp_path, 'tar_vis', autostart=True, device='cpu', threads=1, **given)
    camera = ChildProcess('tar_vis_video', 'tar_vis_ros.video_source', [
        '--loop', '--width', '320', '--ros-args', '-r', 'image:=/tar_vis/image'])
    look = BuiltProcess([sys.executable, 'look.py'], ros_env, tmp_path, 'look')
    picture = tmp_path / 'overlay.png'
    try:
        wait_until(lambda: re.search(r'^frame \d+: ', look.output, re.MULTILINE), 'frame', node)
        wait_until(lambda: re.search(r'^tar_vis: segmentation: active', look.output, re.MULTILINE), 'diagnostics', node)
        wait_until(lambda: picture.exists() and cv2.imread(str(picture)) is not None, 'overlay', node)
        assert cv2.imread(str(picture)).shape[1] == 320
        assert 'Traceback' not in look.output
    finally:
        look.close()
        camera.end()
        node.end()


def test_arguments_and_files_in_the_text_exist():
    declarations = declared(ROOT / 'launch' / 'camera.launch.py')
    assert set(re.findall(r'`(\w+):=(?:true)?`', PAGE)) <= declarations
    for file in re.findall(r'(config/[\w.]+)', PAGE):
        assert (ROOT / file).is_file()
    for link in re.findall(r'\]\(([^)#:]+)\)', PAGE):
        assert (ROOT / 'docs/tutorials' / link).exists(), link


def test_what_the_node_is_said_to_say_it_says():
    table = PAGE.partition('| it says |')[2].partition('\n\n')[0]
    quoted = [part for cell in re.findall(r'^\| `([^`]*)` \|', table, re.MULTILINE)
              for part in re.split(r' ?\.\.\.,? ?|\(\.\.\.\)|/image; |^2 ', cell) if len(part) > 6]
    source = ' '.join(path.read_text() for path in (ROOT / 'tar_vis_ros').rglob('*.py'))
    assert len(quoted) >= 7
    for words in quoted:
        assert words.strip() in source, words
