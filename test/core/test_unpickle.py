"""What is read of checkpoint files, and that nothing of them runs."""

import collections
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from weights_cases import one_line

from tar_vis_core.errors import WeightsError
from tar_vis_core.weights.unpickle import read_checkpoint

FORMS = ('zip', 'legacy', 'pickle')


def write(content, form, folder, protocol=2):
    """A checkpoint in that form."""
    path = folder / ('file.pkl' if form == 'pickle' else 'file.pth')
    if form == 'pickle':
        path.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == 'zip', pickle_protocol=protocol)
    return path


def tensors():
    torch.manual_seed(0)
    shared = torch.randn(6, 4)
    return {
        'float': torch.randn(2, 3), 'half': torch.randn(3).half(), 'bfloat': torch.randn(3).bfloat16(),
        'double': torch.randn(2).double(), 'count': torch.tensor(7), 'int': torch.arange(5, dtype=torch.int32),
        'transposed': torch.randn(3, 4).T, 'part': shared[2:5], 'column': shared[:, 1], 'empty': torch.zeros(0, 3),
        'parameter': torch.nn.Parameter(torch.randn(2)), 'mask': torch.tensor([True, False])}


def arrays():
    rng = np.random.default_rng(0)
    return {
        'float': rng.normal(size=(2, 3)).astype(np.float32), 'half': np.float16([1, 2]), 'count': np.array(7),
        'scalar': np.float32(0.5), 'fortran': np.asfortranarray(rng.normal(size=(3, 4))), 'empty': np.zeros((0, 2)),
        'big endian': np.arange(4, dtype='>f4'), 'row': rng.normal(size=(4, 4))[:, 1], 'bytes': np.uint8([1, 255])}


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('form', FORMS)
def test_tensors_come_out_as_they_went_in(form, protocol, tmp_path):
    found = read_checkpoint(write(tensors(), form, tmp_path, protocol)).tensors
    for name, value in tensors().items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize('protocol', [2, 3, 5])
@pytest.mark.parametrize('form', FORMS)
def test_arrays_come_out_as_tensors(form, protocol, tmp_path):
    found = read_checkpoint(write({'model': arrays()}, form, tmp_path, protocol)).tensors
    for name, value in arrays().items():
        assert np.array_equal(found[name].numpy(), value) and found[name].dtype == torch.from_numpy(
            np.asarray(value, value.dtype.newbyteorder('='))).dtype, name


def test_pickles_of_python_2_and_numpy_1(tmp_path):
    """Raw bytes in plain strings, the old name of numpy's core, the old name of the builtins."""
    numbers = np.float32([0.1, -3])
    raw = (b'\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85'
           b'cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89'
           b'U\x08' + numbers.tobytes() + b'tbs.')
    (tmp_path / 'old.pkl').write_bytes(raw)
    assert read_checkpoint(tmp_path / 'old.pkl').tensors['a'].tolist() == numbers.tolist()


class Schedule:
    """An object such as training checkpoints carry along."""

    def __init__(self):
        self.rate = 0.1


class Options(dict):
    """A mapping of another class, such as configurations are."""


class Names(list):
    """A list of another class."""


@pytest.mark.parametrize('form', FORMS)
def test_training_state_beside_the_model_is_named_and_left_alone(form, tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    assert hasattr(state, '_metadata')
    content = {
        'model': state, 'optimizer': optimizer.state_dict(), 'iteration': 5999, 'scheduler': Schedule(),
        'more': [Options(a=1), Names([1, 2]), {1, 2}, np.float64(1e-4), collections.Counter('ab'), b'bytes', b'',
                 collections.defaultdict(list, a=[1]), torch.float32, torch.device('cpu'), torch.Size([1]), 1j.real]}
    found = read_checkpoint(write(content, form, tmp_path))
    assert found.beside == ('optimizer', 'iteration', 'scheduler', 'more')
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in state.items())


