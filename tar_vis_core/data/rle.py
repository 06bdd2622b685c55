"""Masks as annotation files have them, to the run lengths of pycocotools."""

from __future__ import annotations

from pycocotools import mask as coco_mask


def to_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """Polygons, uncompressed or compressed run lengths to pycocotools' compressed run lengths.

    Raises ValueError where they are empty, malformed, or not of the image's size.
    """
    if isinstance(segmentation, list):
        if not segmentation or any(len(p) < 6 or len(p) % 2 for p in segmentation):
            raise ValueError('a polygon needs at least three x, y pairs')
        rle = coco_mask.merge(coco_mask.frPyObjects([[float(v) for v in p] for p in segmentation], height, width))
    else:
        counts, size = segmentation['counts'], list(segmentation['size'])
        if size != [height, width]:
            raise ValueError(f'its size is {size}, the image has [{height}, {width}]')
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts) < 0:
                raise ValueError(f'run lengths add up to {sum(counts)}, expected {height * width}')
            rle = coco_mask.frPyObjects({'counts': counts, 'size': size}, height, width)
        else:
            counts = counts.encode('ascii') if isinstance(counts, str) else counts
            if (total := compressed_total(counts)) != height * width:
                raise ValueError(f'run lengths add up to {total}, expected {height * width}')
            rle = {'counts': counts, 'size': size}
    return rle


def compressed_total(counts: bytes) -> int:
    """Pixels that COCO's compressed run lengths cover (pycocotools leaves what they do not cover uninitialised).

    Six bits a character from '0' on: five of value, one that says that the number goes on; from the fourth number on
    the difference to the number two before is stored.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f'{chr(character)!r} does not occur in compressed run lengths')
        value |= (bits & 31) << shift
        shift += 5
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
