"""``tar-vis-replay`` with real nodes: what it answers, writes and shows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
import torch
from replay_process import (
    CLASSES,
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

from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.evaluation.results_json import categories_of, read_results
from tar_vis_core.evaluation.videos import score_row
from tar_vis_core.models.presets import PRESETS
from tar_vis_ros.bags.reader import header_stamp_ns, read_topics
from tar_vis_ros.conversions.messages import decode_instances
from tar_vis_ros.node.settings import Settings, load_segmenter


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp('data'))


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
        row = score_row('', record, tubes, [], 0, CLASSES)
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
        assert bag['figures']['executed_layers'] <= bag['figures']['layers'] == PRESETS['nano'].decoder_layers
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
    assert frames['worst'][0] == int(np.argmin([image['quality'] for image in frames['frames']]))
    shown = [int(image) for image in re.findall(r'data-image="(\d+)"', dom)]
    assert shown == frames['worst']                                                 # the worst first
    assert f'image {frames["worst"][0]} of {FRAMES}' in text_of(dom, 'shown')       # and the first of them is open


@in_browser
def test_the_address_and_the_slider_choose_an_image(lossless, tmp_path):
    dom = opened(lossless / 'report.html', tmp_path, '#bag=1&image=4')
    assert '00002' in text_of(dom, 'frames-title') and f'image 4 of {FRAMES}' in text_of(dom, 'shown')
    image = json.loads((lossless / '00002/frames.json').read_text())['frames'][4]
    assert f'{image["stamp_ns"] // 10**9}.{image["stamp_ns"] % 10**9:09d} s' in text_of(dom, 'facts')
    assert f'{image["quality"]:.3f}' in text_of(dom, 'facts')
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
