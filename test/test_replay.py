"""``tar-vis-replay`` with real nodes: what it answers, counts, writes and shows, and how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
import torch
from building import ROOT
from node_process import Client, NodeProcess
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image
from test_bags import damaged

from tar_vis_core.data.synth import SynthVideos
from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.data.ytvis_writer import write_ytvis
from tar_vis_core.evaluation.results_json import categories_of, read_results
from tar_vis_core.evaluation.video_eval import score_row
from tar_vis_core.models.class_sets import CROWD
from tar_vis_ros.bags.command import command_line as bag_command_line
from tar_vis_ros.bags.command import main as make_bags
from tar_vis_ros.bags.reading import header_stamp_ns, read_topics
from tar_vis_ros.bags.writing import BagWriter
from tar_vis_ros.codec import decode_instances
from tar_vis_ros.msg import InstanceMaskArray
from tar_vis_ros.parameters import Settings
from tar_vis_ros.replay.command import FILES, command_line, main, plan
from tar_vis_ros.segmenter_options import load_segmenter

PATIENCE_S = 300.0      # a deadline for what takes ten seconds on an idle machine
FRAMES = 6
SETTINGS = dict(model='crowd', threads=1, device='cpu', score_threshold=0.3123)     # a value to know our nodes by
PARAMETERS = [word for name, value in SETTINGS.items() for word in ('-p', f'{name}:={value}')]


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """``instances.json`` of two videos, ``raw/00001`` as MCAP bag, ``jpeg/00002`` as compressed one in sqlite3."""
    folder = tmp_path_factory.mktemp('data')
    videos = SynthVideos((192, 288), FRAMES, seed=3)
    source = write_ytvis(folder, (videos[i] for i in range(2)), CROWD, 'test')
    for name, words in (('raw', ['--videos', '00001']),
                        ('jpeg', ['--videos', '00002', '--compressed', '--storage', 'sqlite3'])):
        assert make_bags(['from-youtube-vis', str(source), str(folder / name), '--fps', '15', *words]) == 0
    return folder


class Command:
    """A running ``tar-vis-replay``; its output is kept."""

    def __init__(self, env: dict[str, str], *words: object) -> None:
        self._process = subprocess.Popen([sys.executable, '-m', 'tar_vis_ros.replay.command', *map(str, words)],
                                         env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait(self) -> tuple[int, str, str]:
        """Exit code and both outputs."""
        try:
            out, error = self._process.communicate(timeout=PATIENCE_S)
        finally:
            self._process.kill()
        assert 'Traceback' not in out + error, out + error
        return self._process.returncode, out, error

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    @property
    def running(self) -> bool:
        return self._process.poll() is None


def environment(folder: Path) -> dict[str, str]:
    return dict(os.environ, ROS_LOG_DIR=str(folder / 'ros_log'))


def processes_left() -> list[str]:
    """Nodes and replaying processes that the tests started."""
    commands = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            commands.append(path.read_bytes().replace(b'\0', b' ').decode(errors='replace'))
        except OSError:
            continue
    return [command for command in commands if f'score_threshold:={SETTINGS["score_threshold"]}' in command]


@pytest.fixture(scope='module')
def lossless(data, tmp_path_factory) -> Path:
    """The folder of a report on both bags, replayed at once."""
    folder = tmp_path_factory.mktemp('lossless')
    code, out, error = Command(environment(folder), data / 'raw/00001', data / 'jpeg/00002', '--out', folder / 'out',
                               '--jobs', 2, *PARAMETERS).wait()
    assert (code, error) == (0, ''), out + error
    assert re.search(r'12 published, 12 answered, 0 dropped', out), out
    assert re.search(r'accuracy +AP [\d.]+, AP50 [\d.]+, AR10 [\d.]+', out), out
    assert not processes_left()
    return folder / 'out'


def report_of(folder: Path) -> dict:
    return json.loads((folder / 'report.json').read_text())


def answers(folder: Path) -> list[InstanceMaskArray]:
    return [deserialize_message(cdr, InstanceMaskArray) for topic, cdr in read_topics(folder / 'answers')
            if topic == '/tar_vis/instances']


def stamps_of(data: Path, name: str) -> list[int]:
    path, = data.glob(f'*/{name}.truth.json')
    return list(load_ytvis(path, pictures=False)[0].stamps_ns)


def test_every_image_is_answered_as_the_library_answers_it(data, lossless):
    threads = torch.get_num_threads()
    try:
        segmenter = load_segmenter(Settings(**SETTINGS))
        for record in load_ytvis(data / 'instances.json'):
            stamps = stamps_of(data, record.name)
            got, state = answers(lossless / record.name), segmenter.new_state()
            assert len(got) == FRAMES
            for image, stamp_ns, message in zip(record.frames(), stamps, got, strict=True):
                expected = segmenter.step(image, state, stamp_ns // 10**9 + stamp_ns % 10**9 * 1e-9)
                assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == stamp_ns
                assert [(i.track_id, i.class_name, i.area) for i in message.instances] == [
                    (i.track_id, i.class_name, i.area) for i in expected.instances]
                for ours, theirs in zip(decode_instances(message), expected.instances, strict=True):
                    assert np.array_equal(ours.runs, theirs.runs)
            assert any(message.instances for message in got)
    finally:
        torch.set_num_threads(threads)


def test_answers_are_recorded_with_the_stamps_of_their_images(data, lossless):
    for name, storage in (('00001', '*.mcap'), ('00002', '*.db3')):     # the storage of the bag that was played
        answered = lossless / name / 'answers'
        assert list(answered.glob(storage))
        for topic in ('/tar_vis/instances', '/tar_vis/skip_diagnostics'):
            stamps = [header_stamp_ns(cdr) for t, cdr in read_topics(answered) if t == topic]
            assert stamps == stamps_of(data, name)


def test_accuracy_is_what_the_evaluation_says_of_the_results(data, lossless):
    report = report_of(lossless)
    records, categories = load_ytvis(data / 'instances.json'), categories_of(data / 'instances.json')
    for bag in report['bags']:
        record = [record for record in records if record.name == bag['name']]
        tubes = read_results(lossless / bag['name'] / 'results.json', record, categories)
        row = score_row('', record, tubes, [], 0, CROWD)
        got = bag['figures']['accuracy']
        assert got['ap'] == pytest.approx(row.ap.mean.ap, abs=1e-3) and got['ap50'] > 0
        assert (got['ar10'], got['hota']) == pytest.approx((row.ap.mean.ar10, row.identities.hota), abs=1e-3)
        assert (got['switches'], got['frames']) == (row.identities.switches, FRAMES)
    assert report['total']['accuracy']['videos'] == 2
    assert {row['video_id'] for row in json.loads((lossless / 'results.json').read_text())} == {1, 2}


def test_the_report_says_where_it_comes_from(data, lossless):
    report = report_of(lossless)
    assert report['host']['cores'] == os.cpu_count()
    assert report['versions']['torch'] == torch.__version__
    assert report['asked']['mode'] == 'lossless'
    assert [bag['name'] for bag in report['bags']] == ['00001', '00002']     # in the order of the command
    for bag in report['bags']:
        assert bag['sha256'] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                                 for path in Path(bag['path']).iterdir()}
        assert {name: bag['parameters'][name] for name in SETTINGS} == SETTINGS
        assert bag['parameters']['image_reliability'] == 'reliable'
        assert bag['figures']['images'] == bag['figures']['answered'] == FRAMES
        assert bag['figures']['executed_layers'] <= bag['figures']['layers'] == 9
        assert 0 < bag['figures']['latency_ms']['p50'] <= bag['figures']['round_trip_ms']['p50']
        assert bag['truth'].endswith(f'{bag["name"]}.truth.json') and not bag['problem']


# The page in a browser

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync', '--enable-logging=stderr',
         '--dump-dom']
in_browser = pytest.mark.skipif(not CHROMIUM, reason='chromium is not installed')


def opened(page: Path, tmp_path: Path, hash_: str = '') -> str:
    """The page's elements once its scripts have run; fails where it says anything on the console."""
    profile = tmp_path / 'profile'
    shutil.rmtree(profile, ignore_errors=True)
    done = subprocess.run([CHROMIUM, *FLAGS, f'--user-data-dir={profile}', f'file://{page}{hash_}'],
                          capture_output=True, text=True, timeout=PATIENCE_S)
    said = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    assert done.returncode == 0 and not said, '\n'.join(said) or done.stderr
    return done.stdout


