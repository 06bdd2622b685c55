"""Images travel through shared memory by default, and never against the user's own choice."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

from tar_vis_ros.process import dds
from tar_vis_ros.process.resources import config_file

MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_profile(monkeypatch):
    for variable in dds.PROFILE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def free_memory(monkeypatch, mib: int) -> None:
    monkeypatch.setattr(dds.os, 'statvfs', lambda folder: SimpleNamespace(f_bavail=mib, f_frsize=MIB))


@pytest.mark.parametrize('mib, name', [(4096, 'fastdds_shm.xml'), (64, 'fastdds_shm_small.xml')])
def test_profile_fits_into_the_shared_memory(monkeypatch, mib, name):
    free_memory(monkeypatch, mib)
    assert dds.profile_environment() == dict.fromkeys(dds.read_variables(), str(config_file(name)))


@pytest.mark.parametrize('package, variables', [
    ('fastrtps', dds.PROFILE_VARIABLES[:1]), ('fastdds', dds.PROFILE_VARIABLES[1:]), ('other', dds.PROFILE_VARIABLES)])
def test_the_variable_is_the_one_that_this_fast_dds_reads(tmp_path, package, variables):
    (tmp_path / 'late/share/fastrtps').mkdir(parents=True)
    (tmp_path / 'share' / package).mkdir(parents=True)
    rest = [str(tmp_path / 'late')] if package != 'other' else []       # the first one decides
    assert dds.read_variables([str(tmp_path / 'none'), str(tmp_path), *rest]) == variables


def test_this_installation_takes_the_profile_without_a_warning(ros_env):
    env = {name: value for name, value in ros_env.items() if name not in dds.PROFILE_VARIABLES}
    code = ('from tar_vis_ros.process.dds import use_shared_memory_profile\n'
            'use_shared_memory_profile()\nimport rclpy\nrclpy.init()\nrclpy.create_node("quiet")')
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_too_little_shared_memory_is_said_in_one_line(monkeypatch, capfd):
    free_memory(monkeypatch, 10)
    assert dds.profile_environment() == {}
    error = capfd.readouterr().err
    assert error.count('\n') == 1 and '10 MiB' in error and '--shm-size' in error


@pytest.mark.parametrize('variable', dds.PROFILE_VARIABLES)
@pytest.mark.parametrize('value', ['/my/profile.xml', ''])
def test_the_users_profile_stays(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    before = dict(os.environ)
    dds.use_shared_memory_profile()
    assert dict(os.environ) == before


@pytest.mark.parametrize('name', ['fastdds_shm.xml', 'fastdds_shm_small.xml'])
def test_largest_message_fits_into_a_segment(name):
    space = '{http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles}'
    tree = ElementTree.parse(config_file(name))
    segment, message = (int(tree.findtext(f'.//{space}{tag}')) for tag in ('segment_size', 'maxMessageSize'))
    assert message <= segment
    assert message >= 1920 * 1080 * 3


def test_a_missing_config_file_is_named():
    with pytest.raises(FileNotFoundError, match=r'nothing\.xml of tar_vis_ros is not at'):
        config_file('nothing.xml')


@pytest.mark.skipif(not Path('/dev/shm').is_dir(), reason='no /dev/shm on this system')
def test_a_process_of_ours_has_a_segment_of_the_profiles_size(ros_env):
    """Fast DDS has read the profile: the segment of a participant is there while it lives."""
    pytest.importorskip('rclpy')
    if not dds.profile_environment():
        pytest.skip('/dev/shm is too small for either profile')
    env = {name: value for name, value in ros_env.items() if name not in dds.PROFILE_VARIABLES}
    done = subprocess.run([sys.executable, '-c', (
        'import os, pathlib\n'
        'from tar_vis_ros.process.dds import use_shared_memory_profile\n'
        'use_shared_memory_profile()\n'
        'import rclpy\n'
        'rclpy.init(); node = rclpy.create_node("probe")\n'
        'maps = pathlib.Path("/proc/self/maps").read_text().split("\\n")\n'
        'spans = [line.split()[0].split("-") for line in maps if "fastrtps" in line or "fastdds" in line]\n'
        'print(max((int(end, 16) - int(begin, 16) for begin, end in spans), default=0))')],
        env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8 * MIB, 'the default segment has half a MiB'
