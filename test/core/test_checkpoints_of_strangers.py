"""Checkpoints as trainers save them, and files that are something else, or claim more than they hold."""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from datetime import datetime
from pathlib import Path

import pytest
import torch

from tar_vis_core.commands.main import main
from tar_vis_core.errors import WeightsError
from tar_vis_core.weights.loading import read_header, read_tensors
from tar_vis_core.weights.unpickle import read_checkpoint

ROOT = Path(__file__).parents[2]
MODEL = {'backbone.stem.weight': torch.arange(12.).reshape(4, 3), 'head.class_embed.bias': torch.ones(41)}


def saved(path: Path, content, **options) -> Path:
    torch.save(content, path, **options)
    return path


def same(found: dict, expected: dict = MODEL) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def refused(path: Path, *words: str, read=read_checkpoint) -> None:
    with pytest.raises(WeightsError) as caught:
        read(path)
    text = str(caught.value)
    assert '\n' not in text and str(path) in text and all(word in text for word in words), text


def prefixed(prefix: str) -> dict:
    return {prefix + name: value for name, value in MODEL.items()}


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('content', [
    MODEL, OrderedDict(MODEL), {'model': MODEL},
    {'state_dict': MODEL, 'epoch': 3, 'hyper_parameters': argparse.Namespace()},
    {'meta': {'epoch': 3, 'time': datetime(2020, 1, 2), 'work': pathlib.PurePosixPath('/a')}, 'state_dict': MODEL},
    {'model_state_dict': MODEL, 'optimizer_state_dict': {'state': {}}, 'loss': 0.5},
    {'module': MODEL, 'ds_version': '1'}, {'model': {'state_dict': MODEL, 'config': {}}},
    {'state_dict': prefixed('module.')},
    {'state_dict': prefixed('model.')}, {'model': prefixed('_orig_mod.')}, {'state_dict': prefixed('module.model.')},
    {'state_dict': prefixed('model._orig_mod.')}, prefixed('_orig_mod.module.'), prefixed('module.module.'),
    {'state_dict': {**MODEL, 'head._extra_state': None}}])
def test_the_model_is_found_where_trainers_put_it(tmp_path, content, zipped):
    found = read_checkpoint(saved(tmp_path / 'a.ckpt', content, _use_new_zipfile_serialization=zipped))
    assert same(found.tensors)


def test_an_entry_that_is_not_known_is_named(tmp_path):
    refused(saved(tmp_path / 'a.pth', {'epoch': 3, 'teacher': MODEL, 'student': MODEL}),
            "tensors are in entry 'teacher' and 'student'")


def test_a_whole_module_is_told_from_its_state(tmp_path):
    refused(saved(tmp_path / 'a.pth', torch.nn.Linear(2, 2)), 'state_dict()')


@pytest.mark.parametrize('kind', ['parameter', 'tensor', 'buffer'])
def test_tensors_with_attributes_of_their_own_are_read_without_them(tmp_path, kind):
    value = MODEL['backbone.stem.weight'].clone()
    value = {'parameter': torch.nn.Parameter, 'tensor': lambda t: t, 'buffer': torch.nn.Buffer}[kind](value)
    value.no_weight_decay, value.shard = True, ('row', 2)
    found = read_checkpoint(saved(tmp_path / 'a.pth', {'model': {**MODEL, 'backbone.stem.weight': value}})).tensors
    assert same(found) and not hasattr(found['backbone.stem.weight'], 'shard')


class Rebuild:
    """A pickle that hands a function to torch's own helper."""

    def __init__(self, function, *given):
        self.call = function, given

    def __reduce__(self):
        return torch._tensor._rebuild_from_type_v2, (self.call[0], torch.Tensor, self.call[1], {})


def test_the_helper_for_attributes_calls_nothing_of_the_file(tmp_path):
    mark = tmp_path / 'was_here'
    refused(saved(tmp_path / 'a.pth', {'model': {'a': Rebuild(os.mkdir, str(mark))}}), 'which no checkpoint needs')
    assert not mark.exists()