def text_of(dom: str, element: str) -> str:
    found = re.search(rf'<(\w+) [^>]*id="{element}"[^>]*>(.*?)</\1>', dom, re.S)
    return re.sub(r'<[^>]+>', ' ', found[2])


@in_browser
def test_the_page_opens_without_a_word_on_the_console(lossless, tmp_path):
    dom, total = opened(lossless / 'report.html', tmp_path), report_of(lossless)['total']
    assert 'Replay of 2 bags, lossless' in text_of(dom, 'title')
    assert f'{100 * total["accuracy"]["ap"]:.1f}' in text_of(dom, 'cards')
    assert all(name in text_of(dom, 'bags') for name in ('00001', '00002'))
    frames = json.loads((lossless / '00001/frames.json').read_text())
    assert frames['worst'][0] == int(np.argmin([fate['quality'] for fate in frames['fates']]))
    shown = [int(image) for image in re.findall(r'data-image="(\d+)"', dom)]
    assert shown == frames['worst']                                                 # the worst first
    assert f'image {frames["worst"][0]} of {FRAMES}' in text_of(dom, 'shown')       # and the first of them is open


@in_browser
def test_the_address_and_the_slider_choose_an_image(lossless, tmp_path):
    dom = opened(lossless / 'report.html', tmp_path, '#bag=1&image=4')
    assert '00002' in text_of(dom, 'frames-title') and f'image 4 of {FRAMES}' in text_of(dom, 'shown')
    fate = json.loads((lossless / '00002/frames.json').read_text())['fates'][4]
    assert f'{fate["stamp_ns"] // 10**9}.{fate["stamp_ns"] % 10**9:09d} s' in text_of(dom, 'facts')
    assert f'{fate["quality"]:.3f}' in text_of(dom, 'facts')
    assert re.search(r'id="picture"[^>]*src="data:image/jpeg', dom)
    # as a hand on the slider does
    moved = tmp_path / 'moved.html'
    page = (lossless / 'report.html').read_text()
    moved.write_text(page.replace('</body>', "<script>$('slider').value = 2; "
                                  "$('slider').dispatchEvent(new Event('input'));</script></body>"))
    dom = opened(moved, tmp_path, '#bag=0&image=5')
    assert '00001' in text_of(dom, 'frames-title') and f'image 2 of {FRAMES}' in text_of(dom, 'shown')


