"""Following labelled objects through videos: the score of exact, switching and absent tracks; faulty files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH, ellipse, rle_of

from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.errors import DataError
from tar_vis_core.evaluation.track_iou import as_table, score_tracks

FRAMES = 6
TRUTH = [ellipse(30 + 8 * t, 40, 18, 25) for t in range(FRAMES)]
TRUTH[2] = None


def write_video(folder: Path, **changes) -> Path:
    (folder / 'JPEGImages' / 'walk').mkdir(parents=True)
    names = [f'walk/{t}.jpg' for t in range(FRAMES)]
    for name in names:
        cv2.imwrite(str(folder / 'JPEGImages' / name), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    annotation = {'id': 7, 'video_id': 1, 'category_id': 1,
                  'segmentations': [None if m is None else rle_of(m) for m in TRUTH], **changes}
    content = {'categories': [{'id': 1, 'name': 'person'}], 'annotations': [annotation],
               'videos': [{'id': 1, 'width': WIDTH, 'height': HEIGHT, 'file_names': names, 'exhaustive': 0}]}
    (folder / 'videos.json').write_text(json.dumps(content))
    return folder / 'videos.json'


def answer(identity):
    """A tracker that gives the exact mask under the identity that ``identity(frame)`` names, or nothing."""
    def follow(frames):
        for t, frame in enumerate(frames):
            assert frame.shape == (HEIGHT, WIDTH, 3)
            name = identity(t)
            yield {} if TRUTH[t] is None or name is None else {name: TRUTH[t], 99: np.zeros((HEIGHT, WIDTH), bool)}
    return follow


def test_an_exact_track_scores_one(tmp_path):
    path = write_video(tmp_path)
    record = load_ytvis(path)[0]
    assert record.name == 'walk' and not record.exhaustive and record.tracks[0].mask(2) is None
    result = score_tracks(answer(lambda t: 3), path, progress=False)[0]
    assert (result.frames, result.best_track, result.best_frame, result.identities) == (5, 1.0, 1.0, 1)
    assert as_table([result]).splitlines()[-1].split() == ['mean', '100.0', '100.0']


def test_a_switch_and_a_gap_cost_what_they_are_worth(tmp_path):
    path = write_video(tmp_path)
    switched = score_tracks(answer(lambda t: 3 if t < 4 else 8), path, progress=False)[0]
    assert switched.best_track == pytest.approx(3 / 5) and switched.best_frame == 1.0 and switched.identities == 2
    absent = score_tracks(answer(lambda t: 3 if t else None), path, progress=False)[0]
    assert absent.best_track == absent.best_frame == pytest.approx(4 / 5)
    nothing = score_tracks(answer(lambda t: None), path, progress=False)[0]
    assert nothing.best_track == nothing.best_frame == nothing.identities == 0


def test_an_answer_too_few_or_too_many_is_refused(tmp_path):
    path = write_video(tmp_path)
    for count in (FRAMES - 1, FRAMES + 3):
        with pytest.raises(ValueError, match=f'for {FRAMES} frames'):
            score_tracks(lambda frames, n=count: [{}] * n, path, progress=False)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'video_id': 2}, 'annotation 7 does not fit'), ({'category_id': 2}, 'annotation 7 does not fit'),
    ({'segmentations': [None]}, 'has 1 frames'),
    ({'segmentations': [{'size': [2, 2], 'counts': [4]}] + [None] * 5}, 'annotation 7: bad segmentation')])
def test_a_faulty_annotation_is_named(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        load_ytvis(write_video(tmp_path, **changes))


def test_faulty_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r'nowhere\.json'):
        load_ytvis(tmp_path / 'nowhere.json')
    path = write_video(tmp_path)
    frame = tmp_path / 'JPEGImages' / 'walk' / '3.jpg'
    cv2.imwrite(str(frame), np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(DataError, match=r'3\.jpg: the image is 9x8'):
        list(load_ytvis(path)[0].frames())
    frame.write_bytes(b'')
    with pytest.raises(DataError, match=r'3\.jpg: not a readable image'):
        list(load_ytvis(path)[0].frames())
    frame.unlink()
    with pytest.raises(DataError, match=r'video 1: .*3\.jpg is missing'):
        load_ytvis(path)
    path.write_text('{}')
    with pytest.raises(DataError, match='not a YouTube-VIS file'):
        load_ytvis(path)
