"""The table of parameters: what is right is taken, what is wrong is named in one line, and the documents agree."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

pytest.importorskip('rclpy')
import rclpy
from rclpy.lifecycle import Node
from rclpy.parameter import Parameter

from tar_vis_ros.node import parameters
from tar_vis_ros.node.parameters import FIELDS, ParameterError, Settings, check

CONFIG = Path(__file__).resolve().parents[2] / 'config' / 'tar_vis.yaml'


@pytest.mark.parametrize('name', FIELDS)
def test_defaults_are_valid(name):
    assert check(name, FIELDS[name].default) == FIELDS[name].default


@pytest.mark.parametrize(('name', 'value', 'taken'), [
    ('score_threshold', 1, 1.0),
    ('score_threshold', 0.0, 0.0),
    ('skip_bias', -3, -3.0),
    ('class_filter', 'person', ('person',)),
    ('class_filter', ['person', 'dog'], ('person', 'dog')),
    ('class_filter', [''], ()),
    ('class_filter', None, ()),      # YAML's []
    ('input_short_side', 0, 0),
    ('input_short_side', 32, 32),
    ('device', 'cuda:1', 'cuda:1'),
    ('fixed_layers', 9, 9),
])
def test_takes(name, value, taken):
    got = check(name, value)
    assert got == taken and type(got) is type(taken)


@pytest.mark.parametrize(('name', 'value', 'words'), [
    ('score_threshold', 'high', ["'high'", 'a number from 0 to 1']),
    ('score_threshold', math.nan, ['nan', 'a number from 0 to 1']),
    ('score_threshold', 1.5, ['1.5', 'from 0 to 1']),
    ('score_threshold', True, ['True']),
    ('score_threshold', None, ['empty']),
    ('score_threshold', [0.5], ['[0.5]']),
    ('skip_bias', math.inf, ['inf']),
    ('max_instances', 2.5, ['2.5', 'a whole number from 1 to']),
    ('max_instances', 0, ['0', 'from 1']),
    ('input_short_side', 16, ['16', '0 or a whole number from 32']),
    ('fixed_layers', 10, ['10', 'from 1 to 9']),
    ('routing', 'adaptve', ["'adaptve'", "did you mean 'adaptive'?", 'auto, adaptive, full, fixed']),
    ('model', 'nanno', ["did you mean 'nano'?", 'minvis']),
    ('backbone', 'r5', ["did you mean 'r50'?", '(empty)']),
    ('tracker', 'referrring', ["did you mean 'referring'?"]),
    ('precision', 'float64', ['float32, float16, bfloat16']),
    ('device', 'gpu', ["'gpu'", 'cuda:N']),
    ('device', 'cuda:', ['cuda:N']),
    ('weights', 5, ['5', 'a text']),
    ('class_filter', [1, 2], ['[1, 2]', 'a list of texts']),
    ('autostart', 'perhaps', ["'perhaps'", 'true or false']),
])
def test_refuses_in_one_line(name, value, words):
    with pytest.raises(ParameterError) as error:
        check(name, value)
    text = str(error.value)
    assert text.startswith(f"parameter '{name}' is ") and '\n' not in text
    for word in [*words, 'expected']:
        assert word in text


def test_unknown_parameter_names_the_nearest():
    assert "did you mean 'score_threshold'?" in parameters.unknown('score_treshold')


def test_settings_are_complete_and_checked():
    values = {field.name: getattr(Settings(), field.name) for field in dataclasses.fields(Settings)}
    assert parameters.from_ros(values) == Settings()
    with pytest.raises(ParameterError, match='reset_gap_s'):
        parameters.from_ros({**values, 'reset_gap_s': -1.0})


def test_the_configuration_file_holds_every_parameter_with_its_default():
    given = yaml.safe_load(CONFIG.read_text())['/**']['ros__parameters']
    assert {name: check(name, value) for name, value in given.items()} == {
        name: field.default for name, field in FIELDS.items() if name != 'autostart'}


def test_defaults_and_choices_are_the_librarys():
    segmenter = pytest.importorskip('tar_vis_core.segmenter')
    options = segmenter.SegmenterOptions()
    for field in dataclasses.fields(options):
        assert getattr(Settings(), field.name) == getattr(options, field.name), field.name
    from tar_vis_core.models.masked_decoder import ROUTINGS
    from tar_vis_core.runtime.device import PRECISIONS
    assert set(parameters.specification('routing').choices) == {'auto', *ROUTINGS}
    assert set(parameters.specification('precision').choices) == set(PRECISIONS)


@pytest.mark.parametrize('name', FIELDS)
def test_every_limit_of_the_table_is_one_the_library_takes(name):
    segmenter = pytest.importorskip('tar_vis_core.segmenter')
    spec, options = parameters.specification(name), {f.name for f in dataclasses.fields(segmenter.SegmenterOptions)}
    if name in options:
        for value in [*spec.choices, *(v for v in (spec.low, spec.high) if math.isfinite(v))]:
            segmenter.SegmenterOptions(**{name: check(name, type(FIELDS[name].default)(value))})


def test_help_tells_every_parameter():
    table = parameters.table()
    for name in FIELDS:
        assert name in table and parameters.specification(name).description in table
    assert max(map(len, table.splitlines())) <= 120


@pytest.fixture
def declared():
    """A real node whose start-up values are half right and half wrong, and what ``declare`` said."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=None)
    given = {'score_threshold': 'high', 'skip_bias': 2, 'max_instances': 7, 'class_filter': ['dog'], 'routing': 'fulll',
             'score_treshold': 0.3}
    node = Node('half_right', context=context,
                parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])
    yield node, *parameters.declare(node)
    node.destroy_node()
    context.try_shutdown()


def test_wrong_start_up_values_are_told_and_the_rest_stands(declared):
    node, mistakes, remarks = declared
    assert set(mistakes) == {'score_threshold', 'routing'}
    assert len(remarks) == 1 and "'score_treshold' (did you mean 'score_threshold'?)" in remarks[0]
    settings = parameters.from_ros({name: node.get_parameter(name).value for name in FIELDS})
    assert settings == Settings(skip_bias=2.0, max_instances=7, class_filter=('dog',))


def test_descriptors_carry_the_table(declared):
    node, _, _ = declared
    for name in FIELDS:
        descriptor = node.describe_parameter(name)
        spec = parameters.specification(name)
        assert descriptor.description == spec.description and descriptor.read_only == spec.read_only
        assert parameters.expected(name) in descriptor.additional_constraints
        assert ('configure' in descriptor.additional_constraints) == spec.needs_configure
    score = node.describe_parameter('score_threshold').floating_point_range[0]
    assert (score.from_value, score.to_value) == (0.0, 1.0)
    layers = node.describe_parameter('fixed_layers').integer_range[0]
    assert (layers.from_value, layers.to_value) == (1, 9)


def test_an_empty_list_keeps_its_type(declared):
    node, _, _ = declared
    assert node.set_parameters([parameters.to_ros('class_filter', ())])[0].successful
    assert node.get_parameter('class_filter').type_ == Parameter.Type.STRING_ARRAY
