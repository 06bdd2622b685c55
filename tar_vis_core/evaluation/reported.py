"""What a user is shown of stills: how much of what reaches the score threshold is right, and what is found so.

An answer is right if it overlaps an instance of its class with an IoU of at least one half; each instance makes one
answer right, the surest one. Not charged is an answer that lies in a crowd of its class, and one in a picture with
``MANY`` instances of its class or more: where a crowd is labelled as one region, or not at all, its single persons have
no labels of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from tar_vis_core.data.coco import Annotation, ImageRecord
from tar_vis_core.evaluation.coco_ap import Prediction
from tar_vis_core.models.class_sets import plain_name

MANY = 12
RIGHT_IOU = 0.5
ALL = 'all classes'
SIZES = 32 ** 2, 96 ** 2        # pixels: small below the first, large from the second on


@dataclass(frozen=True)
class Reported:
    """The answers of one category, or of all, that reach the threshold."""

    name: str
    images: int                         # on which the category counts: all classes need all to be labelled
    answers: int                        # that are charged
    right: int
    found: tuple[int, int, int]         # small, medium and large instances that an answer is right about
    instances: tuple[int, int, int]     # that there are


def reported(records: Sequence[ImageRecord], answers: Sequence[Iterable[Prediction]], name: str = ALL) -> Reported:
    """Compare what is reported of each image of a COCO file, one (score, category, mask) for each object."""
    images = total = right = 0
    found, there = Counter(), Counter()
    for record, own in zip(records, answers, strict=True):
        if not (record.exhaustive or name == 'person'):
            continue
        images += 1
        for category in {a.category for a in record.annotations} | {plain_name(kind) for _, kind, _ in own}:
            if name in (ALL, category):
                labelled = [a for a in record.annotations if a.category == category]
                masks = [mask for _, kind, mask in sorted(own, key=lambda one: -one[0]) if plain_name(kind) == category]
                hits, charged = compared(masks, labelled)
                total, right = total + charged, right + len(hits)
                found.update(size_of(a) for a in hits)
                there.update(size_of(a) for a in labelled if not a.crowd)
    return Reported(name, images, total, right, *(tuple(count[k] for k in range(3)) for count in (found, there)))


def size_of(instance: Annotation) -> int:
    """Return 0 for a small instance, 1 for a medium and 2 for a large one."""
    return int(np.searchsorted(SIZES, instance.area, 'right'))


def compared(masks: Sequence[np.ndarray], labelled: Sequence[Annotation]) -> tuple[list[Annotation], int]:
    """Return the instances that ``masks`` of their class, the surest first, are right about, and how many count."""
    rles = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    overlaps = np.zeros((len(masks), len(labelled)))
    if overlaps.size:      # with a crowd it is the share of the answer
        overlaps[:] = coco_mask.iou(rles, [a.rle for a in labelled], [int(a.crowd) for a in labelled])
    free = np.array([not a.crowd for a in labelled], bool)
    many, hits, charged = free.sum() >= MANY, [], 0
    for row in overlaps:
        left = row * free
        if left.size and left.max() >= RIGHT_IOU:
            best = int(left.argmax())
            free[best] = False
            hits.append(labelled[best])
            charged += 1
        elif not many and not any(share >= RIGHT_IOU and a.crowd for share, a in zip(row, labelled, strict=True)):
            charged += 1
    return hits, charged


def as_table(rows: Sequence[Reported]) -> str:
    """Return a text table: a category a line."""
    titles = f'{"category":<14}{"images":>7}{"reported":>10}{"right":>9}{"found: small":>15}{"medium":>10}{"large":>10}'
    lines = [titles]
    for row in rows:
        share = f'{100 * row.right / row.answers:.1f} %' if row.answers else '-'
        small, medium, large = (f'{a} of {b}' for a, b in zip(row.found, row.instances, strict=True))
        lines.append(f'{row.name:<14}{row.images:>7}{row.answers:>10}{share:>9}{small:>15}{medium:>10}{large:>10}')
    return '\n'.join(lines)
