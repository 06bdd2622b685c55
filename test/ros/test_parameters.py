"""The table of parameters: what is right is taken, what is wrong is named in one line, and the documents agree."""

import dataclasses
import math
from pathlib import Path
from unittest import mock

import pytest
import yaml

pytest.importorskip('rclpy')
import rclpy
from rclpy.lifecycle import Node
from rclpy.parameter import Parameter

from tar_vis_core.foreign import foreign_segmenter
from tar_vis_core.options import OPTIONS, SegmenterOptions
from tar_vis_ros.depth import node as depth
from tar_vis_ros.examples import follow_person
from tar_vis_ros.node import settings
from tar_vis_ros.node.settings import TABLE, Settings
from tar_vis_ros.process.parameters import ParameterError, ParameterNode, to_ros
from tar_vis_ros.video_source import VideoSource

ROOT = Path(__file__).resolve().parents[2]
PAGES = {'tar_vis': TABLE, 'depth_lifter': depth.TABLE, 'follow_person': follow_person.TABLE,
         'tar_vis_video': VideoSource.TABLE}
SMALL = [depth.DepthLifter, follow_person.FollowPerson, VideoSource]
every_table = pytest.mark.parametrize('table', PAGES.values(), ids=PAGES)


@every_table
def test_defaults_are_valid(table):
    assert table.read({name: option.default for name, option in table.options.items()}) == table.settings()
    assert table.at_configure | table.at_start <= set(table.options)


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
    ('weights', 5, '5'),
])
def test_takes(name, value, taken):
    got = TABLE.check(name, value)
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
    ('weights', 5.5, ['5.5', 'a text']),
    ('class_filter', [1, 2], ['[1, 2]', 'a list of texts']),
    ('autostart', 'perhaps', ["'perhaps'", 'true or false']),
])
def test_refuses_in_one_line(name, value, words):
    with pytest.raises(ParameterError) as error:
        TABLE.check(name, value)
    text = str(error.value)
    assert text.startswith(f"parameter '{name}' is ") and '\n' not in text
    for word in [*words, 'expected']:
        assert word in text


def test_unknown_parameter_names_the_nearest():
    assert "did you mean 'score_threshold'?" in TABLE.unknown('score_treshold')


def test_settings_are_complete_and_checked():
    values = {field.name: getattr(Settings(), field.name) for field in dataclasses.fields(Settings)}
    assert TABLE.read(values) == Settings()
    with pytest.raises(ParameterError, match='reset_gap_s'):
        TABLE.read({**values, 'reset_gap_s': -1.0})


def test_every_option_of_the_segmenter_is_a_parameter_and_reaches_it():
    assert {name: TABLE.options[name] for name in OPTIONS} == OPTIONS
    changed = {name: option.choices[-1] if option.choices else ('dog',) if option.default == () else option.high
               for name, option in OPTIONS.items()}
    configured = Settings(**TABLE.read({**vars(Settings()), **changed}).__dict__)
    assert settings.live_options(configured, configured) == SegmenterOptions(**changed)


def test_the_sizes_of_images_that_are_named_are_warmed_up(monkeypatch):
    made = mock.Mock(class_names=('person',))
    monkeypatch.setattr(foreign_segmenter, 'open_segmenter', lambda **_: made)
    settings.load_segmenter(Settings(warm_up_sizes=('1280x720', '64x48')))
    assert made.warm_up.call_args_list == [mock.call(720, 1280), mock.call(48, 64)]
    with pytest.raises(ValueError, match="'warm_up_sizes' has '1280'"):
        settings.load_segmenter(Settings(warm_up_sizes=('1280',)))


def test_the_parameter_file_is_the_tables_own_and_holds_the_defaults():
    text = (ROOT / 'config/tar_vis.yaml').read_text()
    assert text == settings.parameter_file(), 'run python -m tar_vis_ros.node.settings > config/tar_vis.yaml'
    given = yaml.safe_load(text)['/**']['ros__parameters']
    assert {name: TABLE.check(name, value) for name, value in given.items()} == {
        name: option.default for name, option in TABLE.options.items() if name != 'autostart'}


