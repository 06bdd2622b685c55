"""``tar-vis-replay`` as a process, and labelled bags for it, which the replay tests share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from rclpy.serialization import deserialize_message

from tar_vis_core.data.synth import SynthVideos
from tar_vis_core.data.ytvis_writer import write_ytvis
from tar_vis_core.models.class_sets import CROWD
from tar_vis_ros.bags.command import main as make_bags
from tar_vis_ros.bags.reader import read_topics
from tar_vis_ros.msg import InstanceMaskArray

PATIENCE_S = 300.0      # a deadline for what takes ten seconds on an idle machine
FRAMES = 6
SETTINGS = dict(model='crowd', threads=1, device='cpu', score_threshold=0.3123)     # a value to know our nodes by
PARAMETERS = [word for name, value in SETTINGS.items() for word in ('-p', f'{name}:={value}')]


def write_data(folder: Path) -> Path:
    """``instances.json`` of two videos, ``raw/00001`` as MCAP bag, ``jpeg/00002`` as compressed one in sqlite3."""
    videos = SynthVideos((192, 288), FRAMES, seed=3)
    source = write_ytvis(folder, (videos[i] for i in range(2)), CROWD, 'test')
    for name, words in (('raw', ['--videos', '00001']),
                        ('jpeg', ['--videos', '00002', '--compressed', '--storage', 'sqlite3'])):
        assert make_bags(['from-youtube-vis', str(source), str(folder / name), '--fps', '15', *words]) == 0
    return folder


class Command:
    """A running ``tar-vis-replay``; its output is kept."""

    def __init__(self, env: dict[str, str], *words: object) -> None:
        self._process = subprocess.Popen([sys.executable, '-m', 'tar_vis_ros.replay.command', *map(str, words)],
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
    """Command lines with ``word`` of the processes of this machine, by process id (Linux)."""
    commands = {}
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            commands[int(path.parent.name)] = path.read_bytes().replace(b'\0', b' ').decode(errors='replace')
        except OSError:
            continue
    return {pid: command for pid, command in commands.items() if word in command}


def processes_left() -> list[str]:
    """Nodes and replaying processes that the tests started."""
    return list(processes(f'score_threshold:={SETTINGS["score_threshold"]}').values())


def report_of(folder: Path) -> dict:
    return json.loads((folder / 'report.json').read_text())


def answers(folder: Path) -> list[InstanceMaskArray]:
    return [deserialize_message(cdr, InstanceMaskArray) for topic, cdr in read_topics(folder / 'answers')
            if topic == '/tar_vis/instances']
