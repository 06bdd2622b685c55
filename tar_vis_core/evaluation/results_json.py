"""Predictions on disk as the YouTube-VIS and OVIS servers want them.

A list of ``{video_id, score, category_id, segmentations}``: the ids are those of the data set's own JSON (categories
from 1), ``segmentations`` one compressed run length or null a frame. A server takes it zipped as ``results.json``.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pycocotools import mask as coco_mask

from tar_vis_core.data.label_fields import as_id, category_names, read_labels
from tar_vis_core.data.rle import to_rle
from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.errors import DataError
from tar_vis_core.evaluation.tubes import Rles, TubePrediction
from tar_vis_core.io.json_files import parse_json, read_json
from tar_vis_core.io.whole_files import replacing

MEMBER = 'results.json'     # the name inside a zip file
MAX_MEMBER = 1 << 30        # bytes, unpacked
KEYS = {'video_id', 'score', 'category_id', 'segmentations'}


def categories_of(json_path: str | Path) -> dict[int, str]:
    """Return the names of a data set's categories by id. Raise DataError if the file has none."""
    path = Path(json_path)
    return category_names(path, read_labels(path), 'YouTube-VIS')


def write_results(path: str | Path, predictions: Sequence[TubePrediction], categories: Mapping[int, str]) -> None:
    """Write predictions. A ``path`` that ends in .zip becomes the archive that the servers take.

    Raise ValueError for a category that the data set does not have.
    """
    ids = {name: number for number, name in categories.items()}
    path = Path(path)
    rows = []
    for tube in predictions:
        if tube.category not in ids:
            raise ValueError(f'a prediction is of category {tube.category!r}, the data set has {", ".join(ids)}')
        rows.append({'video_id': tube.video_id, 'score': float(tube.score), 'category_id': ids[tube.category],
                     'segmentations': [_as_text(rle) for rle in tube.rles]})
    text = json.dumps(rows)
    with replacing(path) as half:
        if path.suffix == '.zip':
            with zipfile.ZipFile(half, 'w', zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(MEMBER, text)
        else:
            half.write_text(text)


def _as_text(rle: dict | None) -> dict | None:
    if rle is None or not coco_mask.area(rle):
        return None
    counts = rle['counts']
    return {'size': list(rle['size']), 'counts': counts.decode() if isinstance(counts, bytes) else counts}


def read_results(path: str | Path, records: Sequence[VideoRecord],
                 categories: Mapping[int, str]) -> list[TubePrediction]:
    """Return the predictions for the videos of a data set, checked. Raise DataError that names the wrong entry."""
    path, videos = Path(path), {record.id: record for record in records}
    try:
        rows = parse_json(_member(path), f'{path}: {MEMBER}') if zipfile.is_zipfile(path) else read_json(path)
    except (OSError, DataError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f'{path}: not a file of predictions ({error}); expected a JSON list, or a zip file with '
                        f'{MEMBER}') from error
    if not isinstance(rows, list):
        raise DataError(f'{path}: expected a list of predictions, got {type(rows).__name__}')
    tubes = []
    for number, row in enumerate(rows):
        try:
            tubes.append(_prediction(row, videos, categories))
        except Exception as error:      # pycocotools raises bare Exception, too
            raise DataError(f'{path}: prediction {number}: {error}') from error
    return tubes


def _member(path: Path) -> bytes:
    """Return the JSON in a zip file. A few bytes that deflate to an endless file are refused."""
    with zipfile.ZipFile(path) as archive:
        if (size := archive.getinfo(MEMBER).file_size) > MAX_MEMBER:
            raise ValueError(f'{MEMBER} says that it has {size} bytes, at most {MAX_MEMBER} are read')
        return archive.read(MEMBER)


def _prediction(row: dict, videos: Mapping[int, VideoRecord], categories: Mapping[int, str]) -> TubePrediction:
    if not isinstance(row, dict) or (missing := KEYS - row.keys()):
        raise ValueError(f'expected an object with {", ".join(sorted(KEYS))}' + (
            f', without {", ".join(sorted(missing))}' if isinstance(row, dict) else f', got {type(row).__name__}'))
    video_id, category_id = as_id(row['video_id']), as_id(row['category_id'])
    if video_id not in videos:
        raise ValueError(f'video {row["video_id"]!r} is not in the data')
    if category_id not in categories:
        raise ValueError(f'category {row["category_id"]!r} is not in the data, only '
                         f'{", ".join(sorted(map(str, categories)))}')
    score = row['score']
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f'score is {score!r}, expected a finite number')
    record = videos[video_id]
    return TubePrediction(record.id, categories[category_id], float(score),
                          _masks(row['segmentations'], record))


def _masks(segmentations: list, record: VideoRecord) -> Rles:
    frames = len(record.paths)
    if not isinstance(segmentations, list) or len(segmentations) != frames:
        count = f'{len(segmentations)}' if isinstance(segmentations, list) else type(segmentations).__name__
        raise ValueError(f'segmentations: expected a list of {frames}, one for each frame of video {record.id}, '
                         f'got {count}')
    rles: list[dict | None] = []
    for t, rle in enumerate(segmentations):
        if rle is not None and (not isinstance(rle, dict) or not {'size', 'counts'} <= rle.keys()):
            raise ValueError(f'frame {t}: expected run lengths (size, counts) or null, got {str(rle)[:40]}')
        try:
            rles.append(None if rle is None else to_rle(rle, record.height, record.width))
        except Exception as error:
            raise ValueError(f'frame {t}: bad run lengths: {error}') from error
    return rles
