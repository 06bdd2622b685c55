"""Write labelled clips as a YouTube-VIS file with its frames, for :func:`tar_vis_core.data.ytvis.load_ytvis`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from tar_vis_core.data.transforms import Sample
from tar_vis_core.errors import DataError
from tar_vis_core.io.whole_files import make_folder, write_text
from tar_vis_core.media.pictures import write_picture


def write_ytvis(folder: Path, clips: Iterable[list[Sample]], class_names: tuple[str, ...], description: str) -> Path:
    """Write ``instances.json`` and ``JPEGImages/VIDEO/FRAME.jpg``. Return the path of the JSON, which is written last.

    An instance's masks must stand at the same index in all frames of its clip. Raise DataError if the folder already
    holds such a file.
    """
    path = folder / 'instances.json'
    if path.exists():
        raise DataError(f'{path} is there already; choose another folder')
    videos, annotations = [], []
    for number, clip in enumerate(clips, 1):
        height, width = clip[0].image.shape[1:]
        names = [f'{number:05d}/{frame:05d}.jpg' for frame in range(len(clip))]
        make_folder(folder / 'JPEGImages' / f'{number:05d}')
        for name, sample in zip(names, clip, strict=True):
            write_picture(folder / 'JPEGImages' / name, sample.image.permute(1, 2, 0).numpy())
        videos.append({'id': number, 'file_names': names, 'height': height, 'width': width, 'length': len(clip),
                       'annotated': 'all' if all(sample.exhaustive for sample in clip) else 'person'})
        for index, label in enumerate(clip[0].labels.tolist()):
            rles = [_rle(sample.masks[index].numpy()) for sample in clip]
            annotations.append({
                'id': len(annotations) + 1, 'video_id': number, 'category_id': label + 1, 'iscrowd': 0,
                'height': height, 'width': width, 'segmentations': rles,
                'areas': [rle and int(coco_mask.area(rle)) for rle in rles],
                'bboxes': [rle and coco_mask.toBbox(rle).tolist() for rle in rles]})
    content = {'info': {'description': description}, 'videos': videos, 'annotations': annotations,
               'categories': [{'id': i, 'name': name} for i, name in enumerate(class_names, 1)]}
    write_text(path, json.dumps(content))
    return path


def _rle(mask: np.ndarray) -> dict | None:
    """Return compressed run lengths of a boolean mask; None for an empty one."""
    if not mask.any():
        return None
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}
