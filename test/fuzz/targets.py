"""What is fuzzed: each target has a name, makes input number N in a folder, and feeds it to the live code.

An error of the project's own (its message one line) is an answer; anything else is a finding.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

import cv2
import numpy as np
from mutation import NUMBERS, mutate_bytes, mutate_json

from tar_vis_core.errors import TarVisError


class Target(ABC):
    """One door of the product that strangers' input comes through."""

    answers: tuple[type[Exception], ...] = (TarVisError,)   # errors that are no finding

    def __init__(self, folder: Path) -> None:
        """Make the seeds; ``folder`` is the target's own, for good."""
        self.folder = folder

    @abstractmethod
    def make(self, rng: np.random.Generator) -> None:
        """Write an input into the folder."""

    @abstractmethod
    def feed(self) -> None:
        """Let the product read it."""


class Pictures(Target):
    """Compressed pictures, by every codec."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8), (5, 5), 0)
        plain = ['.jpg', '.png', '.bmp', '.webp', '.tiff', '.ppm', '.gif', '.jp2', '.avif', '.pfm', '.hdr', '.ras']
        forms = [('.jpg', (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)), ('.jpg', (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)),
                 *((suffix, ()) for suffix in plain)]
        self.seeds = []
        for suffix, params in forms:
            pixels = picture.astype(np.float32) / 255 if suffix in ('.pfm', '.hdr') else picture
            self.seeds.append(cv2.imencode(suffix, pixels, list(params))[1].tobytes())
        for suffix, pixels in (('.png', picture.astype(np.uint16) * 257), ('.png', picture[..., 0]),
                               ('.jpg', picture[..., 0])):
            self.seeds.append(cv2.imencode(suffix, pixels)[1].tobytes())

    def make(self, rng: np.random.Generator) -> None:
        (self.folder / 'picture').write_bytes(mutate_bytes(rng, self.seeds))

    def feed(self) -> None:
        from tar_vis_core.media.pictures import picture_header, read_picture, sized_picture
        path = self.folder / 'picture'
        picture_header(path)
        read_picture(path, cv2.IMREAD_UNCHANGED)
        sized_picture(path, 40, 60)


class Labels(Target):
    """COCO, YouTube-VIS and results files, field by field."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from pycocotools import mask as coco_mask
        logging.disable(logging.WARNING)    # what is left out is told in a line each
        (folder / 'images').mkdir(exist_ok=True)
        for name in ('1.png', '2.png'):
            cv2.imwrite(str(folder / 'images' / name), np.zeros((30, 40, 3), np.uint8))
        mask = np.zeros((30, 40), np.uint8, order='F')
        mask[5:20, 8:30] = 1
        packed = coco_mask.encode(mask)
        packed = {'size': packed['size'], 'counts': packed['counts'].decode()}
        runs = {'size': [30, 40], 'counts': [100, 50, 1050]}
        polygons = [[5, 5, 30, 5, 30.5, 20.25], [1, 1, 4, 1, 4, 4, 1, 4]]
        kinds = [{'id': 1, 'name': 'person'}, {'id': 2, 'name': 'cat'}]
        marks = [{'id': n, 'image_id': 1 + n % 2, 'category_id': 1 + n % 2, 'iscrowd': n == 3, 'segmentation': s,
                  'bbox': [1, 2, 3, 4], 'area': 5.0} for n, s in enumerate((polygons, packed, runs, packed, polygons))]
        sides = {'height': 30, 'width': 40}
        self.coco = {'info': {}, 'categories': kinds, 'annotations': marks,
                     'images': [{'id': n, 'file_name': f'{n}.png', **sides} for n in (1, 2)]}
        tracks = [{'id': n, 'video_id': n, 'category_id': n, 'segmentations': [packed, None, runs]} for n in (1, 2)]
        self.ytvis = {'categories': kinds, 'annotations': tracks, 'videos': [
            {'id': n, 'file_names': [f'v{n}/{t}.jpg' for t in range(3)], 'name': f'v{n}', 'stamps': [1, 2, 3], **sides}
            for n in (1, 2)]}
        self.results = [{'video_id': n, 'score': .5, 'category_id': n, 'segmentations': [packed, None, runs]}
                        for n in (1, 2)]
        (folder / 'truth.json').write_text(json.dumps(self.ytvis))

    def make(self, rng: np.random.Generator) -> None:
        for name, content in (('coco', self.coco), ('ytvis', self.ytvis), ('results', self.results)):
            (self.folder / f'{name}.json').unlink(missing_ok=True)
            if rng.random() < .5:
                (self.folder / f'{name}.json').write_bytes(mutate_json(rng, content))

    def feed(self) -> None:
        from pycocotools import mask as coco_mask

        from tar_vis_core.data.inspection import describe, open_set
        from tar_vis_core.data.ytvis import load_ytvis
        from tar_vis_core.evaluation.results_json import categories_of, read_results
        path = self.folder / 'coco.json'
        if path.is_file():
            answered(describe, answered(open_set, path))
        path = self.folder / 'ytvis.json'
        for record in (answered(load_ytvis, path, pictures=False) or []) if path.is_file() else ():
            for track in record.tracks:
                for rle in filter(None, track.rles):
                    coco_mask.decode(rle)
        path, truth = self.folder / 'results.json', self.folder / 'truth.json'
        if path.is_file():
            read_results(path, load_ytvis(truth, pictures=False), categories_of(truth))


