"""Mask AP on still images by pycocotools: persons on every image, other categories if all classes are labelled.

Metric: https://cocodataset.org/#detection-eval. Small, medium and large are areas below 32^2, below 96^2 and above, as
the file gives them (``area``); on images smaller than COCO's own the figures are not COCO's.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tar_vis_core.data.coco import ImageRecord
from tar_vis_core.models.class_sets import VOC, plain_name

Prediction = tuple[float, str, np.ndarray]     # score, category name, mask (h, w) bool at the image's size


@dataclass(frozen=True)
class CategoryAP:
    """Average precision of one category, each 0..1, NaN if no instance could count."""

    name: str
    images: int          # images on which the category counts
    instances: int       # labelled ones, crowds left out
    ap: float            # mean over IoU 0.50 to 0.95
    ap50: float
    ap75: float
    small: float         # AP of instances by area
    medium: float
    large: float
    recall: float        # mean over IoU 0.50 to 0.95, at most 100 predictions an image
    # Share of the instances of a size that some prediction of that class matches at IoU 0.5, whatever its score: what
    # is missing here no better score could bring back.
    recall50_small: float
    recall50_medium: float
    recall50_large: float


@dataclass(frozen=True)
class CocoResult:
    """The result of :func:`evaluate`; ``str`` is a text table in percent."""

    images: int
    categories: list[CategoryAP] = field(default_factory=list)

    def __str__(self) -> str:
        columns = ('ap', 'ap50', 'ap75', 'small', 'medium', 'large', 'recall')
        titles = ('AP', 'AP50', 'AP75', 'small', 'medium', 'large', 'AR100')
        lines = [f'{"category":<14}{"images":>7}{"count":>7}' + ''.join(f'{title:>8}' for title in titles)]
        for c in self.categories:
            cells = ''.join(f'{"-":>8}' if math.isnan(v := getattr(c, column)) else f'{100 * v:>8.1f}'
                            for column in columns)
            lines.append(f'{c.name:<14}{c.images:>7}{c.instances:>7}{cells}')
        return '\n'.join(lines)


def evaluate(records: Sequence[ImageRecord], predictions: Sequence[Iterable[Prediction]],
             categories: Sequence[str] = ('person',)) -> CocoResult:
    """Score the predictions of each image of a COCO file, ``records`` of :func:`tar_vis_core.data.coco.load_coco`.

    A prediction is (score, category name, mask ``(h, w)`` bool). Names are COCO's or Pascal VOC's; names that are not
    evaluated are left out. ``'voc'`` among the ``categories`` stands for the 20 Pascal VOC classes that occur in the
    file. Raise ValueError for a prediction that does not fit its image.
    """
    names = expand_categories(categories, records)
    found: dict[str, list[dict]] = {name: [] for name in names}
    for number, (record, own) in enumerate(zip(records, predictions, strict=True)):
        for score, name, mask in own:
            name = plain_name(name)
            if name not in found:
                continue
            if np.shape(mask) != (record.height, record.width):
                raise ValueError(f'a predicted mask has shape {np.shape(mask)}, '
                                 f'the image is {(record.height, record.width)}')
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            found[name].append({'image_id': number, 'score': float(score), 'segmentation': rle,
                                'area': float(coco_mask.area(rle))})
    return CocoResult(len(records), [score_category(name, records, found[name]) for name in names])


def expand_categories(categories: Sequence[str], records: Sequence[ImageRecord]) -> list[str]:
    """Return category names in order, each once; ``'voc'`` becomes those Pascal VOC classes that the records hold."""
    categories = [categories] if isinstance(categories, str) else list(categories)
    occurring = {a.category for r in records for a in r.annotations if r.exhaustive or a.category == 'person'}
    names: list[str] = []
    for name in categories:
        names += [n for n in VOC[1:] if n in occurring] if name == 'voc' else [plain_name(name)]
    return list(dict.fromkeys(names))


def score_category(name: str, records: Sequence[ImageRecord], predictions: Sequence[dict]) -> CategoryAP:
    """Return the AP of one category.

    ``predictions`` hold image_id (position in ``records``), score, segmentation and area. An image that labels only
    persons does not count for another category: neither its instances nor its predictions.
    """
    counted = [n for n, record in enumerate(records) if record.exhaustive or name == 'person']
    truth = [{'id': 0, 'image_id': n, 'category_id': 1, 'iscrowd': int(a.crowd), 'segmentation': a.rle, 'area': a.area,
              'bbox': list(coco_mask.toBbox(a.rle))}
             for n in counted for a in records[n].annotations if a.category == name]
    inside = set(counted)
    answers = [{**p, 'id': 0, 'category_id': 1, 'iscrowd': 0, 'bbox': list(coco_mask.toBbox(p['segmentation']))}
               for p in predictions if p['image_id'] in inside]
    for rows in (truth, answers):
        for number, row in enumerate(rows, 1):               # pycocotools takes id 0 for 'not matched'
            row['id'] = number
    instances = sum(not row['iscrowd'] for row in truth)
    if not instances:
        return CategoryAP(name, len(counted), 0, *[math.nan] * 10)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_as_coco(records, counted, truth), _as_coco(records, counted, answers), 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval['precision'], evaluation.eval['recall']   # (T, R, K, A, M), (T, K, A, M)
    return CategoryAP(
        name, len(counted), instances, ap=_mean(precision[:, :, 0, 0, -1]), ap50=_mean(precision[0, :, 0, 0, -1]),
        ap75=_mean(precision[5, :, 0, 0, -1]), small=_mean(precision[:, :, 0, 1, -1]),
        medium=_mean(precision[:, :, 0, 2, -1]), large=_mean(precision[:, :, 0, 3, -1]),
        recall=_mean(recall[:, 0, 0, -1]),
        **{f'recall50_{size}': _mean(recall[0, 0, k, -1]) for k, size in enumerate(('small', 'medium', 'large'), 1)})


def _mean(values: np.ndarray) -> float:
    """Return the mean of the defined values; pycocotools writes -1 for undefined ones."""
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan


def _as_coco(records: Sequence[ImageRecord], counted: Sequence[int], annotations: list[dict]) -> COCO:
    coco = COCO()
    images = [{'id': n, 'height': records[n].height, 'width': records[n].width} for n in counted]
    coco.dataset = {'images': images, 'categories': [{'id': 1}], 'annotations': annotations}
    coco.createIndex()
    return coco
