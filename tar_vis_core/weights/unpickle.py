"""Read tensors of checkpoint files from untrusted sources: ``.pth`` (zip and older) and ``.pkl``, of torch or numpy.

A pickle is a program. The interpreter here may build plain containers and this module's own records of tensors and
arrays, and nothing else. An object of another class becomes an inert stand-in. A call of anything else ends the
reading. Numbers are read after the program has ended, and only for the tensors that are asked for.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from tar_vis_core.errors import WeightsError
from tar_vis_core.weights.loading import reading_weights

LEGACY_MAGIC = 0x1950a86a20f9469cfc6c   # first pickle of files of torch before 1.6

# where trainers put the model: detectron2; Lightning and mmengine; torch's tutorials; DeepSpeed
MODEL_ENTRIES = 'model', 'state_dict', 'model_state_dict', 'module'
WRAPPERS = 'module.', '_orig_mod.', 'model.'    # before every name: data parallel, compiled, a Lightning module
MOST, SMALL = 8, 1 << 20    # times the size of the file, and bytes, that what is unpacked may have

STORAGES = {
    'DoubleStorage': torch.float64, 'FloatStorage': torch.float32, 'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16, 'LongStorage': torch.int64, 'IntStorage': torch.int32,
    'ShortStorage': torch.int16, 'CharStorage': torch.int8, 'ByteStorage': torch.uint8, 'BoolStorage': torch.bool}


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint."""

    tensors: dict[str, Tensor]   # the model, under the names that the file gives them
    beside: tuple[str, ...]      # what lies beside the model: optimizer, scheduler, iteration


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; its model is one of :data:`MODEL_ENTRIES` or else the whole of it. No code of the file runs.

    Raise :class:`WeightsError` if the file is damaged, is no checkpoint, or calls what no checkpoint needs.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        raise WeightsError(f'{path} is safetensors already; expected an official .pth or .pkl checkpoint')
    with reading_weights(path), path.open('rb') as file:
        zipped = zipfile.is_zipfile(file)   # leaves the file at its end
        file.seek(0)
        if not zipped and file.read(2) == b'PK':
            raise WeightsError(f'{path} is a zip file without its end: only a part of it was downloaded or copied')
        file.seek(0)
        try:
            content = _read_zip(file) if zipped else _read_stream(_Bounded(file))
        except (EOFError, IndexError, KeyError) as error:
            raise error if zipped else pickle.UnpicklingError('no pickle, or one that breaks off') from error
        content, beside = _model_of(content, path)
        tensors, total = {}, 0
        for name, value in content.items():
            if not isinstance(value, _Tensor | _Array):
                if str(name).endswith('_extra_state'):      # of a module, no weights
                    continue
                raise WeightsError(f'{path}: {name!s} is no tensor but {type(value).__name__}{_hint(content)}')
            tensors[str(name)] = value.read()
            total += tensors[str(name)].nbytes
            if total > MOST * path.stat().st_size + SMALL:
                raise WeightsError(f'{path}: its tensors take more than {MOST} times the size of the file')
        return Checkpoint(tensors, beside)


def _model_of(content: Any, path: Path) -> tuple[Mapping, tuple[str, ...]]:
    """Return the mapping that is the model, one entry deeper if a trainer put it there, and the names beside it."""
    beside: list[str] = []
    for _ in range(3):
        entry = next((name for name in MODEL_ENTRIES
                      if isinstance(content, Mapping) and isinstance(content.get(name), Mapping)), None)
        if entry is None:
            break
        beside += [str(name) for name in content if name != entry]
        content = content[entry]
    if not isinstance(content, Mapping) or not content:
        found = type(content).__name__.lstrip('_') if content else 'nothing'
        raise WeightsError(f'{path}: expected a mapping of names to tensors, found {found}; a whole model must be '
                           'saved by its state_dict()')
    if 'blobs' in content:
        raise WeightsError(f'{path}: Caffe2 files are not supported; expected a checkpoint of torch or detectron2')
    while prefix := next((prefix for prefix in WRAPPERS if all(
            isinstance(name, str) and name.startswith(prefix) and name != prefix for name in content)), None):
        content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content, tuple(beside)


def _hint(content: Mapping) -> str:
    """Return where the tensors are, if they are one entry deeper under an unknown name."""
    inside = [repr(name) for name, value in content.items()
              if isinstance(value, Mapping) and any(isinstance(part, _Tensor | _Array) for part in value.values())]
    return f'; tensors are in entry {" and ".join(inside[:4])}' if inside else ''