@pytest.mark.parametrize('page', PAGES)
def test_the_page_of_a_node_ends_with_its_table(page):
    text, table = (ROOT / f'docs/nodes/{page}.md').read_text(), PAGES[page].markdown()
    assert text.endswith(f'\n\n{table}\n'), f'put this at the end of the page:\n{table}'


@every_table
def test_help_tells_every_parameter(table):
    text = table.text()
    for name, option in table.options.items():
        assert name in text and option.description in text and option.expected in text


@pytest.fixture
def declared():
    """A real node whose start-up values are half right and half wrong, and what ``declare`` said."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=None)
    given = {'score_threshold': 'high', 'skip_bias': 2, 'max_instances': 7, 'class_filter': ['dog'], 'routing': 'fulll',
             'score_treshold': 0.3}
    node = Node('half_right', context=context,
                parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])
    yield node, *TABLE.declare(node)
    node.destroy_node()
    context.try_shutdown()


def test_wrong_start_up_values_are_told_and_the_rest_stands(declared):
    node, mistakes, remarks = declared
    assert set(mistakes) == {'score_threshold', 'routing'}
    assert len(remarks) == 1 and "'score_treshold' (did you mean 'score_threshold'?)" in remarks[0]
    values = TABLE.read({name: node.get_parameter(name).value for name in TABLE.options})
    assert values == Settings(skip_bias=2.0, max_instances=7, class_filter=('dog',))


def test_descriptors_carry_the_table(declared):
    node, _, _ = declared
    for name, option in TABLE.options.items():
        descriptor = node.describe_parameter(name)
        assert descriptor.description == option.description and descriptor.read_only == (name == 'autostart')
        assert option.expected in descriptor.additional_constraints
        assert ('configure' in descriptor.additional_constraints) == (name in TABLE.at_configure)
    score = node.describe_parameter('score_threshold').floating_point_range[0]
    assert (score.from_value, score.to_value) == (0.0, 1.0)
    layers = node.describe_parameter('fixed_layers').integer_range[0]
    assert (layers.from_value, layers.to_value) == (1, 9)


def test_an_empty_list_keeps_its_type(declared):
    node, _, _ = declared
    assert node.set_parameters([to_ros('class_filter', ())])[0].successful
    assert node.get_parameter('class_filter').type_ == Parameter.Type.STRING_ARRAY


@pytest.fixture
def make():
    """Function that makes a node with start-up values."""
    context = rclpy.Context()
    rclpy.init(context=context)
    made = []

    def make(kind: type[ParameterNode], **given: object) -> ParameterNode:
        values = [Parameter(name, value=value) for name, value in given.items()]
        made.append(kind({}, context=context) if not given and kind is VideoSource else
                    kind(given, context=context) if kind is VideoSource else
                    kind(context=context, parameter_overrides=values))
        return made[-1]

    yield make
    for node in made:
        node.destroy_node()
    context.try_shutdown()


@pytest.mark.parametrize('kind', SMALL, ids=lambda kind: kind.__name__)
def test_a_change_of_a_small_node_is_checked_and_taken_over(make, kind):
    node, table = make(kind), kind.TABLE
    for name, option in table.options.items():
        before = node.options
        if name in table.at_start:
            assert not node.set_parameters_atomically([to_ros(name, option.default)]).successful
        elif isinstance(option.default, int | float):
            whole = math.ceil(option.high)      # a whole number is taken for a double
            assert node.set_parameters_atomically([Parameter(name, value=whole)]).successful
            value = getattr(node.options, name)
            assert value == option.high and type(value) is type(option.default)
            refused = node.set_parameters_atomically([Parameter(name, value=whole + 1)])
            assert not refused.successful and refused.reason.startswith(f"parameter '{name}' is {whole + 1}")
            assert node.options == dataclasses.replace(before, **{name: type(option.default)(option.high)})


def test_a_wrong_value_at_start_ends_a_small_node_with_its_name(make):
    with pytest.raises(ParameterError, match=r"^parameter 'rate' is 'fast', expected a number from 0 to 240$"):
        make(VideoSource, rate='fast')
    assert make(VideoSource, rate=10, source=0).options.source == '0'