# something else under the name

PAGE = b'<!DOCTYPE html>\n<html><head><title>Google Drive - Virus scan warning</title></head>' + b'<p>' * 500
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 176542310\n'


@pytest.mark.parametrize(('content', 'words'), [
    (PAGE, ['web page (HTML)']), (b'\n  ' + PAGE.lower(), ['web page (HTML)']),
    (POINTER, ['Git LFS pointer', '176542310 bytes', 'git lfs pull']), (b'', ['an empty file']),
    (b'\0' * 5000, ['zero bytes only']), (b'{"error": "not found"}\n' * 20, ['a text of 460 bytes']),
    (b'\x1f\x8b\x08\0\0\0', ['compressed by gzip'])])
@pytest.mark.parametrize(('name', 'read'), [
    ('a.safetensors', read_header), ('a.safetensors', read_tensors), ('a.pth', read_checkpoint),
    ('a.pkl', read_checkpoint)])
def test_what_is_no_weights_file_is_named(tmp_path, content, words, name, read):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, *words, read=read)


@pytest.mark.parametrize(('make', 'words'), [
    (os.mkfifo, 'is a pipe'), (lambda p: p.mkdir(), 'is a folder'),
    (lambda p: p.symlink_to('/dev/zero'), 'is a device'), (lambda p: None, 'not found')])
@pytest.mark.parametrize(('name', 'read'), [('a.safetensors', read_header), ('a.pth', read_checkpoint)])
def test_what_is_no_file_is_named_and_nothing_waits(tmp_path, make, words, name, read):
    make(tmp_path / name)
    refused(tmp_path / name, words, read=read)


# claims

def rezipped(path: Path, change) -> Path:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in change(parts).items():
            archive.writestr(name, content)
    return path


