"""Small COCO files whose pictures show each instance in its own colour."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 96, 128
COLOURS = np.array([(230, 20, 20), (20, 230, 20), (20, 20, 230), (230, 230, 20)], np.uint8)
CATEGORIES = [{'id': 1, 'name': 'person'}, {'id': 17, 'name': 'cat'}, {'id': 72, 'name': 'tv'}]


def ellipse(x: int, y: int, a: int, b: int) -> np.ndarray:
    return cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), (x, y), (a, b), 20, 0, 360, 1, -1).astype(bool)


def rle_of(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def write_coco(folder: Path, *, images: int = 3, annotated: str | None = 'all', extra: tuple[dict, ...] = (),
               pseudo: bool = False) -> Path:
    """A COCO file: each image holds a person (polygon) and a cat (run lengths) in their own colours."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {'categories': CATEGORIES, 'images': [], 'annotations': []}
    for number in range(1, images + 1):
        person, cat = ellipse(30 + 3 * number, 40, 18, 25), ellipse(92, 55, 20, 14)
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        image[person], image[cat] = COLOURS[0], COLOURS[1]
        cv2.imwrite(str(folder / f'{number}.png'), image[..., ::-1])
        entry = {'id': number, 'file_name': f'{number}.png', 'width': WIDTH, 'height': HEIGHT}
        content['images'].append(entry if annotated is None else {**entry, 'annotated': annotated})
        contour = cv2.findContours(person.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0]
        polygon = (contour[:, 0] + 0.5).ravel().tolist()
        for category, shape in ((1, [polygon]), (17, rle_of(cat))):
            content['annotations'].append({'id': len(content['annotations']) + 1, 'image_id': number, 'iscrowd': 0,
                                           'category_id': category, 'segmentation': shape, 'pseudo': int(pseudo)})
    content['annotations'] += extra
    path = folder / 'instances.json'
    path.write_text(json.dumps(content))
    return path


def edit(path: Path, change) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path
