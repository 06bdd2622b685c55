"""JSON of any tool and system is read; what is none is said in one line."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tar_vis_core.errors import DataError
from tar_vis_core.io.input_files import problem_of, what_it_is
from tar_vis_core.io.json_files import file_name, read_json, read_text
from tar_vis_core.io.paths import user_path

ROOT = Path(__file__).parents[2]
CONTENT = {'name': 'Fußgänger', 'values': [1, 2.5, None, True], 'deep': {'er': '車'}}
TEXT = json.dumps(CONTENT, ensure_ascii=False)


@pytest.mark.parametrize('data', [
    TEXT.encode(), codecs.BOM_UTF8 + TEXT.encode(), TEXT.encode('utf-16'), TEXT.encode('utf-16-le'),
    codecs.BOM_UTF16_BE + TEXT.encode('utf-16-be'), TEXT.encode('utf-32'), TEXT.replace(' ', '\r\n').encode(),
    json.dumps(CONTENT).encode('ascii')])
def test_every_encoding_that_tools_write_is_read(tmp_path, data):
    (tmp_path / 'a.json').write_bytes(data)
    assert read_json(tmp_path / 'a.json') == CONTENT


@pytest.mark.parametrize('locale', [
    {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}, {'LC_ALL': 'POSIX'}])
def test_the_locale_does_not_matter(tmp_path, locale):
    (tmp_path / 'a.json').write_text(TEXT, encoding='utf-8')
    (tmp_path / 'Fußgänger').write_text('picture')
    program = ('import os, sys\nfrom tar_vis_core.io.json_files import file_name, read_json, read_text\n'
               'name = read_json(sys.argv[1])["name"]; assert name == read_text(sys.argv[1]).split(chr(34))[3]\n'
               'os.chdir(os.path.dirname(sys.argv[1])); print(open(file_name(name)).read(), ascii(name))')
    done = subprocess.run([sys.executable, '-c', program, str(tmp_path / 'a.json')], capture_output=True, text=True,
                          env={**os.environ, **locale, 'PYTHONPATH': str(ROOT)})
    assert done.stdout.split() == ['picture', ascii('Fußgänger')], done.stderr


@pytest.mark.parametrize(('data', 'words'), [
    (b'', 'an empty file'), (b'\0' * 4096, 'zero bytes only'), (b'{"a": [1, 2', 'ends in the middle'),
    (b'{"a": "b', 'ends in the middle'), (b'{"a":', 'ends in the middle'),
    (b'{"a": [1' + bytes(99), 'ends in the middle'), (b'[' * 100_000, 'nested too deeply'),
    (b'{"a":' * 100_000 + b'1' + b'}' * 100_000, 'nested too deeply'), (b'{"a": 1}}', 'line 1, column 9'),
    (b"{'a': 1}", 'no valid JSON at line 1'), (b'{"a": ' + b'9' * 5000 + b'}', 'no valid JSON'),
    ('{"a": "ß"}'.encode('latin-1'), 'no text in UTF-8.*0xdf'), (b'\x1f\x8b\x08\0', 'compressed by gzip'),
    (b'<!DOCTYPE html><html>', 'a web page'), (b'\xef\xbb\xbf\n<html lang="de">', 'a web page'),
    (b'<?xml version="1.0"?><annotation>', 'XML'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 77\n', r'LFS pointer \(77 bytes.*git lfs pull')])
def test_what_is_no_json_is_said_in_one_line(tmp_path, data, words):
    (tmp_path / 'a.json').write_bytes(data)
    with pytest.raises(DataError, match=rf'a\.json: .*{words}') as caught:
        read_json(tmp_path / 'a.json')
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(('make', 'words'), [
    (lambda p: p.mkdir(), 'is a folder'), (os.mkfifo, 'is a pipe'), (lambda p: None, 'no such file'),
    (lambda p: p.symlink_to(p), 'no such file'), (lambda p: p.symlink_to('/dev/zero'), 'is a device')])
@pytest.mark.parametrize('read', [read_json, read_text])
def test_what_is_no_file_is_said_and_nothing_waits(tmp_path, make, words, read):
    make(tmp_path / 'a')
    with pytest.raises(DataError, match=words):
        read(tmp_path / 'a')


def test_names_that_no_file_has_are_no_traceback(tmp_path):
    for name in ('a\0b', 'x' * 5000, ''):
        assert problem_of(name if name != '' else tmp_path / 'none')


def test_ordinary_heads_are_not_taken_for_something_else():
    for head in (b'{"images": []}', b'[]', b'PK\x03\x04', b'\x80\x02}', b'\xff\xd8\xff\xe0', b'\x18\0\0\0\0\0\0\0{"a"'):
        assert what_it_is(head) is None


def test_a_tilde_is_the_home_folder_or_stays(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert user_path('~/a/b.pt') == tmp_path / 'a/b.pt'
    assert user_path('~') == tmp_path
    assert user_path('~nobody_of_this_name/a') == Path('~nobody_of_this_name/a')
    assert user_path('a/~/b') == Path('a/~/b')
    assert user_path(Path('/x')) == Path('/x')


def test_a_text_file_may_have_a_byte_order_mark(tmp_path):
    for data in ('ß\n'.encode('utf-8-sig'), 'ß\n'.encode('utf-16'), 'ß\n'.encode()):
        (tmp_path / 'names.txt').write_bytes(data)
        assert read_text(tmp_path / 'names.txt') == 'ß\n'
    assert file_name('a.jpg') == 'a.jpg'
