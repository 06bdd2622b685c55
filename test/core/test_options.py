"""One table of options: what it allows, what it says of the rest, and the flags that are made from it."""

import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from tar_vis_core.commands.run import parser
from tar_vis_core.flags import chosen
from tar_vis_core.options import OPTIONS, Option, SegmenterOptions


def test_every_default_and_every_limit_is_allowed_and_what_lies_beyond_is_not():
    assert SegmenterOptions() == SegmenterOptions(**{name: known.default for name, known in OPTIONS.items()})
    for name, known in OPTIONS.items():
        assert known.description
        for bound, beyond in ((known.low, -1), (known.high, 1)):
            if np.isfinite(bound):
                assert getattr(SegmenterOptions(**{name: bound}), name) == bound
                with pytest.raises(ValueError, match=f'^{name} is .*, expected .*{known.high:g}$'):
                    SegmenterOptions(**{name: bound + 2 * beyond})


@pytest.mark.parametrize('name', [name for name, known in OPTIONS.items() if isinstance(known.default, int | float)])
def test_numbers_of_numpy_are_numbers_and_texts_are_none(name):
    kind = type(OPTIONS[name].default)
    value = getattr(SegmenterOptions(**{name: (np.int64 if kind is int else np.float32)(OPTIONS[name].high)}), name)
    assert type(value) is kind
    for wrong in ('1', None, True, float('nan'), [1]):
        with pytest.raises(ValueError, match=f'{name} is'):
            SegmenterOptions(**{name: wrong})


def test_a_pattern_a_choice_and_a_zero_outside_the_range():
    device = Option('auto', 'where', pattern='auto|cpu', example='auto or cpu')
    assert device.check('device', 'cpu') == 'cpu'
    with pytest.raises(ValueError, match="device is 'cpux', expected auto or cpu"):
        device.check('device', 'cpux')
    side = Option(0, 'pixels', low=32, high=64, or_zero=True)
    assert [side.check('side', value) for value in (0, 32, 64)] == [0, 32, 64]
    with pytest.raises(ValueError, match='side is 16, expected 0 or a whole number from 32 to 64'):
        side.check('side', 16)


def test_each_option_is_a_flag():
    words = {'routing': ['fixed'], 'class_filter': ['person', 'dog']}
    words |= {name: [str(known.high)] for name, known in OPTIONS.items() if name not in words}
    line = [word for name, given in words.items() for word in ('--' + name.replace('_', '-'), *given)]
    options = chosen(parser().parse_args(['photographs', *line]), SegmenterOptions)
    assert {field.name: getattr(options, field.name) for field in fields(options)} == {
        'routing': 'fixed', 'class_filter': ('person', 'dog')} | {
        name: known.high for name, known in OPTIONS.items() if name not in ('routing', 'class_filter')}
    assert chosen(parser().parse_args(['photographs']), SegmenterOptions) == SegmenterOptions()


def test_the_table_needs_no_torch():
    code = 'import sys, tar_vis_core.options; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