@in_browser
def test_an_error_of_the_page_is_noticed(lossless, tmp_path):
    broken = tmp_path / 'broken.html'
    broken.write_text((lossless / 'report.html').read_text().replace('showTotals();', 'showEverything();'))
    with pytest.raises(AssertionError, match='showEverything is not defined'):
        opened(broken, tmp_path)


def test_the_page_needs_nothing_else(lossless):
    page = (lossless / 'report.html').read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"|url\(|@import|fetch\(|<link(?! rel="icon" href="data:)', page)
    assert page.count('data:image/jpeg;base64,') == 2 * FRAMES


# Real time, a node that runs already

def test_in_real_time_every_image_is_answered_or_counted_as_dropped(data, tmp_path):
    assert make_bags(['from-youtube-vis', str(data / 'instances.json'), str(tmp_path), '--videos', '00001', '--fps',
                      '200']) == 0      # faster than any model
    code, out, error = Command(environment(tmp_path), tmp_path / '00001', '--mode', 'realtime', '--rate', 2, '--out',
                               tmp_path / 'out', *PARAMETERS).wait()
    assert code == 0, out + error
    bag, = report_of(tmp_path / 'out')['bags']
    f = bag['figures']
    assert f['images'] == FRAMES and f['answered'] + f['dropped'] == FRAMES
    assert 0 < f['answered'] < FRAMES
    fates = json.loads((tmp_path / 'out/00001/frames.json').read_text())['fates']
    assert fates[-1]['round_trip_ms'] is not None                       # the newest is never dropped
    assert sum(fate['dropped'] for fate in fates) == f['passed_over'] == f['dropped']
    assert all(fate['late_ms'] is not None for fate in fates)
    unanswered = [fate for fate in fates if fate['round_trip_ms'] is None]
    assert all(fate['quality'] == 0 for fate in unanswered)     # what is dropped is missed
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
        assert bag['figures']['answered'] == FRAMES and bag['parameters']['model'] == 'crowd'
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