@dataclass(frozen=True)
class _Storage:
    """Numbers that lie somewhere in the file."""

    dtype: torch.dtype
    count: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        if prod(self.shape) > self.storage.count:
            raise pickle.UnpicklingError(f'a tensor of shape {self.shape} has {self.storage.count} numbers')
        content = self.storage.read()
        if len(content) != self.storage.count * self.storage.dtype.itemsize:
            raise pickle.UnpicklingError('numbers are missing')
        if not content:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        flat = torch.frombuffer(bytearray(content), dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset).contiguous()


class _Dtype:
    """A numpy type: its name, then its byte order."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: tuple) -> None:
        self.name = state[1] + self.name

    def numpy(self) -> np.dtype:
        dtype = np.dtype(str(self.name))
        if dtype.kind not in 'fiub':
            raise pickle.UnpicklingError(f'an array of type {dtype}')
        return dtype


class _Array:
    """A numpy array, or with shape ``()`` a numpy number."""

    def __init__(self, *_: object) -> None:
        self.state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state[-4:]   # shape, type, whether in Fortran's order, numbers

    def read(self) -> Tensor:
        shape, dtype, fortran, content = self.state
        if isinstance(content, str):   # of Python 2
            content = content.encode('latin1')
        array = np.frombuffer(content, dtype.numpy()).reshape(shape, order='F' if fortran else 'C')
        return torch.from_numpy(array.astype(array.dtype.newbyteorder('='), order='C'))   # a copy: frombuffer is not


def _array(content: bytes | str, dtype: _Dtype, shape: tuple = (), order: str = 'C') -> _Array:
    made = _Array()
    made.state = shape, dtype, order == 'F', content
    return made


class _Dict(dict):
    """An OrderedDict or similar; attached data (module versions) are not kept."""

    def __setstate__(self, state: object) -> None:
        pass


class _NoCalls(type):
    """Classes that a pickle can instantiate (``__new__``), but not call: calls are how pickles do harm."""

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        raise pickle.UnpicklingError(f'the file calls {cls.__name__}, which no checkpoint needs')


def _stand_in(name: str) -> type:
    """Return a new class for objects that are not used: they accept everything from a pickle and keep nothing."""
    def ignore(*_: object) -> None:
        pass

    members = dict.fromkeys(('__setstate__', '__setitem__', 'append', 'extend', 'add'), ignore)
    return _NoCalls(name, (), {
        '__slots__': (), '__new__': lambda cls, *args, **kwargs: object.__new__(cls), **members})


class _Callable:
    """One of our functions for a pickle to call. A pickle may also set attributes; here it cannot."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError('the file alters a function')


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, stride: tuple, *_: object) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError('a tensor without numbers')
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


def _load_from_bytes(content: bytes) -> Any:
    """Return a storage that was pickled by itself: a whole file of torch's older format in a string."""
    return _read_stream(_Bounded(io.BytesIO(content)))


def _bytes(content: bytes | str = b'', encoding: str = 'latin1') -> bytes:
    if encoding not in ('latin1', 'latin-1') or not isinstance(content, bytes | str):   # bytes(n) would take memory
        raise pickle.UnpicklingError('bytes of an unknown kind')
    return content.encode('latin1') if isinstance(content, str) else content


def _own(function: Any) -> _Callable:
    """Return a function that a pickle hands over, if it is one of ours; else end the reading."""
    if not isinstance(function, _Callable):
        name = getattr(function, '__name__', 'something')
        raise pickle.UnpicklingError(f'the file calls {name}, which no checkpoint needs')
    return function


CALLABLE: dict[str, Callable] = {
    'collections.OrderedDict': _Dict, 'collections.defaultdict': lambda *_: _Dict(), 'collections.Counter': _Dict,
    'numpy.dtype': _Dtype, '_codecs.encode': _bytes,
    'torch._utils._rebuild_tensor': _rebuild_tensor, 'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
    'torch._utils._rebuild_parameter_with_state': lambda tensor, *_: tensor,
    'torch._utils._rebuild_device_tensor_from_numpy': lambda array, *_: array,
    'torch._tensor._rebuild_from_type_v2': lambda function, kind, given, *_: _own(function)(*given),
    'torch.nn.parameter.Parameter': lambda tensor, *_: tensor,
    'torch.storage._load_from_bytes': _load_from_bytes, 'torch.Size': tuple, 'torch.device': lambda *_: None}
