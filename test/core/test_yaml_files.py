"""YAML of any tool is read; what is none, or stands for gigabytes, is said in one line."""

from __future__ import annotations

import itertools

import pytest

from tar_vis_core.errors import DataError
from tar_vis_core.io.yaml_files import parse_yaml
from tar_vis_core.training.recipe import RecipeError, load_recipe

BOMB = '\n'.join(f'{name}: &{name} [{", ".join([f"*{before}"] * 9 if before != "_" else "x" * 9)}]'
                 for before, name in itertools.pairwise('_abcdefghij'))


def test_plain_values_are_read():
    assert parse_yaml('a: [1, 2.5, null, yes]\nb: {c: text}') == {'a': [1, 2.5, None, True], 'b': {'c': 'text'}}
    assert parse_yaml('') is None and parse_yaml('&a 5') == 5


@pytest.mark.parametrize(('text', 'words'), [
    (BOMB, r'\*a is an alias'), ('a: &a [*a]', r'\*a is an alias'), ('a: &x {b: 1}\nc: {<<: *x}', r'\*x is an alias'),
    ('a: 2026-13-45', 'month must be'), ('{', 'stream end'), ('[' * 5000, 'recursion'),
    ('!!python/object/apply:os.system [echo]', 'constructor'), ('\0', 'not allowed')])
def test_what_is_none_is_one_line(text, words):
    with pytest.raises(DataError, match=rf'a\.yaml: cannot be read as YAML: .*{words}') as error:
        parse_yaml(text, 'a.yaml')
    assert '\n' not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize('text', ['[', '2026-13-45', '*a'])
def test_a_recipe_and_its_changes_are_read_so(tmp_path, text):
    with pytest.raises(RecipeError, match='cannot be read as YAML'):
        load_recipe('minvis_ytvis19', [f'lr={text}'])
    (tmp_path / 'mine.yaml').write_text(f'lr: {text}')
    with pytest.raises(RecipeError, match=r'mine\.yaml: cannot be read as YAML'):
        load_recipe(str(tmp_path / 'mine.yaml'))