def claiming(path: Path, size: int) -> Path:
    """A stored zip whose directory claims that its largest entry has so many bytes."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    place = data.find(entry.filename.encode(), data.find(b'PK\x01\x02')) - 46
    struct.pack_into('<II', data, place + 20, size, size)
    path.write_bytes(data)
    return path


CLAIMS = {
    'an entry of zeros': lambda p: rezipped(saved(p, {'a': torch.ones(100)}),
                                            lambda parts: {**parts, 'archive/big': b'\0' * 50_000_000}),
    'a storage of zeros': lambda p: rezipped(saved(p, {'a': torch.zeros(20_000_000)}), lambda parts: parts),
    'a stored entry': lambda p: claiming(saved(p, {'a': torch.ones(5000)}), 0xFFFFFFF0),
    'BINBYTES8': lambda p: p.write_bytes(b'\x80\x04\x8e' + struct.pack('<Q', 1 << 40) + b'abc.'),
    'BYTEARRAY8': lambda p: p.write_bytes(b'\x80\x05\x96' + struct.pack('<Q', 1 << 40) + b'abc.'),
    'FRAME': lambda p: p.write_bytes(b'\x80\x04\x95' + struct.pack('<Q', 1 << 40) + b'abc.'),
    'LONG_BINPUT': lambda p: p.write_bytes(b'\x80\x02}r\xff\xff\xff\x7f.'),
    'LONG4': lambda p: p.write_bytes(b'\x80\x02\x8b\xff\xff\xff\x7fabc.')}


def test_claims_take_no_memory(tmp_path):
    for name, make in CLAIMS.items():
        make(tmp_path / f'{name}.pth')
    program = ('import pathlib, resource\nfrom tar_vis_core.weights.unpickle import read_checkpoint\n'
               'from tar_vis_core.errors import WeightsError\n'
               'for path in sorted(pathlib.Path().glob("*.pth")):\n'
               '    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
               '    try: read_checkpoint(path)\n    except WeightsError as error: said = str(error)\n'
               '    print(said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sep="|")')
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    lines = done.stdout.splitlines()
    assert len(lines) == len(CLAIMS), done
    for name, line in zip(sorted(CLAIMS), lines, strict=True):
        said, grown = line.split('|')
        assert name in said and int(grown) < 40_000, line


def test_memory_that_runs_out_is_said_to_have_run_out(tmp_path):
    from safetensors.torch import save_file
    save_file({'a': torch.zeros(75_000_000)}, tmp_path / 'a.safetensors')
    saved(tmp_path / 'a.pth', {'a': torch.zeros(75_000_000)})
    program = ('import resource, sys\nfrom tar_vis_core.weights.unpickle import read_checkpoint\n'
               'from tar_vis_core.weights.loading import read_tensors\nfrom tar_vis_core.errors import WeightsError\n'
               'pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()\n'
               'resource.setrlimit(resource.RLIMIT_AS, (pages + 100_000_000, -1))\n'
               'for read, name in (read_tensors, "a.safetensors"), (read_checkpoint, "a.pth"):\n'
               '    try: read(name)\n    except WeightsError as error: print(error)')
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all('memory ran out' in line and '300 MB' in line for line in lines), done


# ~ in paths

def test_a_tilde_is_taken_for_the_home_folder_by_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv('TAR_VIS_WEIGHTS', raising=False)
    saved(tmp_path / 'a.pth', {'model': {'x': torch.ones(2)}})
    (tmp_path / 'names.txt').write_bytes('ein Fußgänger\nzwei\n'.encode('utf-8-sig'))
    for arguments, words in (
            (['weights', 'convert', '~/a.pth', '-o', '~/b.safetensors'], 'a.pth'),
            (['weights', 'convert', '~/a.pth', '-o', '~/b.safetensors', '--classes', '~/names.txt'], 'a.pth'),
            (['weights', 'verify', '~/a.pth'], 'a.pth is a pickled checkpoint'),
            (['data', 'check', '~/none.json'], f'{tmp_path}/none.json: no such file'),
            (['run', '~/none.mp4'], 'no such file'), (['run', 'photographs', '--weights', '~/a.pth'], 'is a pickled')):
        assert main(arguments) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert words in said and f'{tmp_path}/~' not in said, arguments


def test_a_tilde_is_taken_for_the_home_folder_by_the_segmenter(tmp_path, monkeypatch):
    from tar_vis_core.segmenter import VideoSegmenter
    from tar_vis_core.weights.manifest import cache_folder
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('TAR_VIS_WEIGHTS', '~/w')
    assert cache_folder() == tmp_path / 'w'
    (tmp_path / 'a.safetensors').write_bytes(POINTER)
    with pytest.raises(WeightsError, match='Git LFS pointer'):
        VideoSegmenter(weights='~/a.safetensors')


def test_a_pickle_in_the_old_form_is_read_to_its_end(tmp_path):
    data = io.BytesIO()
    pickle.dump({'model': {'a': torch.ones(3).numpy()}}, data, protocol=2)
    (tmp_path / 'a.pkl').write_bytes(data.getvalue() + b'trailing bytes')
    assert read_checkpoint(tmp_path / 'a.pkl').tensors['a'].tolist() == [1, 1, 1]


def test_a_download_that_broke_off_is_said_to_be_that(tmp_path):
    torch.save(MODEL, tmp_path / 'whole.pth')
    data = (tmp_path / 'whole.pth').read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / 'part.pth').write_bytes(data[:int(share * len(data))])
        with pytest.raises(WeightsError, match='only a part of it was downloaded'):
            read_checkpoint(tmp_path / 'part.pth')


@pytest.mark.parametrize('data', [
    b'\x89HDF\r\n\x1a\n', b'\x93NUMPY\1\0', b'\x08\x07\x12\x07pytorch', b'{"error": 404}'])
def test_what_is_no_pickle_is_not_told_in_the_words_of_an_interpreter(tmp_path, data):
    (tmp_path / 'file.pth').write_bytes(data + b'0' * 100)
    with pytest.raises(WeightsError, match=r'no weights file.*: no pickle, or one that breaks off$'):
        read_checkpoint(tmp_path / 'file.pth')
