"""What a replay says of answers: which truth belongs to a bag, how good each frame is, the figures of several bags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
from tubes import SIZE, perfect, tube, video
from video_files import write_videos

from tar_vis_core.errors import DataError
from tar_vis_core.evaluation.results_json import categories_of, write_results
from tar_vis_core.evaluation.tubes import TubePrediction
from tar_vis_ros.bags.maker import BagOptions, labelled_videos, write_images, write_labelled
from tar_vis_ros.bags.reader import ImageBag
from tar_vis_ros.replay.figures import accuracy, figures, merge_results
from tar_vis_ros.replay.outcome import BagOutcome, ImageOutcome
from tar_vis_ros.replay.pictures import choose_images
from tar_vis_ros.replay.scoring import frame_quality, worst_images
from tar_vis_ros.replay.truth import Truth, find_truth, only_frames


@pytest.fixture(scope='module')
def bags(tmp_path_factory) -> Path:
    """Bags 00001 to 00003 of six images with their truth, and the file that they come from (train.json)."""
    folder = tmp_path_factory.mktemp('bags')
    source = write_videos(folder)
    assert len(list(write_labelled(source, labelled_videos(source, ()), folder, BagOptions()))) == 3
    return folder


def truth_of(path: Path, given: Path | None = None, alone: bool = True) -> Truth | None:
    with ImageBag(path) as bag:
        return find_truth(bag, given, alone)


def test_truth_beside_a_bag_is_found_by_stamp(bags):
    truth = truth_of(bags / '00002')
    assert (truth.record.id, truth.record.name, truth.path) == (2, '00002', bags / '00002.truth.json')
    assert [truth.frame(99, stamp) for stamp in truth.record.stamps_ns] == list(range(6))
    assert truth.frame(0, 123) == -1        # an image that nobody labelled
    assert truth.categories == categories_of(bags / 'train.json')


def test_truth_without_stamps_is_found_by_order(bags):
    truth = truth_of(bags / '00003', bags / 'train.json', alone=False)
    assert truth.record.id == 3
    assert [truth.frame(index, 123) for index in range(6)] == list(range(6))


def test_a_bag_without_truth_has_none(tmp_path):
    write_images(tmp_path / 'bag', [np.zeros((8, 8, 3), np.uint8)], BagOptions())
    assert truth_of(tmp_path / 'bag') is None


def test_truth_that_does_not_fit_is_refused(bags, tmp_path):
    pixels = [np.zeros((64, 96, 3), np.uint8)] * 5
    write_images(tmp_path / 'other', pixels, BagOptions())
    write_images(tmp_path / '00001', pixels, BagOptions())
    with pytest.raises(DataError, match=r'no video named other in it for .*other; it has 00001, 00002, 00003'):
        truth_of(tmp_path / 'other', bags / 'train.json')
    with pytest.raises(DataError, match=r'00001 has 6 frames, .*00001 5 images; expected as many, or a list of stamps'):
        truth_of(tmp_path / '00001', bags / 'train.json')
    content = json.loads((bags / 'train.json').read_text())
    content['videos'] = content['videos'][:1]
    content['annotations'] = []
    (tmp_path / 'one.json').write_text(json.dumps(content))
    write_images(tmp_path / 'six', [*pixels, pixels[0]], BagOptions())
    assert truth_of(tmp_path / 'six', tmp_path / 'one.json').record.name == '00001'    # it can mean no other
    with pytest.raises(DataError, match='no video named six'):
        truth_of(tmp_path / 'six', tmp_path / 'one.json', alone=False)


def test_frames_that_were_not_played_are_cut_away():
    record = replace(video(7, ('cat', tube(1, 2, None, None)), ('dog', tube(None, None, 5, 6))), stamps_ns=(1, 2, 3, 4))
    short, tubes = only_frames(record, perfect([record]), [0, 1])
    assert (len(short.paths), [track.category for track in short.tracks]) == (2, ['cat'])
    assert [len(t.rles) for t in tubes] == [2, 2]


def predicted(category: str, *places: int | None) -> TubePrediction:
    return TubePrediction(1, category, 0.9, tube(*places))


def test_quality_of_a_frame_counts_what_is_missed_and_made_up():
    record = video(1, ('cat', tube(0, 0, 0, 0, None)), ('cat', tube(30, 30, 30, None, None)))
    tubes = [predicted('cat', 0, 0, 5, 0, None), predicted('cat', 30, None, 30, 50, None)]
    # in the third frame one mask of two lies half aside, IoU 1/3: one pair matches, two masks have no partner
    assert frame_quality(record, tubes) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 2, 1])
    assert frame_quality(record, [predicted('dog', 0, 0, 0, 0, None)]) == pytest.approx([0, 0, 0, 0, 1])
    shifted = [predicted('cat', 2, 2, 2, 2, None)]       # IoU 8/12
    assert frame_quality(record, shifted)[3] == pytest.approx(2 / 3)


def test_quality_does_not_charge_what_may_be_real():
    record = video(1, ('cat', tube(0, 0)), exhaustive=False)
    assert frame_quality(record, [predicted('cat', 0, 30)]) == pytest.approx([1, 0])
    only_persons = video(1, ('person', tube(0, 0)), annotated='person')
    assert frame_quality(only_persons, [predicted('person', 0, 0), predicted('cat', 30, 30)]) == pytest.approx([1, 1])


def outcome(name: str, records=(), **changes) -> BagOutcome:
    images = [ImageOutcome(i, i, i, round_trip_ms=10.0 + i, latency_ms=9.0 - i, step_ms=5.0,
                          executed=[True, i > 0, False], frame=i, quality=[0.9, 0.2, 0.5, 0.5][i]) for i in range(3)]
    images.append(ImageOutcome(3, 3, 3, sent=2, frame=3, quality=0.0))      # no answer
    images[2].dropped, images[1].reset_reason = 4, 'gap of 3.000 s'
    made = BagOutcome(name, f'/somewhere/{name}', '/image', 'mcap', {}, 4, [SIZE[1], SIZE[0]], frames=images)
    return replace(made, **changes)


def test_the_worst_images_come_first_and_were_answered():
    assert worst_images(outcome('a', truth='t.json')) == [1, 2, 0]
    assert worst_images(outcome('a')) == [0, 1, 2]          # by latency


@pytest.mark.parametrize(('most', 'chosen'), [(9, {0, 1, 2, 3}), (4, {0, 1, 2, 3}), (3, {0, 1, 2}), (1, {1}),
                                              (0, set())])
def test_pictures_are_of_all_images_or_of_the_worst_and_other_answered_ones(most, chosen):
    assert choose_images(outcome('a', truth='t.json', worst=[1]), most) == chosen


def test_figures_count_every_image_once():
    f = figures([outcome('a'), outcome('b')], None)
    assert (f.images, f.answered, f.dropped, f.passed_over, f.sent_again, f.resets) == (8, 6, 2, 8, 2, 2)
    assert (f.layers, f.executed_layers) == (3, pytest.approx(5 / 3, abs=1e-3))
    assert f.executed_share == pytest.approx([1, 2 / 3, 0], abs=1e-3)
    assert f.latency_ms == {'p50': 8.0, 'p95': 9.0, 'p99': 9.0}
    assert f.round_trip_ms['p50'] == 11.0
    assert f.late_ms == {'p50': None, 'p95': None, 'p99': None}
    empty = figures([outcome('a', frames=[])], None)
    assert (empty.images, empty.executed_layers, empty.latency_ms['p50']) == (0, None, None)


@pytest.fixture
def judged(bags, tmp_path) -> dict[Path, BagOutcome]:
    """Outcomes of two bags; the first was answered perfectly as far as it was played, the second not at all."""
    made = {}
    for name, good in (('00001', True), ('00002', False)):
        truth, folder = truth_of(bags / name), tmp_path / name
        folder.mkdir()
        write_results(folder / 'results.json', perfect([truth.record]) if good else [], truth.categories)
        made[folder] = outcome(name, truth=str(truth.path), video_id=truth.record.id, categories=truth.categories)
    return made


def test_accuracy_of_several_bags_is_that_of_all_their_objects(judged):
    first, second = judged.items()
    alone = accuracy(dict([first]))
    assert (alone.ap, alone.ap50, alone.hota, alone.switches, alone.videos, alone.frames) == (1, 1, 1, 0, 1, 4)
    assert accuracy(dict([second])).ap == 0
    both = accuracy(judged)
    assert (both.videos, both.frames) == (2, 8)
    assert both.objects == alone.objects + accuracy(dict([second])).objects
    assert 0 < both.ap < 1
    assert accuracy({Path('x'): outcome('x')}) is None


def test_results_of_several_bags_are_one_file_for_the_data_set(judged, tmp_path):
    merge_results(tmp_path / 'results.json', judged)
    rows = json.loads((tmp_path / 'results.json').read_text())
    assert rows and {row['video_id'] for row in rows} == {1}
    assert {len(row['segmentations']) for row in rows} == {6}     # all frames of the video, played or not
    twins = {path: replace(one, video_id=1, truth='') for path, one in judged.items()}
    second = list(twins)[1]
    twins[second].frames = twins[second].frames[:3]
    names = {1: 'person'}
    for path, one in twins.items():
        one.categories = names
        write_results(path / 'results.json', [TubePrediction(1, 'person', 0.5, tube(*[3] * len(one.frames)))], names)
    merge_results(tmp_path / 'results.json', twins)
    rows = json.loads((tmp_path / 'results.json').read_text())
    assert [(row['video_id'], len(row['segmentations'])) for row in rows] == [(1, 4), (2, 3)]


def test_an_outcome_survives_its_file(tmp_path):
    before = outcome('a', categories={3: 'cat'}, parameters={'model': 'nano', 'weights': ''}, worst=[2])
    before.write(tmp_path)
    assert BagOutcome.read(tmp_path) == before
