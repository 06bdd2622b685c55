"""Result files are whole or not there: full disks, killed writers, links and devices."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from little_room import little_room

from tar_vis_core.io.whole_files import WriteError, make_folder, replacing, write_bytes, write_json, write_text


@pytest.mark.parametrize('name', ['table.csv', 'clip.tar.gz', 'no_ending', '.hidden', 'ä ö.json'])
def test_what_is_written_is_what_lies_there_alone(tmp_path, name):
    write_bytes(tmp_path / name, b'abc')
    write_bytes(tmp_path / name, b'defg')
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b'defg'


@pytest.mark.parametrize('before', [None, 'old'])
def test_no_room_is_one_line_and_leaves_what_was_there(tmp_path, before):
    path = tmp_path / 'result.json'
    if before:
        path.write_text(before)
    with pytest.raises(WriteError, match=r'cannot write .*result\.json: File too large') as caught, \
            little_room():
        write_json(path, list(range(5000)))
    assert '\n' not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == (['result.json'] if before else [])
    assert not before or path.read_text() == before


def test_an_error_of_another_kind_passes_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / 'a.txt') as half:
        half.write_text('half')
        raise KeyError('x')
    assert not list(tmp_path.iterdir())


def test_a_number_that_json_does_not_have_leaves_nothing(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / 'a.json', {'value': float('nan')})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('place', ['missing/a.txt', 'file/a.txt', 'folder'])
def test_a_place_that_takes_no_file_is_named(tmp_path, place):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(WriteError, match=f'cannot write .*{place}'):
        write_text(tmp_path / place, 'text')


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link.json').symlink_to('real/file.json')
    write_json(tmp_path / 'link.json', [1])
    assert (tmp_path / 'link.json').is_symlink()
    assert json.loads((tmp_path / 'real/file.json').read_text()) == [1]


def test_a_pipe_is_written_directly(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / 'pipe').read_text()), daemon=True)
    reader.start()
    write_text(tmp_path / 'pipe', 'through')
    reader.join(10)
    assert got == ['through']
    assert stat.S_ISFIFO((tmp_path / 'pipe').stat().st_mode)


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / 'result.txt'
    path.write_text('old')
    program = ('import os, sys\nfrom tar_vis_core.io.whole_files import replacing\n'
               'with replacing(sys.argv[1]) as half:\n    half.write_text("new"); os.kill(os.getpid(), 9)')
    done = subprocess.run([sys.executable, '-c', program, str(path)], cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    assert path.read_text() == 'old'


def test_text_is_utf8_whatever_the_locale(tmp_path):
    program = ('import sys\nfrom tar_vis_core.io.whole_files import write_text\n'
               'write_text(sys.argv[1], "Fu\\u00dfg\\u00e4nger")')
    environment = {**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
    subprocess.run([sys.executable, '-c', program, str(tmp_path / 'a.txt')], env=environment, check=True,
                   cwd=Path(__file__).parents[2])
    assert (tmp_path / 'a.txt').read_bytes() == 'Fußgänger'.encode()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    make_folder(tmp_path / 'new' / 'deep')
    make_folder(tmp_path / 'new')
    assert (tmp_path / 'new' / 'deep').is_dir()
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'file', tmp_path / 'file' / 'a' / 'b'):
        with pytest.raises(WriteError, match=f'{path} cannot be a folder for results: {tmp_path / "file"} is a file'):
            make_folder(path)
    with pytest.raises(WriteError, match='cannot make the folder /proc/none'):
        make_folder('/proc/none')
