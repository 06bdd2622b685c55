"""``tar-vis-replay`` in real time and with a node that runs already, and how it ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
from building import ROOT
from node_process import Client, NodeProcess
from rclpy.serialization import serialize_message
from replay_process import (
    FRAMES,
    PARAMETERS,
    PATIENCE_S,
    SETTINGS,
    Command,
    answers,
    environment,
    processes_left,
    report_of,
    write_data,
)
from sensor_msgs.msg import Image
from test_bags import damaged
from tiny_model import picture

from tar_vis_ros.bags.command import main as make_bags
from tar_vis_ros.bags.maker import BagOptions, write_images
from tar_vis_ros.bags.writer import BagWriter
from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.replay.command import FILES, main, parsed, plan


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp('data'))


def test_in_real_time_every_image_is_answered_or_counted_as_dropped(data, tmp_path):
    assert make_bags(['from-youtube-vis', str(data / 'instances.json'), str(tmp_path), '--videos', '00001', '--fps',
                      '60']) == 0       # twice that is faster than any model
    code, out, error = Command(environment(tmp_path), tmp_path / '00001', '--mode', 'realtime', '--rate', 2, '--out',
                               tmp_path / 'out', *PARAMETERS).wait()
    assert code == 0, out + error
    bag, = report_of(tmp_path / 'out')['bags']
    f = bag['figures']
    assert f['images'] == FRAMES and f['answered'] + f['dropped'] == FRAMES
    assert 0 < f['answered'] < FRAMES
    images = json.loads((tmp_path / 'out/00001/frames.json').read_text())['frames']
    assert images[-1]['round_trip_ms'] is not None                       # the newest is never dropped
    # the node counts from the first image on that came to it
    answered = [image['round_trip_ms'] is not None for image in images]
    first = answered.index(True)
    assert sum(image['dropped'] for image in images[first + 1:]) == answered[first:].count(False)
    assert f['passed_over'] == sum(image['dropped'] for image in images) <= f['dropped']
    assert all(image['late_ms'] is not None for image in images)
    assert all(image['quality'] == 0 for image, came in zip(images, answered, strict=True) if not came)
    assert bag['parameters']['image_reliability'] == 'best_effort'
    assert not processes_left()


def test_a_running_node_is_driven_over_its_topics(data, tmp_path):
    node = NodeProcess(tmp_path, 'driven_node', **SETTINGS)
    client = Client(node)

    def replayed(bag: Path, out: str, *words: object) -> Command:
        return Command(environment(tmp_path), bag, '--node', '/driven_node', '--out', tmp_path / out, *words)

    try:
        elsewhere = replayed(data / 'raw/00001', 'elsewhere')       # while it configures
        assert client.transition('configure') and client.transition('activate'), node.output
        code, _, error = elsewhere.wait()
        assert code == 1 and 'nobody listened on /camera/image_raw (activate /driven_node, or give' in error
        code, out, error = replayed(data / 'raw/00001', 'out', '--to', '/driven_node/image').wait()
        assert code == 0, out + error
        bag, = report_of(tmp_path / 'out')['bags']
        assert bag['figures']['answered'] == FRAMES and bag['parameters']['model'] == 'nano'
        assert bag['figures']['resets'] == 1            # it has begun anew for this bag
        with BagWriter(tmp_path / 'odd', 'mcap', {'/image': Image}) as odd:
            for number in range(9):
                message = client.image(np.zeros((8, 8, 3), np.uint8))
                message.encoding = 'unheard_of'
                odd.write('/image', number, serialize_message(message))
        code, out, error = replayed(tmp_path / 'odd', 'odd_out', '--to', '/driven_node/image', '--patience', 2).wait()
        assert code == 1 and 'images 0 to 2 were not answered within 2 s each' in error
        assert client.state == 'active' and node.running
    finally:
        client.close()
        node.end()


# Whatever ends it

def test_bad_bags_cost_a_line_each_and_the_rest_is_kept(data, tmp_path):
    half = damaged(write_long_bag(tmp_path), tmp_path / 'half.mcap')
    code, out, error = Command(environment(tmp_path), tmp_path / 'nowhere', half, data / 'jpeg/00002', '--out',
                               tmp_path / 'out', *PARAMETERS).wait()
    assert code == 2, out + error
    lines = error.splitlines()
    assert len(lines) == 2 and 'nowhere: no such bag' in lines[0] and 'half.mcap: cannot be read' in lines[1], error
    report = report_of(tmp_path / 'out')
    assert [(bag['name'], bool(bag['problem'])) for bag in report['bags']] == [('half', True), ('00002', False)]
    kept = report['bags'][0]['figures']['answered']
    assert 0 < kept < 12
    assert len(answers(tmp_path / 'out/half')) == kept
    assert report['total']['answered'] == kept + FRAMES
    assert report['total']['accuracy']['videos'] == 1


def test_in_real_time_nobody_waits_for_a_clock_that_was_set(tmp_path):
    """As on a robot without a clock of its own, which learns the time in the middle of a recording."""
    with BagWriter(tmp_path / 'bag', 'mcap', {'/image': Image}) as bag:
        for number, second in enumerate((5, 1_790_000_000)):
            message = array_to_image(picture(number, 48, 64), 'rgb8')
            message.header.stamp.sec = second
            bag.write('/image', second * 10**9, serialize_message(message))
    code, out, error = Command(environment(tmp_path), tmp_path / 'bag', '--mode', 'realtime', '--out', tmp_path / 'out',
                               *PARAMETERS).wait()
    assert code == 2 and 'image 1 comes 1789999995 s after the one before' in error and '1 published' in out


def write_long_bag(folder: Path) -> Path:
    """An MCAP file of several chunks."""
    write_images(folder / 'long', [picture(seed, 192, 288) for seed in range(12)], BagOptions())
    return folder / 'long/long.mcap'


def test_ctrl_c_reports_what_is_there_and_leaves_no_process(data, tmp_path):
    assert make_bags(['from-video', 'photographs', str(tmp_path / 'long'), '--frames', '200', '--width', '160']) == 0
    command = Command(environment(tmp_path), tmp_path / 'long', data / 'raw/00001', '--out', tmp_path / 'out',
                      *PARAMETERS)
    recorded = tmp_path / 'out/long/answers/answers.mcap'
    deadline = time.monotonic() + PATIENCE_S
    while not recorded.exists():
        assert command.running and time.monotonic() < deadline, command.wait()
        time.sleep(0.1)
    time.sleep(1.0)         # some images
    command.interrupt()
    code, out, error = command.wait()
    assert code == 130, out + error
    assert error == 'tar-vis-replay: interrupted; what was answered until then is reported\n'
    assert not processes_left()
    if (tmp_path / 'out/report.json').exists():       # not on a machine that did not answer one image
        report = report_of(tmp_path / 'out')
        assert [bag['problem'] for bag in report['bags']] == ['interrupted']
        assert report['total']['answered'] == report['total']['images'] == len(answers(tmp_path / 'out/long')) < 200


def test_a_full_disk_is_one_line_and_leaves_no_half_file(data, tmp_path):
    disk, kept = tmp_path / 'disk', tmp_path / 'kept'
    disk.mkdir()
    own_mounts = ['unshare', '--map-root-user', '--mount']
    mount = f'mount -t tmpfs -o size=8k tmpfs {disk}'
    if not shutil.which('unshare') or subprocess.run([*own_mounts, 'sh', '-c', mount], capture_output=True).returncode:
        pytest.skip('this user cannot mount')
    by = [*own_mounts, 'sh', '-c', f'{mount} && "$@"; code=$?; cp -r {disk} {kept}; exit $code', 'sh']
    code, out, error = Command(environment(tmp_path), data / 'raw/00001', '--out', disk / 'out', *PARAMETERS,
                               by=by).wait()
    assert code == 2 and error.count('\n') == 1, out + error
    assert error.startswith(f'tar-vis-replay: {disk}/out') and 'No space left on device' in error, error
    for path in kept.rglob('*.json'):
        json.loads(path.read_text())
    assert not list(kept.rglob('report.html')) and not processes_left()


def test_a_node_that_cannot_start_is_reported_with_its_last_words(data, tmp_path):
    code, _, error = Command(environment(tmp_path), data / 'raw/00001', '--out', tmp_path / 'out', *PARAMETERS, '-p',
                             f'weights:={tmp_path / "absent.safetensors"}').wait()
    assert code == 1
    assert 'the node could not configure, it said:' in error and 'absent.safetensors' in error
    assert not (tmp_path / 'out/report.html').exists()
    assert not processes_left()


@pytest.mark.parametrize(('words', 'said'), [
    (['-p', 'modle:=minvis'], "there is no parameter 'modle' (did you mean 'model'?)"),
    (['-p', 'model:=minvi'], "parameter 'model' is 'minvi' (did you mean 'minvis'?)"),
    (['-p', 'model'], 'expected NAME:=VALUE'),
    (['-p', 'model:=['], '-p model:=[: cannot be read as YAML'),
    (['-p', 'image_transport:=raw'], 'the replay sets image_topics, image_transport, autostart itself'),
    (['--params-file', 'nowhere.yaml'], 'nowhere.yaml: no such file'),
    (['--truth', 'nowhere.json'], 'nowhere.json: no such file'),
    (['--node', 'tar_vis', '-p', 'model:=minvis'], '--node drives a node that runs already'),
    (['--to', '/image'], '--to is for --node'),
    (['--topic', '/rear/image'], 'no topic /rear/image in it; it holds /camera/image_raw'),
])
def test_what_cannot_be_is_refused_before_anything_starts(data, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert main([str(data / 'raw/00001'), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith('tar-vis-replay: ') and error.count('\n') == 1 and said in error
    assert not list(tmp_path.iterdir())


def test_bags_of_one_name_have_folders_of_their_own(data, tmp_path):
    shutil.copytree(data / 'raw/00001', tmp_path / '00001')
    bags = [str(data / 'raw/00001'), str(tmp_path / '00001'), str(tmp_path / 'nowhere')]
    jobs, images, bad = plan(parsed([*bags, '--out', str(tmp_path / 'out')]))
    assert [Path(job.folder).name for job in jobs] == ['00001', '00001_2']
    assert images == 2 * FRAMES and list(bad) == bags[2:]


def test_the_command_does_not_wait_for_torch():
    """Its node loads that, in a process of its own; on a busy machine it takes half a minute."""
    code = 'import sys, tar_vis_ros.replay.command, tar_vis_ros.replay.worker; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


def test_help_tells_the_defaults():
    done = subprocess.run([sys.executable, '-m', 'tar_vis_ros.replay.command', '--help'], capture_output=True,
                          text=True, timeout=PATIENCE_S)
    assert done.returncode == 0
    assert all(text in done.stdout for text in ('(default: lossless)', '(default: replay)', '(default: 60)'))


def test_the_tutorial_names_every_file():
    text = (ROOT / 'docs/tutorials/evaluate_a_bag.md').read_text()
    assert all(f'`{name}`' in text for name in FILES)