class Calls:
    """Its pickle calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(mark):
    """Pickles that do something when they are read by a plain unpickler; each would make the file ``mark``."""
    yield 'a call', Calls(os.mkdir, mark)
    yield 'a call of a builtin', Calls(eval, f'__import__("os").mkdir({mark!r})')
    yield 'an object made by a call', Calls(pathlib.Path(mark).mkdir)
    yield 'a call by name', Calls(getattr, dict, 'mro')
    yield 'an import', Calls(__import__, 'antigravity')
    yield 'a numpy object array', np.array([Calls(os.mkdir, mark)], dtype=object)
    yield 'a structured array', np.zeros(2, dtype=[('a', 'f4'), ('b', 'i4')])
    yield 'a string array', np.array(['text'])
    yield 'a pickle in a pickle', Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, mark)))
    yield 'a hostile storage', Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.mkdir, mark)))
    yield 'a huge buffer', Calls(bytearray, 1 << 50)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('place', ['the model', 'a tensor', 'beside the model', 'a key', 'deep inside'])
def test_no_call_of_a_checkpoint_runs_wherever_it_stands(form, place, tmp_path):
    mark = str(tmp_path / 'was_here')
    call, tensor = Calls(os.mkdir, mark), torch.ones(2)
    content = {
        'the model': call, 'a tensor': {'model': {'a': call}}, 'beside the model': {'model': {'a': tensor}, 'b': call},
        'a key': {'model': {'a': tensor}, call: 1},
        'deep inside': {'model': {'a': tensor}, 'optimizer': {'state': [{'b': (1, Options(c=call))}]}}}[place]
    with pytest.raises(WeightsError) as error:
        read_checkpoint(write(content, form, tmp_path))
    assert 'the file calls posix.mkdir, which no checkpoint needs' in one_line(error)
    assert not os.path.exists(mark)


@pytest.mark.parametrize('form', FORMS)
def test_no_kind_of_hostile_pickle_is_admitted(form, tmp_path):
    mark = str(tmp_path / 'was_here')
    for kind, value in hostile(mark):
        with pytest.raises(WeightsError) as error:
            read_checkpoint(write({'model': {'a': value}}, form, tmp_path))
        one_line(error)
        assert not os.path.exists(mark), kind


def test_a_checkpoint_cannot_alter_the_reader(tmp_path):
    """BUILD on the name itself, not on what it makes: would change what later files are read with."""
    for name in (b'collections\nOrderedDict', b'numpy\ndtype', b'torch._utils\n_rebuild_tensor_v2'):
        for state in (b'}U\x08functionU\x01xs', b'N}U\x08functionU\x01xs\x86'):   # into __dict__; by setattr
            (tmp_path / 'a.pkl').write_bytes(b'\x80\x02}U\x01bc' + name + b'\n' + state + b'bs.')
            with pytest.raises(WeightsError, match='the file alters a function'):
                read_checkpoint(tmp_path / 'a.pkl')
    found = read_checkpoint(write({'model': tensors() | {'array': arrays()['float']}}, 'zip', tmp_path)).tensors
    assert all(torch.equal(found[name], value) for name, value in tensors().items())


def rewritten(path, change):
    """The zip file at ``path`` with its entries changed by ``change(name, content)``."""
    entries = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            entries.append((name, change(name, archive.read(name))))
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            if content is not None:
                archive.writestr(name, content)
    return path


@pytest.mark.parametrize(('change', 'expected'), [
    (lambda name, content: content[:-4] if name.endswith('data/0') else content, 'another size'),
    (lambda name, content: content * 1000 if name.endswith('data/0') else content, 'another size'),
    (lambda name, content: None if name.endswith('data/0') else content, 'no item named'),
    (lambda name, content: None if name.endswith('data.pkl') else content, 'without data.pkl'),
    (lambda name, content: b'big' if name.endswith('byteorder') else content, 'byte order'),
    (lambda name, content: content.replace(b'K\x02K\x03\x86', b'K\x7fK\x7f\x86') if name.endswith('.pkl') else content,
     'has 6 numbers')])
def test_a_zip_file_that_contradicts_itself_is_refused(change, expected, tmp_path):
    path = rewritten(write({'a': torch.ones(2, 3)}, 'zip', tmp_path), change)
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path)
    assert expected in one_line(error)


@pytest.mark.parametrize('form', FORMS)
def test_a_cut_file_is_one_clear_line_wherever_it_ends(form, tmp_path):
    path = write({'model': {'a': torch.ones(40), 'b': torch.ones(40)}}, form, tmp_path)
    content = path.read_bytes()
    for end in (*range(0, len(content), 37), len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(WeightsError) as error:
            read_checkpoint(path)
        assert str(path) in one_line(error)


def test_numbers_beyond_their_storage_are_refused(tmp_path):
    path = write({'a': torch.ones(4)}, 'legacy', tmp_path)
    content = path.read_bytes()
    assert content.count(b'K\x00K\x04\x85') == 1   # offset 0, shape (4,)
    assert torch.equal(read_checkpoint(path).tensors['a'], torch.ones(4))
    path.write_bytes(content.replace(b'K\x00K\x04\x85', b'K\x02K\x04\x85'))
    with pytest.raises(WeightsError, match='out of bounds'):
        read_checkpoint(path)


@pytest.mark.parametrize(('name', 'content'), [
    ('a.pth', b''), ('a.pth', b'version https://git-lfs.github.com/spec/v1\n'), ('a.pkl', b''), ('a.pkl', b'\x80\x02}'),
    ('a.pth', b'PK\x03\x04 and nothing more'), ('a.pkl', pickle.dumps([1, 2])), ('a.pth', b'<html>not found</html>'),
    ('a.pkl', pickle.dumps({'blobs': {}})), ('a.safetensors', b''), ('a.pkl', pickle.dumps({'a': 'text'}))])
def test_a_file_that_is_no_checkpoint(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as error:
        read_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in one_line(error)
