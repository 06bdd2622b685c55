"""Files of predictions: what is written is read back, and what a server would refuse is named."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from tubes import SIZE, perfect, rle, tube, video

from tar_vis_core.errors import DataError
from tar_vis_core.evaluation.results_json import categories_of, read_results, write_results
from tar_vis_core.evaluation.tubes import TubePrediction, frame_areas

RECORDS = [video(7, ('cat', tube(2, None, 9)), ('dog', tube(20, 20, 20)))]
CATEGORIES = {3: 'cat', 12: 'dog'}


@pytest.mark.parametrize('name', ['results.json', 'results.zip'])
def test_what_is_written_is_read_back(tmp_path, name):
    write_results(tmp_path / name, perfect(RECORDS, 0.25), CATEGORIES)
    tubes = read_results(tmp_path / name, RECORDS, CATEGORIES)
    assert [(t.video_id, t.category, t.score) for t in tubes] == [(7, 'cat', 0.25), (7, 'dog', 0.25)]
    before = [t.rles for t in RECORDS[0].tracks]
    assert np.array_equal(frame_areas([t.rles for t in tubes], 3), frame_areas(before, 3))
    assert [t.rles[1] is None for t in tubes] == [True, False]


def test_a_server_gets_the_data_sets_ids_text_and_null(tmp_path):
    empty = TubePrediction(7, 'dog', np.float32(0.5), [rle(np.zeros(SIZE)), None, tube(1)[0]])
    write_results(tmp_path / 'up.zip', [empty], CATEGORIES)
    with zipfile.ZipFile(tmp_path / 'up.zip') as archive:
        assert archive.namelist() == ['results.json']
        row = json.loads(archive.read('results.json'))[0]
    assert row.keys() == {'video_id', 'score', 'category_id', 'segmentations'}
    assert (row['video_id'], row['score'], row['category_id']) == (7, 0.5, 12)
    assert row['segmentations'][:2] == [None, None]
    assert row['segmentations'][2]['size'] == list(SIZE) and isinstance(row['segmentations'][2]['counts'], str)
    with pytest.raises(ValueError, match="category 'cow', the data set has cat, dog"):
        write_results(tmp_path / 'x.json', [TubePrediction(7, 'cow', 1, [None] * 3)], CATEGORIES)


ROW = {'video_id': 7, 'score': 0.5, 'category_id': 3, 'segmentations': [None] * 3}


@pytest.mark.parametrize(('row', 'words'), [
    ({'video_id': 8}, 'video 8 is not in the data'), ({'category_id': 1}, 'category 1 is not in the data, only 12, 3'),
    ({'video_id': [7]}, r'video \[7\] is not in the data'), ({'category_id': None}, 'category None is not in the data'),
    ({'score': float('nan')}, 'score is nan'), ({'score': '1'}, "score is '1'"), ({'score': None}, 'score is None'),
    ({'segmentations': [None] * 2}, 'a list of 3, one for each frame of video 7, got 2'),
    ({'segmentations': None}, 'got NoneType'),
    ({'segmentations': [None, [[0, 0, 1, 0, 1, 1]], None]}, 'frame 1: expected run lengths'),
    ({'segmentations': [{'size': [40, 61], 'counts': ''}, None, None]}, 'frame 0: bad .*its size is .40, 61'),
    ({'segmentations': [{'size': [40, 60], 'counts': '11'}, None, None]}, 'frame 0: bad run lengths: .*add up to 2')])
def test_a_faulty_prediction_is_named(tmp_path, row, words):
    path = tmp_path / 'results.json'
    path.write_text(json.dumps([ROW, {**ROW, **row}]))
    with pytest.raises(DataError, match=rf'results\.json: prediction 1: .*{words}'):
        read_results(path, RECORDS, CATEGORIES)


@pytest.mark.parametrize('form', [str, float])
def test_ids_as_text_are_the_numbers_that_they_say(tmp_path, form):
    path = tmp_path / 'results.json'
    path.write_text(json.dumps([{**ROW, 'video_id': form(7), 'category_id': form(12)}]))
    tube, = read_results(path, RECORDS, CATEGORIES)
    assert (tube.video_id, tube.category) == (7, 'dog')


def test_a_faulty_file_is_named(tmp_path):
    path = tmp_path / 'results.json'
    with pytest.raises(DataError, match=r'results\.json: not a file of predictions'):
        read_results(path, RECORDS, CATEGORIES)
    for text, words in (('{', 'not a file of predictions'), ('{}', 'expected a list of predictions, got dict'),
                        ('[3]', 'prediction 0: expected an object .* got int'),
                        ('[{"score": 1}]', 'without category_id, segmentations, video_id')):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_results(path, RECORDS, CATEGORIES)
    with zipfile.ZipFile(tmp_path / 'wrong.zip', 'w') as archive:
        archive.writestr('other.json', '[]')
    with pytest.raises(DataError, match=r'wrong\.zip: .*a zip file with results\.json'):
        read_results(tmp_path / 'wrong.zip', RECORDS, CATEGORIES)


def test_categories_come_from_the_data_sets_file(tmp_path):
    path = tmp_path / 'data.json'
    path.write_text(json.dumps({'categories': [{'id': 3, 'name': 'cat'}]}))
    assert categories_of(path) == {3: 'cat'}
    path.write_text('{}')
    with pytest.raises(DataError, match=r"data\.json: .*'categories' is missing"):
        categories_of(path)
