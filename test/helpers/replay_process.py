"""``tar-vis-replay`` as a process, and labelled bags for it, which the replay tests share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from rclpy.serialization import deserialize_message

from tar_vis_core.data.transforms import Scene, to_sample
from tar_vis_core.data.ytvis_writer import write_ytvis
from tar_vis_ros.bags.command import main as make_bags
from tar_vis_ros.bags.reader import read_topics
from tar_vis_ros.msg import InstanceMaskArray

PATIENCE_S = 300.0      # a deadline for what takes ten seconds on an idle machine
FRAMES = 6
SETTINGS = dict(threads=1, device='cpu', score_threshold=0.3123)     # a value to know our nodes by
PARAMETERS = [word for name, value in SETTINGS.items() for word in ('-p', f'{name}:={value}')]
CLASSES = ('person', 'cat')
# Photographs of scikit-image, each with the outline of what it shows, drawn by hand.
OUTLINES = {
    'astronaut': [(185, 20), (155, 75), (185, 150), (115, 190), (45, 280), (20, 400), (20, 512), (280, 512), (290, 400),
                  (360, 345), (340, 260), (290, 200), (260, 180), (270, 130), (300, 80), (265, 25)],
    'chelsea': [(40, 0), (30, 120), (0, 150), (0, 300), (385, 300), (330, 200), (365, 120), (355, 60), (400, 0)]}


def photograph(label: int, shift: int) -> Scene:
    """A window of 192x288 pixels of a photograph, ``shift`` pixels from its left edge, with the mask."""
    name = list(OUTLINES)[label]
    pixels = getattr(pytest.importorskip('skimage.data'), name)()
    mask = cv2.fillPoly(np.zeros(pixels.shape[:2], np.uint8), [np.array(OUTLINES[name])], 1)
    window = slice(0, 280), slice(shift, shift + 420)
    image = np.ascontiguousarray(cv2.resize(pixels[window], (288, 192), interpolation=cv2.INTER_AREA))
    mask = cv2.resize(mask[window], (288, 192), interpolation=cv2.INTER_NEAREST) > 0
    return Scene(image, mask[None], labels=np.array([label]), trusted=np.ones(1, bool),
                 ignore=np.zeros(mask.shape, bool), inside=np.ones(mask.shape, bool), exhaustive=True)


def write_data(folder: Path) -> Path:
    """``instances.json`` of two videos, ``raw/00001`` as MCAP bag, ``jpeg/00002`` as compressed one in sqlite3."""
    videos = ([to_sample(photograph(label, 4 * frame)) for frame in range(FRAMES)] for label in range(2))
    source = write_ytvis(folder, videos, CLASSES, 'test')
    for name, words in (('raw', ['--videos', '00001']),
                        ('jpeg', ['--videos', '00002', '--compressed', '--storage', 'sqlite3'])):
        assert make_bags(['from-youtube-vis', str(source), str(folder / name), '--fps', '15', *words]) == 0
    return folder


class Command:
    """A running ``tar-vis-replay``, which may be started ``by`` a command before it; its output is kept."""

    def __init__(self, env: dict[str, str], *words: object, by: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen([*by, sys.executable, '-m', 'tar_vis_ros.replay.command', *map(str, words)],
                                         env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait(self) -> tuple[int, str, str]:
        """Exit code and both outputs."""
        try:
            out, error = self._process.communicate(timeout=PATIENCE_S)
        finally:
            self._process.kill()
        assert 'Traceback' not in out + error, out + error
        return self._process.returncode, out, error

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    @property
    def running(self) -> bool:
        return self._process.poll() is None


def environment(folder: Path) -> dict[str, str]:
    return dict(os.environ, ROS_LOG_DIR=str(folder / 'ros_log'))


def processes(word: str) -> dict[int, str]:
    """Command lines with ``word`` of the processes that this test process started, by process id (Linux).

    Other test processes run the same tests: theirs have another number in their environment.
    """
    own = f'TAR_VIS_TEST_PROCESS={os.environ["TAR_VIS_TEST_PROCESS"]}'.encode()
    commands = {}
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            command = (folder / 'cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace')
            if word in command and own in (folder / 'environ').read_bytes().split(b'\0'):
                commands[int(folder.name)] = command
        except OSError:
            continue
    return commands


def processes_left() -> list[str]:
    """Nodes and replaying processes that the tests started."""
    return list(processes(f'score_threshold:={SETTINGS["score_threshold"]}').values())


def report_of(folder: Path) -> dict:
    return json.loads((folder / 'report.json').read_text())


def answers(folder: Path) -> list[InstanceMaskArray]:
    return [deserialize_message(cdr, InstanceMaskArray) for topic, cdr in read_topics(folder / 'answers')
            if topic == '/tar_vis/instances']
