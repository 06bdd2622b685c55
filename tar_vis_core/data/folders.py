"""Where the pictures of an annotation file lie: the data sets' publishers do not agree on that."""

from __future__ import annotations

from pathlib import Path


def picture_folder(json_path: Path, name: str, *usual: str) -> Path:
    """The folder that the file names of an annotation file are relative to, told by one of them.

    ``usual`` are folders beside the file, the likeliest first; the first of them where the picture lies nowhere.
    Then come a folder of the file's own name, beside it or one level up (``train.json`` and ``train/JPEGImages`` of
    YouTube-VIS, ``annotations/annotations_train.json`` and ``train`` of OVIS,
    ``annotations/instances_train2017.json`` and ``train2017`` of COCO).
    """
    split = json_path.stem.removeprefix('annotations_').removeprefix('instances_')
    tried = [json_path.parent / folder for folder in usual]
    tried += [parent / split / sub for parent in (json_path.parent, json_path.parent.parent)
              for sub in ('JPEGImages', '')]
    return next((folder for folder in tried if (folder / name).is_file()), tried[0])