def answered(function, *args, **options):
    """What a function gives; None if an argument is None or it ends in an error of the project's own."""
    try:
        return None if None in args[:1] else function(*args, **options)
    except TarVisError as error:
        check_line(error)
        return None


def check_line(error: Exception) -> None:
    """Raise AssertionError if a message is not one line fit for a terminal."""
    text = str(error)
    assert text and '\n' not in text, f'no one-line message: {text!r}'
    assert 'memory ran out' not in text, text


class Checkpoints(Target):
    """Pickles and zip files of torch, and safetensors."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch
        from safetensors.torch import save
        model = {'a.weight': torch.ones(3, 4), 'b': torch.arange(5), 'c': torch.nn.Parameter(torch.zeros(2)),
                 'd': torch.ones(6).bfloat16()}
        content = {'model': model, 'epoch': 3, 'optimizer': {'state': {0: torch.ones(2)}}}
        stored = save({'a': torch.ones(3), 'b': torch.zeros(2, 2)}, {'kind': 'model', 'preset': 'nano'})
        self.seeds = {'zip.pth': [], 'stream.pkl': [], 'a.safetensors': [stored]}
        for zipped in (True, False):
            data = io.BytesIO()
            torch.save(content, data, _use_new_zipfile_serialization=zipped)
            self.seeds['zip.pth' if zipped else 'stream.pkl'].append(data.getvalue())
        arrays = {name: value.detach().float().numpy() for name, value in model.items()}
        self.seeds['stream.pkl'] += [pickle.dumps({'model': arrays}, protocol) for protocol in (0, 2, 4, 5)]

    def make(self, rng: np.random.Generator) -> None:
        for name in self.seeds:
            (self.folder / name).unlink(missing_ok=True)
        name = list(self.seeds)[rng.integers(len(self.seeds))]
        (self.folder / name).write_bytes(mutate_bytes(rng, self.seeds[name]))

    def feed(self) -> None:
        from tar_vis_core.weights.loading import read_header, read_tensors
        from tar_vis_core.weights.unpickle import read_checkpoint
        path = next(path for path in self.folder.iterdir() if path.name in self.seeds)
        if path.suffix == '.safetensors':
            read_header(path)
            read_tensors(path)
        else:
            read_checkpoint(path)


class Messages(Target):
    """Images and masks as messages; their fields are of any value that ROS lets through."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from tar_vis_ros.conversions.images import ENCODINGS
        self.answers = (TarVisError, ValueError)
        self.encodings = [*ENCODINGS, '', 'rgb9', '8UC3 ', 'x' * 300, 'rgb8\n']
        self.pictures = Pictures(folder).seeds

    def make(self, rng: np.random.Generator) -> None:
        kind = ('image', 'compressed', 'mask')[rng.integers(3)]
        low = int(rng.choice([2, 8, 64]))
        fields = {name: int(rng.integers(low)) if rng.random() < .8 else NUMBERS[rng.integers(len(NUMBERS))] % 2**32
                  for name in ('height', 'width', 'step', 'x', 'y', 'area')}
        data = mutate_bytes(rng, self.pictures) if kind == 'compressed' else rng.bytes(
            int(rng.integers(1, 5)) * fields['height'] * fields['width'] if fields['height'] * fields['width'] < 5000
            else int(rng.integers(500)))
        if rng.random() < .5 and fields['width'] < 100:
            fields['step'] = fields['width'] * int(rng.choice([1, 2, 3, 4, 6, 8]))
        runs = [int(rng.integers(40)) if rng.random() < .9 else NUMBERS[rng.integers(len(NUMBERS))] % 2**32
                for _ in range(int(rng.integers(6)))]
        roi = [int(rng.integers(1 + min(fields[side], 100))) for side in ('height', 'width')]
        if rng.random() < .7:       # fill the roi
            runs = [min(run, 40) for run in runs]
            runs.append(max(0, roi[0] * roi[1] - sum(runs)))
        text = ('jpeg', 'png', 'bgr8; jpeg compressed bgr8', 'bayer_rggb8; png compressed bayer_rggb8',
                'rgb8; png compressed rgb8', '16UC1; png compressed ', 'mono16; compressedDepth png',
                '')[rng.integers(8)]
        (self.folder / 'data').write_bytes(data)
        (self.folder / 'fields.json').write_text(json.dumps({
            'kind': kind, 'encoding': self.encodings[rng.integers(len(self.encodings))], 'format': text, 'runs': runs,
            'roi': roi, 'score': (.5, 'nan', 'inf', -1, 2)[rng.integers(5)], 'status': int(rng.integers(5)),
            'bigendian': int(rng.integers(2)), **fields}))

    def feed(self) -> None:
        from array import array

        from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest

        from tar_vis_ros.conversions.images import to_rgb
        from tar_vis_ros.conversions.label_images import label_image
        from tar_vis_ros.conversions.messages import decode_instances
        from tar_vis_ros.msg import InstanceMask, InstanceMaskArray
        given, data = json.loads((self.folder / 'fields.json').read_text()), (self.folder / 'data').read_bytes()
        if given['kind'] == 'image':
            to_rgb(Image(height=given['height'], width=given['width'], encoding=given['encoding'], step=given['step'],
                         is_bigendian=given['bigendian'], data=array('B', data)))
        elif given['kind'] == 'compressed':
            to_rgb(CompressedImage(format=given['format'], data=array('B', data)))
        else:
            sides = {name: min(given[name], 4000) for name in ('height', 'width')}
            height, width = given['roi']
            roi = RegionOfInterest(x_offset=given['x'], y_offset=given['y'], height=height, width=width)
            instance = InstanceMask(roi=roi, area=given['area'], score=float(given['score']), status=given['status'],
                                    runs=array('I', given['runs']))
            message = InstanceMaskArray(instances=[instance] * 2, **sides)
            found = decode_instances(message)
            label_image(found, **sides)
            found[0].mask(**sides)


