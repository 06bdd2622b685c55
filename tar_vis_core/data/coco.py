"""COCO instance annotations as training samples of one fixed size, augmented, deterministic and quick to make.

Format: https://cocodataset.org/#format-data, with two optional additions. ``image.annotated`` is ``all`` (the default)
or ``person``: only the persons of that image are labelled. ``annotation.pseudo`` marks a machine-made mask.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from tar_vis_core.data import transforms as tf
from tar_vis_core.data.folders import picture_folder
from tar_vis_core.data.mosaic import random_mosaic
from tar_vis_core.data.rle import to_rle
from tar_vis_core.data.transforms import Sample, Scene
from tar_vis_core.errors import DataError
from tar_vis_core.models.class_sets import VOC, plain_name

PRELOAD_BYTES = 1 << 30     # image files of a smaller set are kept in memory


@dataclass
class Annotation:
    """One labelled instance or crowd of an image."""

    id: int
    category: str
    crowd: bool
    pseudo: bool
    rle: dict                 # pycocotools' compressed run lengths at the image's size
    area: float               # mask pixels
    label: int                # what the model learns


@dataclass
class ImageRecord:
    """One image of a COCO file with its annotations; the picture stays compressed."""

    id: int
    path: Path
    height: int
    width: int
    exhaustive: bool          # False: only the persons are labelled
    encoded: bytes = b''      # the image file itself
    annotations: list[Annotation] = field(default_factory=list)

    def image(self) -> np.ndarray:
        """The picture, ``(h, w, 3)`` uint8 RGB."""
        data = self.encoded or self.path.read_bytes()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise DataError(f'{self.path}: not a readable image; expected JPEG or PNG')
        if image.shape[:2] != (self.height, self.width):
            raise DataError(f'{self.path}: the image is {image.shape[1]}x{image.shape[0]}, '
                            f'its annotation file says {self.width}x{self.height}')
        return image

    def scene(self) -> Scene:
        """Picture and decoded masks; crowds become the ignored region, less what trusted instances cover."""
        masks = np.zeros((len(self.annotations), self.height, self.width), bool)
        for index, annotation in enumerate(self.annotations):
            masks[index] = coco_mask.decode(annotation.rle)
        crowd = np.array([a.crowd for a in self.annotations], bool)
        single = [a for a in self.annotations if not a.crowd]
        own, ignore = masks[~crowd], masks[crowd].any(0)
        if crowd.any() and len(own):
            ignore &= ~own.any(0)
        return Scene(
            image=self.image(), masks=own,
            labels=np.array([a.label for a in single], np.int64),
            voc=np.array([voc_index(a.category) for a in single], np.uint8),
            trusted=np.array([not a.pseudo for a in single], bool),
            ignore=ignore, inside=np.ones((self.height, self.width), bool), exhaustive=self.exhaustive)


def voc_index(category: str) -> int:
    """Pascal VOC index of a COCO category name; 0 where it is none of the 20."""
    return VOC.index(category) if category in VOC[1:] else 0


def load_coco(json_path: str | Path, preload: bool = True, skip_image_ids: Container[int] = (),
              labels: Mapping[str, int] | None = None) -> list[ImageRecord]:
    """Read a COCO file. With ``preload`` the image files are kept in memory.

    ``labels`` gives the label of a category's name; other categories, and images with no others, are left out. Without
    it persons are told from objects. Raises DataError naming the file, image or annotation that is wrong.
    """
    json_path = Path(json_path)
    if not json_path.is_file():
        raise DataError(f'{json_path}: no such annotation file; give the path of a COCO JSON')
    try:
        content = json.loads(json_path.read_text())
        categories = {c['id']: c['name'] for c in content['categories']}
        images, annotations = content['images'], content['annotations']
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{json_path}: not a COCO annotation file ({type(error).__name__}: {error})') from error
    records, folder, known = {}, None, labels and {plain_name(name): label for name, label in labels.items()}
    for entry in images:
        annotated = entry.get('annotated', 'all')
        if annotated not in ('all', 'person'):
            raise DataError(f"{json_path}: image {entry['id']}: annotated is {annotated!r}, expected 'all' or 'person'")
        folder = folder or picture_folder(json_path, entry['file_name'], '')
        path = folder / entry['file_name']
        if not path.is_file():
            raise DataError(f"{json_path}: image {entry['id']}: {path} is missing; extract the whole archive")
        records[entry['id']] = ImageRecord(entry['id'], path, entry['height'], entry['width'], annotated == 'all')
    for entry in annotations:
        record, name = records.get(entry['image_id']), categories.get(entry['category_id'])
        if record is None or name is None:
            raise DataError(f"{json_path}: annotation {entry['id']} names image {entry['image_id']} and category "
                            f"{entry['category_id']}, which the file does not list")
        label = int(name != 'person') if known is None else known.get(plain_name(name))
        if label is None:
            continue
        try:
            rle = to_rle(entry['segmentation'], record.height, record.width)
        except Exception as error:                           # pycocotools raises bare Exception, too
            raise DataError(f"{json_path}: annotation {entry['id']}: bad segmentation: {error}") from error
        record.annotations.append(Annotation(entry['id'], name, bool(entry.get('iscrowd', 0)),
                                             bool(entry.get('pseudo', 0)), rle, float(coco_mask.area(rle)), label))
    kept = [record for record in records.values()
            if record.id not in skip_image_ids and (labels is None or record.annotations)]
    for record in kept if preload else ():
        record.encoded = record.path.read_bytes()
    return kept


class CocoDataset(Dataset):
    """Augmented samples of a fixed size from one or more COCO files.

    The same (seed, epoch, index) gives the same sample. ``set_epoch`` and ``set_size`` reach the workers of a running
    DataLoader as well. With ``augment=False`` a sample is the whole image at the canvas's top left.
    """

    def __init__(self, json_paths: Sequence[str | Path] | str | Path, size: tuple[int, int] = (256, 384), *,
                 augment: bool = True, seed: int = 0, copy_paste: float = 0.4, lookalikes: float = 0.03,
                 mosaic: float = 0.0,
                 min_pixels: int = 40, max_instances: int = 40, skip_image_ids: Container[int] = (),
                 labels: Mapping[str, int] | None = None) -> None:
        if isinstance(json_paths, (str, Path)):
            json_paths = [json_paths]
        self.records = [record for path in json_paths for record in load_coco(path, False, skip_image_ids, labels)]
        if not self.records:
            raise DataError(f'no image in {", ".join(map(str, json_paths))}')
        small = sum(record.path.stat().st_size for record in self.records) < PRELOAD_BYTES
        for record in self.records if small else ():
            record.encoded = record.path.read_bytes()
        self.augment, self.seed, self.copy_paste = augment, seed, copy_paste
        self.lookalikes, self.mosaic = lookalikes, mosaic
        self.min_pixels, self.max_instances = min_pixels, max_instances
        self._shared = torch.tensor([0, *size]).share_memory_()      # epoch, height, width
        self.set_size(*size)
        self._donors, self._donor_cdf = self._find_donors()

    def _find_donors(self) -> tuple[list[tuple[int, int]], np.ndarray]:
        """Instances fit to be pasted elsewhere (record, instance) and their cumulative odds.

        Persons take 45 %; among the other categories the rare ones are drawn more often than they occur.
        """
        donors, names = [], []
        for number, record in enumerate(self.records):
            singles = [a for a in record.annotations if not a.crowd]
            for index, annotation in enumerate(singles):
                if not annotation.pseudo and annotation.area >= 600:
                    donors.append((number, index))
                    names.append(annotation.category)
        counts = Counter(names)
        odds = np.array([1 / math.sqrt(counts[name]) for name in names])
        person = np.array([name == 'person' for name in names], bool)
        for group, share in ((person, 0.45), (~person, 0.55)):
            odds[group] *= share / max(odds[group].sum(), 1e-9)
        return donors, np.cumsum(odds) / max(odds.sum(), 1e-9)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations the next items show."""
        self._shared[0] = epoch

    def set_size(self, height: int, width: int) -> None:
        """Choose the canvas of the next items, in pixels."""
        if height < 16 or width < 16:
            raise ValueError(f'a training canvas of {height}x{width} is too small, expected at least 16x16')
        self._shared[1], self._shared[2] = height, width

    @property
    def size(self) -> tuple[int, int]:
        return int(self._shared[1]), int(self._shared[2])

    def rng(self, index: int) -> np.random.Generator:
        """The generator of item ``index`` in the present epoch."""
        return np.random.default_rng([self.seed, int(self._shared[0]), index])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        scene, size = self.records[index].scene(), self.size
        if self.augment:
            rng = self.rng(index)
            # without mosaics nothing is drawn for them: the samples of earlier runs stay what they were
            if self.mosaic and rng.random() < self.mosaic:
                others = [self.records[i].scene() for i in rng.integers(len(self.records), size=3)]
                scene = random_mosaic(rng, [scene, *others], size)
            else:
                scene = tf.warp_scene(scene, tf.random_view(rng, scene, size), size)
            if rng.random() < self.copy_paste:
                scene = self.paste_random(rng, scene)
            image = scene.image
            if rng.random() < 0.8:
                image = cv2.transform(image, tf.random_colours(rng))
            scene.image = tf.Degradation.draw(rng).apply(rng, image)
        else:
            scene = tf.warp_scene(scene, tf.fit_view(scene.size, size), size)
        return tf.to_sample(tf.drop_small(scene, self.min_pixels, self.max_instances))

    def paste_random(self, rng: np.random.Generator, scene: Scene) -> Scene:
        """Lay one to three instances of another image over the scene, sometimes behind its own instances.

        With odds ``lookalikes`` the same ones many times over: a crowd that only position tells apart.
        """
        donor = self.draw_donor(rng)
        if donor is None:
            return scene
        copies = int(rng.integers(3, 8)) if rng.random() < self.lookalikes else 1 + int(rng.random() < 0.35)
        for _ in range(copies):
            placed = tf.warp_scene(donor, tf.random_placement(rng, donor, scene.size), scene.size)
            scene = tf.paste(scene, placed, behind=rng.random() < 0.3)
        return scene

    def draw_donor(self, rng: np.random.Generator, most: int = 3) -> Scene | None:
        """An image reduced to one up to ``most`` of its true-masked instances; None where the data have none."""
        if not self._donors:
            return None
        number, first = self._donors[min(int(np.searchsorted(self._donor_cdf, rng.random())), len(self._donors) - 1)]
        scene = self.records[number].scene()
        chosen = [first]
        if rng.random() < 0.3:                               # a group keeps its own arrangement
            others = [i for i in np.flatnonzero(scene.trusted) if i != first]
            chosen += [int(i) for i in rng.permutation(others)[:most - 1]]
        donor = scene.select(np.array(chosen))
        donor.image = cv2.transform(donor.image, tf.random_colours(rng, 0.5))
        donor.ignore = np.zeros_like(donor.ignore)
        return donor
