"""Replays beside each other: equal answers have equal SHA-256, what differs is named, differences have intervals."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
from replay_process import FRAMES, PARAMETERS, Command, environment, report_of, write_data
from test_messages import frame, instance, random_masks
from tubes import perfect, tube, video

from tar_vis_core.errors import DataError
from tar_vis_core.evaluation.results_json import write_results
from tar_vis_core.evaluation.tubes import TubePrediction
from tar_vis_core.instances import StageTimes
from tar_vis_ros.replay import comparison
from tar_vis_ros.replay.command import main
from tar_vis_ros.replay.comparison import compare
from tar_vis_ros.replay.figures import tubes_when_published
from tar_vis_ros.replay.outcome import BagOutcome, ImageOutcome
from tar_vis_ros.replay.proof import answer_sha256, answers_sha256, differences, read_reference


def test_everything_but_times_and_the_first_epoch_counts():
    masks = random_masks(4)
    result = frame([instance(mask, track_id=n, score=n / 10) for n, mask in enumerate(masks, 1)])
    first, *others = result.instances
    same = answer_sha256(result, 2)
    assert same == answer_sha256(replace(result, times=StageTimes(9, 9, 9, 9, 9, 9), frame_mse=3.0), 2)
    assert same == answer_sha256(replace(result, track_epoch=1_795_000_000), 1_795_000_000)
    flipped = first.runs.copy()
    flipped[:2] += np.array([1, -1], np.int64).astype(np.uint32)
    for name, value in {'track_id': 9, 'age': 4, 'class_id': 1, 'class_name': 'cat', 'runs': flipped,
                        'score': float(np.nextafter(first.score, 1))}.items():
        assert same != answer_sha256(replace(result, instances=[replace(first, **{name: value}), *others]), 2), name
    assert same != answer_sha256(replace(result, instances=others), 2)
    assert same != answer_sha256(result, 1) and same != answer_sha256(replace(result, reset_reason='x'), 2)
    assert same != answer_sha256(replace(result, routing=replace(result.routing, executed=(True,) * 3)), 2)


def images(*answers: str, **values) -> list[ImageOutcome]:
    return [ImageOutcome(n, n, n, answer=answer, round_trip_ms=1.0 if answer else None, frame=n, **values)
            for n, answer in enumerate(answers)]


def test_what_differs_is_named(tmp_path):
    made = images('a', 'b', 'c')
    before = BagOutcome('street', '', '', '', {'x': '1'}, 3, parameters={'routing': 'full'}, frames=made,
                        answers_sha256=answers_sha256(made))
    (tmp_path / 'street').mkdir()
    before.write(tmp_path / 'street')
    (tmp_path / 'report.json').write_text(json.dumps({'bags': [{
        'name': 'street', 'sha256': before.sha256, 'parameters': before.parameters,
        'answers_sha256': before.answers_sha256}]}))
    reference = read_reference(tmp_path / 'report.json')
    assert not list(differences(reference, tmp_path, [before]))
    changed = images('a', 'x', 'c')
    after = replace(before, frames=changed, answers_sha256=answers_sha256(changed), parameters={'routing': 'fixed'},
                    sha256={'x': '2'})
    line, = differences(reference, tmp_path, [after])
    for words in ('street: the answers differ', 'first at image 1', 'another', "routing was 'full' and is 'fixed'"):
        assert words in line
    assert [*differences(reference, tmp_path, [])] == ['street: in the reference, and not replayed']
    assert 'not in the reference' in next(differences(reference, tmp_path, [replace(before, name='other')]))
    assert answers_sha256(images('a', '')) != answers_sha256(images('a')), 'an image without an answer counts'
    (tmp_path / 'report.json').write_text('{"bags": [{"name": "street"}]}')
    with pytest.raises(DataError, match='answers_sha256'):
        read_reference(tmp_path / 'report.json')


@pytest.mark.parametrize(('words', 'said'), [
    ([], 'expected the bags'), (['bag', '--compare', 'a', 'b'], 'expected the bags'),
    (['bag', '--check', 'r.json', '--mode', 'realtime'], 'is for --mode lossless'),
    (['bag', '--check', 'replay/r.json'], 'written over'),
    (['bag', '--check', 'nothing/report.json'], 'nothing/report.json: not a report'),
    (['--compare', 'a', 'b'], 'a: not the --out of a tar-vis-replay'),
])
def test_arguments_that_do_not_fit(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_streaming_takes_what_was_known_when_each_image_was_published():
    """Images every 10 ms; the first is answered after 12 ms, the second never, the third after 1 ms."""
    played = [replace(image, published_ms=10.0 * image.index) for image in images('a', '', 'c', 'd')]
    for image, took in zip(played, (12.0, None, 1.0, 25.0), strict=True):
        image.round_trip_ms = took
    seen = TubePrediction(1, 'thing', 0.5, tube(1, 2, 3, 4))
    known, = tubes_when_published(played, [seen])
    assert known.rles == [None, None, seen.rles[0], seen.rles[2]]
    assert known.score == seen.score
    assert tubes_when_published([replace(image, published_ms=None) for image in played], [seen]) is None, 'lossless'
    assert tubes_when_published([replace(image, frame=-1) for image in played], [seen]) is None, 'images without labels'


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """Two replays of six bags. The second misses one object of each, and takes 2 ms longer."""
    records = [video(n, ('thing', tube(*[3] * 25)), ('thing', tube(*[30] * 25))) for n in range(1, 7)]
    truth = tmp_path / 'truth.json'
    truth.write_text(json.dumps({'nothing': 'is read of it'}))
    for side, name in enumerate(('a', 'b')):
        for record in records:
            folder = tmp_path / name / str(record.id)
            folder.mkdir(parents=True)
            found = perfect([record])[side:]
            write_results(folder / 'results.json', found, {1: 'thing'})
            made = [replace(image, latency_ms=10.0 + 2 * side + image.index % 3, executed=[True] * (9 - side),
                            quality=1.0 - side / 2) for image in images(*['x'] * 25)]
            BagOutcome(str(record.id), '', '', '', {'bag': str(record.id)}, 25, truth=str(truth),
                       video_id=record.id, categories={1: 'thing'}, frames=made).write(folder)
        (tmp_path / name / 'report.json').write_text(json.dumps({'bags': [{'name': str(r.id)} for r in records]}))
    by_id = {record.id: record for record in records}
    return tmp_path / 'a', tmp_path / 'b', by_id


def test_differences_are_paired_and_have_intervals(two, monkeypatch, capsys):
    a, b, records = two
    monkeypatch.setattr('tar_vis_ros.replay.figures.load_ytvis', lambda path, pictures: list(records.values()))
    found = {difference.name: difference for difference in compare(a, b)}
    ap = found['AP']
    assert ap.a == 100 and ap.b < 60 and ap.low <= ap.b - ap.a <= ap.high < 0 and ap.units == '6 bags'
    latency = found['latency, ms']
    assert latency.b - latency.a == pytest.approx(2) and (latency.low, latency.high) == pytest.approx((2, 2))
    assert latency.a == pytest.approx(11, abs=0.1) and '150 images' in latency.units
    assert found['quality'].b == 50 and found['executed layers'].b == 8
    assert 'model step, ms' not in found, 'nobody knows it'
    assert main(['--compare', str(a), str(b)]) == 0
    assert 'latency, ms' in capsys.readouterr().out
    other = BagOutcome.read(b / '3')
    replace(other, sha256={'bag': 'another'}).write(b / '3')
    with pytest.raises(DataError, match='3 is not the same bag'):
        compare(a, b)


def test_one_bag_gives_no_interval_of_ap(two, monkeypatch):
    a, b, records = two
    for folder in (a, b):
        (folder / 'report.json').write_text('{"bags": [{"name": "2"}]}')
    monkeypatch.setattr('tar_vis_ros.replay.figures.load_ytvis', lambda path, pictures: list(records.values()))
    ap, *others = compare(a, b)
    assert np.isnan(ap.low) and ' - ' in str(ap)
    assert not any(np.isnan(difference.low) for difference in others), 'blocks of its images'
    assert comparison.BLOCK < 25


def test_two_replays_in_two_processes_give_the_same_answers(tmp_path):
    data = write_data(tmp_path)
    bag, env = data / 'raw/00001', environment(tmp_path)
    code, _, error = Command(env, bag, '--out', tmp_path / 'first', *PARAMETERS).wait()
    assert (code, error) == (0, '')
    made, = report_of(tmp_path / 'first')['bags']
    assert len(made['answers_sha256']) == 64
    code, out, error = Command(env, bag, '--out', tmp_path / 'again', '--check', tmp_path / 'first/report.json',
                               *PARAMETERS).wait()
    assert code == 0 and 'answers are those of' in out, out + error
    again, = report_of(tmp_path / 'again')['bags']
    assert again['answers_sha256'] == made['answers_sha256'] and again['figures']['answered'] == FRAMES
    code, out, error = Command(env, bag, '--out', tmp_path / 'other', '--check', tmp_path / 'first/report.json',
                               *PARAMETERS, '-p', 'routing:=fixed').wait()
    assert code == 1, out
    assert re.search(r"00001: the answers differ \(first at image \d; routing was 'auto' and is 'fixed'\)", error)
    code, out, _ = Command(env, '--compare', tmp_path / 'first', tmp_path / 'other').wait()
    assert code == 0 and 'instances' in out and 'AP' in out
