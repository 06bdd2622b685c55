"""Convert the masks of annotation files to the run lengths of pycocotools."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

MAX_OUTLINE = 4e6       # pixels, of one polygon: 160 MB in pycocotools


def to_rle(segmentation: list | dict | None, height: int, width: int) -> dict:
    """Return pycocotools' compressed run lengths of polygons, uncompressed or compressed run lengths.

    Every number is checked, because pycocotools' C code does not check. Polygons of less than three points cover
    nothing. Raise ValueError if the mask is missing, malformed, or not of the image's size.
    """
    if segmentation is None:
        raise ValueError('there is none')
    if isinstance(segmentation, list):
        polygons = [polygon.tolist() for polygon in map(_polygon, segmentation) if len(polygon) >= 6]
        if not polygons:
            return coco_mask.frPyObjects({'counts': [height * width], 'size': [height, width]}, height, width)
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if not isinstance(segmentation, dict) or not {'counts', 'size'} <= segmentation.keys():
        raise ValueError(f'expected polygons, or run lengths with counts and size, found {type(segmentation).__name__}'
                         + (f' with {", ".join(map(repr, segmentation))}' if isinstance(segmentation, dict) else ''))
    counts, size = segmentation['counts'], segmentation['size']
    if size != [height, width] and size != (height, width):
        raise ValueError(f'its size is {size}, the image has [{height}, {width}]')
    if isinstance(counts, list):
        if not all(isinstance(run, int | float) and 0 <= run <= height * width and run == int(run) for run in counts):
            raise ValueError(f'run lengths are whole numbers from 0 to the {height * width} pixels of the image')
        if (total := sum(counts)) != height * width:
            raise ValueError(f'run lengths add up to {total}, expected {height * width}')
        return coco_mask.frPyObjects({'counts': list(map(int, counts)), 'size': [height, width]}, height, width)
    if not isinstance(counts, str | bytes):
        raise ValueError(f'counts are {type(counts).__name__}, expected a list or text')
    counts = counts.encode('ascii') if isinstance(counts, str) else counts
    if (total := compressed_total(counts)) != height * width:
        raise ValueError(f'run lengths add up to {total}, expected {height * width}')
    return {'counts': counts, 'size': [height, width]}


def _polygon(points: list) -> np.ndarray:
    """Return one polygon as numbers x, y, x, y, .. that C code can take."""
    if not isinstance(points, list):
        raise ValueError(f'expected a list of polygons, found {type(points).__name__} in it')
    try:
        values = np.array(points, np.float64)
    except (TypeError, OverflowError) as error:
        raise ValueError('a polygon holds what is no number, or too large a one') from error
    if values.ndim != 1 or len(values) % 2:
        raise ValueError('a polygon is one list x, y, x, y, .. of its points')
    if not np.isfinite(values).all():
        raise ValueError('a polygon holds a number that is not finite')
    # pycocotools writes down every fifth of a pixel along the outline
    outline = np.abs(np.diff(values.reshape(-1, 2), axis=0, append=values[None, :2])).max(1).sum() if len(values) else 0
    if outline > MAX_OUTLINE or np.abs(values).max(initial=0) > MAX_OUTLINE:
        raise ValueError(f'a polygon reaches to {np.abs(values).max():.3g} pixels, its outline is {outline:.3g} long; '
                         f'at most {MAX_OUTLINE:.0e}')
    return values


def compressed_total(counts: bytes) -> int:
    """Return the pixels that COCO's compressed run lengths cover (pycocotools leaves the others uninitialised).

    A character holds six bits, counted from '0': five of value, and one if the number goes on. From the fourth number
    on, the difference to the number two before is stored.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f'{chr(character)!r} does not occur in compressed run lengths')
        value |= (bits & 31) << shift
        shift += 5
        if shift > 35:
            raise ValueError('a run length is too large')
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
            if runs[-1] < 0:
                raise ValueError('a run length is negative')
    if shift:
        raise ValueError('compressed run lengths end inside a number')
    return sum(runs)
