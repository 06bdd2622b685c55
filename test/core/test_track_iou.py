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
from tar_vis_core.evaluation.track_iou import TrackIoU, as_table, track_ious
from tar_vis_core.evaluation.tubes import TubePrediction

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


def tube(shown=lambda t: True, category='person', score=0.5, masks=TRUTH):
    """The masks in the frames that ``shown`` names."""
    return TubePrediction(1, category, score, [rle_of(m) if m is not None and shown(t) else None
                                               for t, m in enumerate(masks)])


def followed(path: Path, *tubes: TubePrediction) -> TrackIoU:
    return track_ious(load_ytvis(path), tubes)[0]


def test_an_exact_track_scores_one(tmp_path):
    path = write_video(tmp_path)
    record = load_ytvis(path)[0]
    assert record.name == 'walk' and not record.exhaustive and record.tracks[0].mask(2) is None
    result = followed(path, tube())
    assert (result.frames, result.track, result.named, result.found, result.frame) == (5, 1, 1, 1, 1)
    assert result.identities == 1
    assert as_table([result]).splitlines()[-1].split() == ['mean', '100.0', '100.0', '100.0', '100.0']


def test_a_switch_and_a_gap_cost_what_they_are_worth(tmp_path):
    path = write_video(tmp_path)
    switched = followed(path, tube(lambda t: t < 4), tube(lambda t: t >= 4))
    assert switched.track == pytest.approx(3 / 5) and switched.frame == 1 and switched.identities == 2
    absent = followed(path, tube(bool))
    assert absent.track == absent.frame == pytest.approx(4 / 5)
    nothing = followed(path)
    assert nothing.track == nothing.named == nothing.found == nothing.frame == nothing.identities == 0
    empty = followed(path, tube(lambda t: False))
    assert empty.track == empty.frame == empty.identities == 0


def test_names_and_scores_choose_where_the_truth_does_not(tmp_path):
    path = write_video(tmp_path)
    beside = [ellipse(100, 40, 10, 10)] * FRAMES
    # the exact track has another class; of its own class one is half there and surer, one lies beside and lasts
    result = followed(path, tube(category='dog'), tube(lambda t: t < 3, score=0.9), tube(masks=beside, score=0.4))
    assert (result.track, result.named, result.found) == (1, pytest.approx(2 / 5), 0)
    result = followed(path, tube(category='dog'), tube(lambda t: t < 3, score=0.9), tube(masks=beside, score=0.2))
    assert result.found == pytest.approx(2 / 5)
    assert followed(path, tube(category='dog')).named == 0


def test_a_track_of_another_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f'its video 1 has {FRAMES}'):
        followed(write_video(tmp_path), tube(masks=TRUTH[1:]))


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
    with pytest.raises(DataError, match=r'1 of 6 pictures are missing, the first is .*3\.jpg'):
        load_ytvis(path)
    path.write_text('{}')
    with pytest.raises(DataError, match='not a YouTube-VIS file'):
        load_ytvis(path)