# values that training options hold; nobody looks at them
CALLABLE |= dict.fromkeys((
    'pathlib.Path', 'pathlib.PosixPath', 'pathlib.WindowsPath', 'pathlib.PurePosixPath', 'datetime.datetime',
    'datetime.date', 'datetime.timedelta', 'collections.deque', 'uuid.UUID'), lambda *_: None)
for _module in ('builtins', '__builtin__'):   # of Python 3 and 2
    CALLABLE |= {f'{_module}.set': set, f'{_module}.bytes': _bytes, f'{_module}.bytearray': _bytes}
for _module in ('numpy.core', 'numpy._core'):   # of numpy 1 and 2
    CALLABLE |= {f'{_module}.multiarray._reconstruct': _Array, f'{_module}.numeric._frombuffer': _array,
                 f'{_module}.multiarray.scalar': lambda dtype, content=b'': _array(content, dtype)}


class _Bounded:
    """A file that never allocates more than it has: a pickle may ask for 2**60 bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, file.seek(0, io.SEEK_END)
        file.seek(0)
        self.readline, self.seek, self.tell = file.readline, file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if count < 0 else min(count, left))


class _Unpickler(pickle._Unpickler):
    """The one interpreter for every pickle; ``storage`` returns the numbers behind a torch file's storage key.

    It is Python's own interpreter written in Python. The one in C allocates memory for any memo index in a pickle.
    """

    def __init__(self, file: BinaryIO, storage: Callable[[torch.dtype, str, int], _Storage] | None = None) -> None:
        super().__init__(file, encoding='latin1')
        self._storage = storage

    def load_bytearray8(self) -> None:
        """Take a byte array as bytes: Python makes room for its length before it reads."""
        self.append(self.read(int.from_bytes(self.read(8), 'little')))

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: load_bytearray8}

    def find_class(self, module: str, name: str) -> Any:
        if module == 'torch' and name in STORAGES:
            return STORAGES[name]
        known = CALLABLE.get(f'{module}.{name}')
        return _stand_in(f'{module}.{name}') if known is None else _Callable(known)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *_ = pid
        if kind != 'storage' or not isinstance(dtype, torch.dtype) or self._storage is None:
            raise pickle.UnpicklingError('storage of an unknown kind')
        return self._storage(dtype, str(key), count)


def _read_zip(file: BinaryIO) -> Any:
    """Read torch's format: the pickle ``NAME/data.pkl`` and the numbers of storage K in ``NAME/data/K``."""
    archive = zipfile.ZipFile(file)
    size, claimed = file.seek(0, io.SEEK_END), sum(entry.file_size for entry in archive.infolist())
    if claimed > MOST * size + SMALL:
        raise pickle.UnpicklingError(f'its entries claim {claimed} bytes, the file has {size}')
    program = next((name for name in archive.namelist() if name.endswith('/data.pkl')), None)
    if program is None:
        raise pickle.UnpicklingError('a zip file without data.pkl')
    folder = program.removesuffix('/data.pkl')
    if f'{folder}/byteorder' in archive.namelist() and archive.read(f'{folder}/byteorder') != b'little':
        raise pickle.UnpicklingError('numbers in another byte order')

    def storage(dtype: torch.dtype, key: str, count: int) -> _Storage:
        name = f'{folder}/data/{key}'
        if archive.getinfo(name).file_size != count * dtype.itemsize:   # before it is unpacked
            raise pickle.UnpicklingError(f'{name} has another size than the file says')
        return _Storage(dtype, count, lambda: archive.read(name))

    return _Unpickler(_Bounded(io.BytesIO(archive.read(program))), storage).load()


def _read_stream(file: BinaryIO) -> Any:
    """Read a single pickle, or torch's older format: magic number, version, system, program, storage keys, numbers."""
    content = _Unpickler(file).load()
    if content != LEGACY_MAGIC:
        return content
    for _ in ('version', 'system'):
        _Unpickler(file).load()
    places: dict[str, int] = {}
    layout: dict[str, tuple[int, int]] = {}   # count and bytes of a number

    def storage(dtype: torch.dtype, key: str, count: int) -> _Storage:
        layout[key] = count, dtype.itemsize

        def read() -> bytes:
            file.seek(places[key])
            return file.read(prod(layout[key]))
        return _Storage(dtype, count, read)

    content = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
        if struct.unpack('<q', file.read(8))[0] != layout[key][0]:
            raise pickle.UnpicklingError(f'storage {key} has another size than the file says')
        places[key] = file.tell()
        file.seek(prod(layout[key]), io.SEEK_CUR)
    return content
