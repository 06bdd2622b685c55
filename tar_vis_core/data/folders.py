"""Find the pictures of an annotation file: publishers and annotation tools lay them out in different ways."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from tar_vis_core.errors import DataError
from tar_vis_core.io.json_files import file_name

logger = logging.getLogger(__name__)
BESIDE = 'images', 'data', 'img', 'JPEGImages', 'frames'    # where tools put the pictures of an annotation file
SAMPLE = 16                                                 # names that choose the folder


def find_pictures(json_path: Path, names: Sequence[str], *usual: str) -> list[Path]:
    """Return the paths of an annotation file's pictures, all found in one way; those that are missing would lie there.

    ``usual`` are folders beside the file, the likeliest first. Then come :data:`BESIDE`, and a folder of the file's own
    name, beside it or one level up (``train.json`` and ``train/JPEGImages`` of YouTube-VIS,
    ``annotations/annotations_train.json`` and ``train`` of OVIS, ``annotations/instances_train2017.json`` and
    ``train2017`` of COCO, ``annotations/instances_default.json`` and ``images/default`` of CVAT). Backslashes are those
    of Windows. A path of another machine, such as an annotation server's, is followed from its end: without its first
    folders, as long as no two names fall together.
    """
    if not names:
        return []
    step = max(1, len(names) // SAMPLE)
    sample = names[::step][:SAMPLE]
    best, most = None, 0
    for spelt in _spellings(names):
        for folder in _folders(json_path, usual):
            found = sum(os.path.isfile(folder / file_name(spelt(name))) for name in sample)
            if found > most:
                best, most = (folder, spelt), found
            if most == len(sample):
                break
        if most == len(sample):
            break
    folder, spelt = best or (next(_folders(json_path, usual)), str)
    return [folder / file_name(spelt(name)) for name in names]


def check_pictures(json_path: Path, names: Sequence[str], paths: Sequence[Path]) -> None:
    """Raise DataError if pictures are missing: how many, the first one, and the likely reason. Warn of one named twice.

    Names of two folders fall together where a tool leaves the folders out; labels are then on another picture.
    """
    again = [path for path, times in Counter(paths).items() if times > 1]
    if again:
        logger.warning('%s: %d pictures are named more than once, such as %s: are all labels on their own picture?',
                       json_path, len(again), again[0])
    missing = [(name, path) for name, path in zip(names, paths, strict=True) if not os.path.isfile(path)]
    if not missing:
        return
    name, path = missing[0]
    if len(missing) < len(names):
        hint = f'the others are in {path.parent}; was everything unpacked?'
    elif any(mark in name for mark in ('/', '\\', ':')):
        hint = ('the names have folders of another machine'
                + (' with the backslashes of Windows' if '\\' in name else '')
                + f'; put the pictures into {json_path.parent / "images"}')
    else:
        hint = (f'put them beside the file or into {json_path.parent / "images"}; looked there, in '
                f'{", ".join(BESIDE[1:])}, and in folders of the file\'s name, here and one level up')
    raise DataError(f'{json_path}: {len(missing)} of {len(names)} pictures are missing, the first is {path}: {hint}')


def _folders(json_path: Path, usual: Sequence[str]) -> Iterator[Path]:
    split = json_path.stem.removeprefix('annotations_').removeprefix('instances_')
    here, above = json_path.parent, json_path.parent.parent
    for folder in usual:
        yield here / folder
    for parent in (here, above):
        for sub in ('JPEGImages', ''):
            yield parent / split / sub
    for parent in (here, above):
        for folder in ('', *BESIDE):
            yield parent / folder
            yield parent / folder / split


def _spellings(names: Sequence[str]) -> Iterator:
    """Yield functions from a name in the file to the one that is looked for, the plainest first."""
    yield str
    plain = [_plain(name) for name in names]
    depth = max(len(PurePosixPath(name).parts) for name in plain)
    if plain != list(names):
        yield _plain
    different = len(set(plain))
    for kept in range(min(depth - 1, 6), 0, -1):
        def shorter(name: str, kept: int = kept) -> str:
            return '/'.join(PurePosixPath(_plain(name)).parts[-kept:])
        if len(set(map(shorter, names))) == different:
            yield shorter


def _plain(name: str) -> str:
    """Return a name with slashes, without the query of an address or its %20."""
    name = name.replace('\\', '/')
    if '://' in name or '?d=' in name:
        name = unquote(name.rpartition('?d=')[2] if '?d=' in name else name.partition('?')[0])
    return name