def write_long_bag(folder: Path) -> Path:
    """An MCAP file of several chunks."""
    from tiny_model import picture

    from tar_vis_ros.bags.making import BagOptions, write_images
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


def test_a_node_that_cannot_start_is_reported_with_its_last_words(data, tmp_path):
    code, _, error = Command(environment(tmp_path), data / 'raw/00001', '--out', tmp_path / 'out', *PARAMETERS, '-p',
                             f'weights:={tmp_path / "absent.safetensors"}').wait()
    assert code == 1
    assert 'the node could not configure, it said:' in error and 'absent.safetensors' in error
    assert not (tmp_path / 'out/report.html').exists()
    assert not processes_left()


@pytest.mark.parametrize(('words', 'said'), [
    (['-p', 'modle:=crowd'], "there is no parameter 'modle' (did you mean 'model'?)"),
    (['-p', 'model:=crwd'], "parameter 'model' is 'crwd' (did you mean 'crowd'?)"),
    (['-p', 'model'], 'expected NAME:=VALUE'),
    (['-p', 'image_transport:=raw'], 'the replay sets image_topics, image_transport, autostart itself'),
    (['--params-file', 'nowhere.yaml'], 'nowhere.yaml: no such file'),
    (['--truth', 'nowhere.json'], 'nowhere.json: no such file'),
    (['--node', 'tar_vis', '-p', 'model:=crowd'], '--node drives a node that runs already'),
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
    jobs, images, bad = plan(command_line().parse_args([*bags, '--out', str(tmp_path / 'out')]))
    assert [Path(job.folder).name for job in jobs] == ['00001', '00001_2']
    assert images == 2 * FRAMES and list(bad) == bags[2:]


def test_help_tells_the_defaults():
    done = subprocess.run([sys.executable, '-m', 'tar_vis_ros.replay.command', '--help'], capture_output=True,
                          text=True, timeout=PATIENCE_S)
    assert done.returncode == 0
    assert all(text in done.stdout for text in ('(default: lossless)', '(default: replay)', '(default: 60)'))


def test_commands_of_the_tutorial_are_accepted():
    text = (ROOT / 'docs/tutorials/evaluate_a_bag.md').read_text()
    lines = [line.partition('#')[0].split() for line in text.splitlines() if line.startswith('tar-vis-')]
    parsers = {'tar-vis-replay': command_line(), 'tar-vis-bag': bag_command_line()}
    tried = [parsers[line[0]].parse_args(line[1:]) for line in lines if line[0] in parsers]
    assert len(tried) >= 7
    assert all(f'`{name}`' in text for name in FILES)
