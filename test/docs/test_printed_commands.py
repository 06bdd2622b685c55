"""The commands of the README, the pages of the nodes and the tutorials run as they are printed; the others are read.

Those of the README and the nodes run with the wheels, as their text says, those of the tutorials as colcon built them.
What takes hours is read by the program's own parser.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('skimage')

import rclpy
from building import BUILD_S, ROOT, BuiltProcess, programs, run, with_this_python
from coco_files import write_coco
from launch_files import declared
from node_process import nano_weights, picture, wait_until

from tar_vis_core.commands.main import main

PAGES = [ROOT / 'README.md', *sorted(path for folder in ('docs', 'docs/tutorials', 'docs/nodes')
                                     for path in (ROOT / folder).glob('*.md'))]
LONG = sorted(path for folder in ('reference', 'research') for path in (ROOT / 'docs' / folder).glob('*.md'))
RUN = [ROOT / 'README.md', *sorted((ROOT / 'docs/nodes').glob('*.md'))]
TUTORIALS = sorted((ROOT / 'docs/tutorials').glob('*.md'))
# What runs until it is interrupted, and the name of its node.
SERVERS = {'tar-vis-node': 'tar_vis', 'tar-vis-video': 'tar_vis_video', 'tar-vis-depth': 'depth_lifter',
           'tar-vis-follow': 'follow_person'}
# What a machine may not have, and how the program says so: official weights, a camera.
ABSENT = {'minvis_ytvis19_R50.pth': 'minvis_ytvis19_R50.pth', 'minvis.safetensors': 'cannot configure',
          'tar-vis-video 0': 'camera'}
HERE = {'500': '2', '60': '12'}     # every how many-th picture of COCO, of which ten are here; frames
# Words of the set-up, which `make setup`, the fixtures of these tests and the tests of the build do in their own way.
SET_UP = {'python', 'sudo', 'make', 'cd', '.', 'python3', 'pip', 'rosdep', 'colcon', 'git', 'mkdir', 'docker'}


def printed(page: Path) -> list[list[str]]:
    """Return the commands of a page as words, in their order."""
    found = []
    for block in re.findall(r'```sh\n(.*?)```', page.read_text(), re.DOTALL):
        block = re.sub(r"<<'END'.*?^END$", '', block.replace('\\\n', ' '), flags=re.DOTALL | re.MULTILINE)
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while '&&' in words:
                found.append(words[:words.index('&&')])
                words = words[words.index('&&') + 1:]
            found.append([word for word in words if word != '&'])
    return [words for words in found if words]


class Desk:
    """A folder with what the pages name, and the programs that run at the moment."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        self.running: dict[str, BuiltProcess] = {}
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node('desk', context=self._context)
        video = cv2.VideoWriter(str(folder / 'street.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, (160, 120))
        (folder / 'pictures').mkdir()
        for index in range(8):
            frame = np.ascontiguousarray(picture(shift=index)[..., ::-1])
            video.write(frame)
            cv2.imwrite(str(folder / f'pictures/{index}.png'), frame)
        video.release()
        write_coco(folder / 'coco', images=10).rename(folder / 'coco/instances_val2017.json')

    def do(self, words: list[str]) -> None:
        """Run a command to its end, or start it if it is one that has none."""
        absent = next((said for what, said in ABSENT.items() if what in ' '.join(words)), '')
        if words[0] in SERVERS:
            self.end(words[0])
            process = BuiltProcess(words, self.env, self.folder, words[0])
            self.running[words[0]] = process
            ready = (lambda: absent in process.output) if absent else lambda: self._ready(words[0], process)
            wait_until(lambda: ready() or not process.running, f'start of {words}', turn=lambda: time.sleep(0.1),
                       seconds=BUILD_S)
            assert ready() and (process.running or absent), process.output
            if absent and words[0] != 'tar-vis-node':       # which stays, unconfigured
                assert process.wait(BUILD_S) == 1, process.output
                del self.running[words[0]]
            return
        if absent:
            with pytest.raises(AssertionError, match=re.escape(absent)):
                run(words, env=self.env, cwd=self.folder)
            return
        if words[0] == 'tar-vis-bag':       # a bag is never written over
            shutil.rmtree(self.folder / words[3], ignore_errors=True)
        run(words, env=self.env, cwd=self.folder)

    def _ready(self, program: str, process: BuiltProcess) -> bool:
        if program == 'tar-vis-node':       # active
            return 'waiting for images on' in process.output
        return SERVERS[program] in self._node.get_node_names()

    def end(self, program: str) -> None:
        """End a program as Ctrl-C does; it ends without a word and with exit code 0."""
        if process := self.running.pop(program, None):
            if process.running:
                process.signal(signal.SIGINT)
                assert process.wait(BUILD_S) == 0, process.output
            assert 'Traceback' not in process.output, process.output

    def close(self) -> None:
        for process in self.running.values():
            process.close()
        self._node.destroy_node()
        self._context.try_shutdown()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_every_printed_command_is_one_that_there_is(page):
    for words in printed(page):
        if words[:3] == ['ros2', 'launch', 'tar_vis_ros']:
            names = {argument.partition(':=')[0] for argument in words[4:]}
            assert names <= declared(ROOT / 'launch' / words[3]), words
        elif words[:2] == ['ros2', 'run']:
            assert words[2] != 'tar_vis_ros' or words[3] in programs(), words
        else:
            assert words[0] in SET_UP | set(programs()), words


class Parsed(Exception):
    """A command line was understood."""


@pytest.mark.parametrize('words', [words for page in LONG for words in printed(page)
                                   if words[0] == 'tar-vis'],
                         ids=lambda words: ' '.join(words[1:4]))
def test_what_takes_hours_has_the_options_that_are_printed(words, monkeypatch, capsys):
    real = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, *arguments: object, **named: object) -> None:
        real(parser, *arguments, **named)
        raise Parsed
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
    with pytest.raises(Parsed):
        main(words[1:words.index('...')] if '...' in words else words[1:])


def run_page(page: Path, env: dict[str, str], folder: Path) -> None:
    """Run the programs that a page prints, in their order, in a folder that has what it names."""
    if nano_weights(folder):
        pytest.skip('the pages speak of a package with its weights')
    desk = Desk(folder, env)
    with contextlib.closing(desk):
        for words in printed(page):
            if words[0] in programs():
                desk.do([HERE.get(word, word).replace('$PWD', str(folder)) for word in words])
        for program in list(desk.running):
            desk.end(program)


@pytest.mark.parametrize('page', RUN, ids=lambda page: page.stem)
def test_the_programs_run_as_they_are_printed(page, ros_env, tmp_path):
    run_page(page, with_this_python(ros_env), tmp_path)


@pytest.mark.parametrize('page', TUTORIALS, ids=lambda page: page.stem)
def test_the_programs_of_a_tutorial_run_as_colcon_built_them(page, colcon_env, tmp_path):
    run_page(page, colcon_env, tmp_path)


def test_the_python_of_the_readme_runs(ros_env):
    code, = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    first = 'from node_process import picture\nrgb = picture(240, 320)\n'
    env = dict(with_this_python(ros_env), PYTHONPATH=str(ROOT / 'test/helpers'))
    assert '(True, ' in run(['python3', '-c', first + code], env=env)
