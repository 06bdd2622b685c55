"""COCO instance annotations as training samples of one fixed size, augmented, deterministic and quick to make.

Format: https://cocodataset.org/#format-data, with two optional additions. ``image.annotated`` is ``all`` (the default)
or ``person``: only the persons of that image are labelled. ``annotation.pseudo`` marks a machine-made mask.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from tar_vis_core.data import transforms as tf
from tar_vis_core.data.clip_times import check_canvas
from tar_vis_core.data.folders import check_pictures, find_pictures
from tar_vis_core.data.label_fields import Id, LeftOut, by_id, category_names, entries, read_labels
from tar_vis_core.data.mosaic import random_mosaic
from tar_vis_core.data.transforms import Sample, Scene
from tar_vis_core.errors import DataError
from tar_vis_core.media.pictures import sized_picture
from tar_vis_core.models.class_sets import plain_name

KIND = 'COCO annotation'
PRELOAD_BYTES = 1 << 30     # image files of a smaller set are kept in memory


@dataclass
class Annotation:
    """One labelled instance or crowd of an image."""

    id: Id | None             # as the file has it, which need not have one
    category: str
    crowd: bool
    pseudo: bool
    rle: dict                 # pycocotools' compressed run lengths at the image's size
    area: float               # as the file has it, by which COCO's protocol sorts sizes; else the mask's pixels
    label: int                # what the model learns
    boxed: bool = False       # its mask is only its box


@dataclass
class ImageRecord:
    """One image of a COCO file with its annotations; the picture stays compressed."""

    id: Id
    path: Path
    height: int
    width: int
    exhaustive: bool          # False: only the persons are labelled
    encoded: bytes = b''      # the image file itself
    annotations: list[Annotation] = field(default_factory=list)

    def image(self) -> np.ndarray:
        """Return the picture, ``(h, w, 3)`` uint8 RGB."""
        return sized_picture(self.path, self.height, self.width, self.encoded)

    def scene(self) -> Scene:
        """Return picture and decoded masks. Crowds become the ignored region, except where trusted instances lie."""
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
            trusted=np.array([not a.pseudo for a in single], bool),
            ignore=ignore, inside=np.ones((self.height, self.width), bool), exhaustive=self.exhaustive,
            boxed=np.array([a.boxed for a in single], bool))


def load_coco(json_path: str | Path, preload: bool = True, skip_image_ids: Container[int] = (),
              labels: Mapping[str, int] | None = None, boxes: bool = False) -> list[ImageRecord]:
    """Read a COCO file. With ``preload`` the image files are kept in memory.

    ``labels`` gives the label of a category's name; other categories, and images with no others, are left out. Without
    it a label is the category's place in the file. ``boxes`` keeps an object whose mask is not trusted, by its box, in
    place of an ignored region. Raise DataError that names the file, image or annotation that is wrong.
    """
    json_path = Path(json_path)
    content = read_labels(json_path)
    categories = category_names(json_path, content, KIND)
    images = by_id(entries(json_path, content, 'images', 'image', KIND), lambda image: image.text('file_name'))
    names = [image.text('file_name') for image in images.values()]
    paths = find_pictures(json_path, names, '')
    check_pictures(json_path, names, paths)
    wanted = {name: place for place, name in enumerate(categories.values())} if labels is None else labels
    known = {plain_name(name): label for name, label in wanted.items()}
    records = {}
    for (own, image), path in zip(images.items(), paths, strict=True):
        height, width = image.size()
        records[own] = ImageRecord(own, path, height, width, image.choice('annotated', ('all', 'person')) == 'all')
    marked = entries(json_path, content, 'annotations', 'annotation', KIND)
    left_out = LeftOut(json_path, len(marked))
    for entry in marked:
        image_id, category_id = entry.id('image_id'), entry.id('category_id')
        record, name = records.get(image_id), categories.get(category_id)
        if record is None or name is None:
            raise entry.error(f' names image {image_id!r} and category {category_id!r}, of which the file does not '
                              f'list the {"image" if record is None else "category"}')
        label = known.get(plain_name(name))
        if label is None:
            continue
        rle = entry.mask('segmentation', record.height, record.width)
        own = entry.id() if entry.values.get('id') is not None else None
        if not (pixels := float(coco_mask.area(rle))):
            left_out.add('with an empty mask', own)
            continue
        crowd, pseudo = entry.flag('iscrowd', False), entry.flag('pseudo', False)
        # a machine that does not trust its mask leaves the box in its place, as a crowd for who cannot use it
        boxed = boxes and crowd and pseudo and not entry.flag('ignore', False)
        record.annotations.append(Annotation(own, name, crowd and not boxed, pseudo, rle,
                                             entry.positive('area', pixels), label, boxed))
    left_out.warn()
    kept = [record for record in records.values()
            if record.id not in skip_image_ids and (labels is None or record.annotations)]
    for record in kept if preload else ():
        record.encoded = record.path.read_bytes()
    return kept


class CocoDataset(Dataset):
    """Augmented samples of a fixed size from one or more COCO files.

    The same (seed, ``epoch``, index) gives the same sample. Epoch and ``size``, the canvas (height, width), may change
    between samples.
    """

    def __init__(self, json_paths: Sequence[str | Path] | str | Path, size: tuple[int, int] = (256, 384), *,
                 seed: int = 0, copy_paste: float = 0.4, lookalikes: float = 0.03, mosaic: float = 0.0,
                 min_pixels: int = 40, max_instances: int = 40, skip_image_ids: Container[int] = (),
                 labels: Mapping[str, int] | None = None, boxes: bool = False) -> None:
        if isinstance(json_paths, (str, Path)):
            json_paths = [json_paths]
        self.records = [record for path in json_paths
                        for record in load_coco(path, False, skip_image_ids, labels, boxes)]
        if not self.records:
            raise DataError(f'no image in {", ".join(map(str, json_paths))}')
        small = sum(record.path.stat().st_size for record in self.records) < PRELOAD_BYTES
        for record in self.records if small else ():
            record.encoded = record.path.read_bytes()
        check_canvas(size)
        self.size, self.epoch, self.seed, self.copy_paste = size, 0, seed, copy_paste
        self.lookalikes, self.mosaic = lookalikes, mosaic
        self.min_pixels, self.max_instances = min_pixels, max_instances
        self._donors, self._donor_cdf = self._find_donors()

    def _find_donors(self) -> tuple[list[tuple[int, int]], np.ndarray]:
        """Return instances fit to be pasted elsewhere (record, instance) and their cumulative odds.

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

    def rng(self, index: int) -> np.random.Generator:
        """Return the random generator of item ``index`` in the present epoch."""
        return np.random.default_rng([self.seed, self.epoch, index])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        rng, scene, size = self.rng(index), self.records[index].scene(), self.size
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
        scene.image = tf.CameraFaults.draw(rng).apply(rng, image)
        return tf.to_sample(tf.drop_small(scene, self.min_pixels, self.max_instances))

    def paste_random(self, rng: np.random.Generator, scene: Scene) -> Scene:
        """Lay one to three instances of another image over the scene, sometimes behind its own instances.

        With odds ``lookalikes`` the same instances are pasted many times: a crowd that only position tells apart.
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
        """Return an image reduced to one to ``most`` of its true-masked instances, None if the data have none."""
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
