"""What is wrong or missing is said before a launch file starts anything."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy')
from tar_vis_ros.node.settings import TABLE
from tar_vis_ros.process.launching import LaunchArgumentError, check_arguments

VIEWERS = {'overlay': 'a_viewer_that_nobody_has', 'rviz': 'rviz_of_ours'}


@pytest.mark.parametrize(('name', 'text', 'words'), [
    ('latency_budget_ms', 'fast', ["latency_budget_ms:=fast", "'fast'", 'number']),
    ('latency_budget_ms', '-1', ['latency_budget_ms:=-1', 'from 0']),
    ('latency_budget_ms', '2026-13-45', ['latency_budget_ms:=2026-13-45', 'number']),
    ('routing', 'clever', ['routing:=clever', 'adaptive']),
    ('image_transport', 'theora', ['image_transport:=theora', 'compressed']),
    ('params_file', '/nowhere/robot.yaml', ['params_file:=/nowhere/robot.yaml: no such file']),
    ('overlay', 'true', ['overlay:=true needs the package a_viewer_that_nobody_has', 'a-viewer-that-nobody-has']),
])
def test_one_line_names_argument_value_and_expectation(name, text, words):
    with pytest.raises(LaunchArgumentError) as error:
        check_arguments({'model': '', name: text}, TABLE, VIEWERS)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_file_without_parameters_is_told(tmp_path):
    (tmp_path / 'a.yaml').write_text('score_threshold: 0.5')
    with pytest.raises(LaunchArgumentError, match=r'params_file:=.*a\.yaml.*no parameters in it'):
        check_arguments({'params_file': str(tmp_path / 'a.yaml')}, TABLE, VIEWERS)


def test_what_is_right_passes(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    index = tmp_path / 'share/ament_index/resource_index/packages'
    index.mkdir(parents=True)
    (index / 'rviz_of_ours').touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    (tmp_path / 'a.yaml').write_text('/**: {ros__parameters: {score_threshold: 0.5}}')
    check_arguments({'model': 'nano', 'latency_budget_ms': '50', 'routing': '', 'params_file': '~/a.yaml',
                     'overlay': 'false', 'rviz': 'true'}, TABLE, VIEWERS)