class Bags(Target):
    """rosbag2 folders in both storages, also compressed: the storage, the metadata, and files alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from rclpy.serialization import serialize_message
        from rosbags.rosbag2 import CompressionFormat, CompressionMode, Writer
        from sensor_msgs.msg import Image

        from tar_vis_ros.bags.maker import BagOptions, write_images
        from tar_vis_ros.bags.writer import STORAGES, known_types
        self.seeds: dict[str, dict[str, bytes]] = {}
        pictures = [np.full((8, 12, 3), value, np.uint8) for value in (10, 90, 200)]
        bag = folder / 'seed'
        for storage in STORAGES:
            for compressed in (False, True):
                write_images(bag, pictures, BagOptions(storage=storage, compressed=compressed))
                self._keep(f'{storage}_{compressed}', bag)
            for mode in (CompressionMode.FILE, CompressionMode.MESSAGE):
                writer = Writer(bag, version=9, storage_plugin=STORAGES[storage])
                writer.set_compression(mode, CompressionFormat.ZSTD)
                with writer:
                    image = writer.add_connection('/image', 'sensor_msgs/msg/Image', typestore=known_types())
                    for stamp in range(3):
                        writer.write(image, stamp, serialize_message(Image()))
                self._keep(f'{storage}_{mode.name}', bag)

    def _keep(self, name: str, bag: Path) -> None:
        self.seeds[name] = {path.name: path.read_bytes() for path in bag.iterdir()}
        shutil.rmtree(bag)

    def make(self, rng: np.random.Generator) -> None:
        shutil.rmtree(self.folder / 'bag', ignore_errors=True)
        (self.folder / 'bag').mkdir()
        parts = dict(list(self.seeds.values())[rng.integers(len(self.seeds))])
        if rng.random() < .3:
            parts.pop('metadata.yaml')
        name = list(parts)[rng.integers(len(parts))]
        parts[name] = mutate_bytes(rng, [parts[name]])
        for name, content in parts.items():
            (self.folder / 'bag' / name).write_bytes(content)

    def feed(self) -> None:
        from tar_vis_ros.bags.reader import ImageBag
        for path in (self.folder / 'bag', *(self.folder / 'bag').glob('bag*')):
            answered(self.read, path, ImageBag)

    @staticmethod
    def read(path: Path, bag_type) -> int:
        with bag_type(path) as bag:
            return sum(1 for _ in bag.images())


TARGETS: dict[str, type[Target]] = {'pictures': Pictures, 'labels': Labels, 'checkpoints': Checkpoints,
                                    'messages': Messages, 'bags': Bags}
