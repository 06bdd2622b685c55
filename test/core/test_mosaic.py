"""Mosaics: four pictures on one canvas, each in its own quarter, and nothing of a run without them changes."""

from __future__ import annotations

import numpy as np
from coco_files import write_coco

from tar_vis_core.data.coco import CocoDataset, load_coco
from tar_vis_core.data.mosaic import CUT, random_mosaic

SIZE = 96, 160


def test_each_scene_keeps_to_its_cell_and_all_instances_are_there(tmp_path):
    scenes = [record.scene() for record in load_coco(write_coco(tmp_path, images=4))]
    for number, scene in enumerate(scenes):
        scene.image[:] = 50 + 50 * number
        scene.masks[:] = True                       # so that every instance covers all that its scene shows
    for seed in range(5):
        made = random_mosaic(np.random.default_rng(seed), scenes, SIZE)
        assert made.image.shape == (*SIZE, 3) and made.inside.shape == made.ignore.shape == SIZE
        assert made.labels.tolist() == [label for scene in scenes for label in scene.labels]
        assert len(made.masks) == len(made.boxed) == len(made.trusted) == len(made.labels)
        first = 0
        for number, scene in enumerate(scenes):
            own = made.masks[first:first + len(scene.labels)]
            first += len(own)
            rows, columns = np.nonzero(own.any(0))
            assert (made.image[rows, columns] == 50 + 50 * number).mean() > 0.95, 'but for edges that blend with grey'
            top, left = divmod(number, 2)
            for places, length, second in ((rows, SIZE[0], top), (columns, SIZE[1], left)):
                assert (places >= CUT[0] * length - 1).all() if second else (places <= CUT[1] * length + 1).all()
        assert made.exhaustive == all(scene.exhaustive for scene in scenes)


def test_persons_only_spreads_to_the_whole(tmp_path):
    scenes = [record.scene() for record in load_coco(write_coco(tmp_path, images=4))]
    scenes[2].exhaustive = False
    assert not random_mosaic(np.random.default_rng(0), scenes, SIZE).exhaustive


def test_the_share_is_kept_and_none_changes_nothing(tmp_path):
    path = write_coco(tmp_path, images=4)
    plain, without, always = (CocoDataset(path, SIZE, **odds) for odds in ({}, {'mosaic': 0.0}, {'mosaic': 1.0}))
    for index in range(4):
        assert np.array_equal(plain[index].image, without[index].image)
        assert not np.array_equal(plain[index].image, always[index].image)
        assert np.array_equal(always[index].masks, CocoDataset(path, SIZE, mosaic=1.0)[index].masks)
