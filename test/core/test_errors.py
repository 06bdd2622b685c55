"""Messages of the project's own errors are one line, whatever names strangers' files put into them."""

from __future__ import annotations

import pytest

from tar_vis_core.errors import DataError, DeviceError, NotFiniteError, TarVisError, WeightsError
from tar_vis_core.io.terminal import line_about, out_of_memory
from tar_vis_core.io.whole_files import WriteError


@pytest.mark.parametrize('kind', [TarVisError, DataError, WeightsError, DeviceError, WriteError])
@pytest.mark.parametrize(('name', 'shown'), [
    ('a\nb', 'a\\nb'), ('\x1b[31mred\r', '\\x1b[31mred\\r'), ('\ud800', '\\ud800'), ('Straße 車', 'Straße 車'),
    ('two  spaces', 'two  spaces')])
def test_what_a_terminal_does_not_print_is_escaped(kind, name, shown):
    assert str(kind(f'{name}: no such file')) == f'{shown}: no such file'


def test_memory_that_ran_out_is_said_whoever_noticed():
    for error in (MemoryError(), OSError(12, 'Cannot allocate memory'),
                  RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")):
        assert out_of_memory(error) and line_about(error).startswith('memory ran out')
    for error in (ValueError('a\n b'), NotFiniteError(), OSError(28, 'No space left on device')):
        assert not out_of_memory(error) and '\n' not in line_about(error)
    assert line_about(KeyError()) == 'KeyError'
