"""Class names by data set, in label order; published checkpoints have one of these behind their class head."""

from __future__ import annotations

YOUTUBE_VIS_2019 = (
    'person', 'giant panda', 'lizard', 'parrot', 'skateboard', 'sedan', 'ape', 'dog', 'snake', 'monkey', 'hand',
    'rabbit', 'duck', 'cat', 'cow', 'fish', 'train', 'horse', 'turtle', 'bear', 'motorbike', 'giraffe', 'leopard',
    'fox', 'deer', 'owl', 'surfboard', 'airplane', 'truck', 'zebra', 'tiger', 'elephant', 'snowboard', 'boat', 'shark',
    'mouse', 'frog', 'eagle', 'earless seal', 'tennis racket')

YOUTUBE_VIS_2021 = (
    'airplane', 'bear', 'bird', 'boat', 'car', 'cat', 'cow', 'deer', 'dog', 'duck', 'earless seal', 'elephant', 'fish',
    'flying disc', 'fox', 'frog', 'giant panda', 'giraffe', 'horse', 'leopard', 'lizard', 'monkey', 'motorbike',
    'mouse', 'parrot', 'person', 'rabbit', 'shark', 'skateboard', 'snake', 'snowboard', 'squirrel', 'surfboard',
    'tennis racket', 'tiger', 'train', 'truck', 'turtle', 'whale', 'zebra')

OVIS = (
    'person', 'bird', 'cat', 'dog', 'horse', 'sheep', 'cow', 'elephant', 'bear', 'zebra', 'giraffe', 'poultry',
    'giant panda', 'lizard', 'parrot', 'monkey', 'rabbit', 'tiger', 'fish', 'turtle', 'bicycle', 'motorcycle',
    'airplane', 'boat', 'vehicle')

COCO = (
    'person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat', 'traffic light',
    'fire hydrant', 'stop sign', 'parking meter', 'bench', 'bird', 'cat', 'dog', 'horse', 'sheep', 'cow', 'elephant',
    'bear', 'zebra', 'giraffe', 'backpack', 'umbrella', 'handbag', 'tie', 'suitcase', 'frisbee', 'skis', 'snowboard',
    'sports ball', 'kite', 'baseball bat', 'baseball glove', 'skateboard', 'surfboard', 'tennis racket', 'bottle',
    'wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl', 'banana', 'apple', 'sandwich', 'orange', 'broccoli',
    'carrot', 'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch', 'potted plant', 'bed', 'dining table', 'toilet',
    'tv', 'laptop', 'mouse', 'remote', 'keyboard', 'cell phone', 'microwave', 'oven', 'toaster', 'sink',
    'refrigerator', 'book', 'clock', 'vase', 'scissors', 'teddy bear', 'hair drier', 'toothbrush')

# The Pascal VOC classes under their COCO names; 0 is background.
VOC = ('background', 'airplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
       'dining table', 'dog', 'horse', 'motorcycle', 'person', 'potted plant', 'sheep', 'couch', 'train', 'tv')

# Bodies of the made-up videos (data/synth.py): the outline tells the class.
CROWD = ('disc', 'star', 'leaf', 'worm')

CLASS_SETS = {'youtube_vis_2019': YOUTUBE_VIS_2019, 'youtube_vis_2021': YOUTUBE_VIS_2021, 'ovis': OVIS, 'coco': COCO,
              'crowd': CROWD}


# What others call some of these: Pascal VOC, and OVIS for the last.
ALIASES = {'aeroplane': 'airplane', 'diningtable': 'dining table', 'motorbike': 'motorcycle',
           'pottedplant': 'potted plant', 'sofa': 'couch', 'tvmonitor': 'tv', 'vehical': 'vehicle'}


def plain_name(name: str) -> str:
    """Return one spelling for the different names that data sets give a class; for comparisons, on both sides."""
    name = name.lower().replace('_', ' ')
    return ALIASES.get(name.replace(' ', ''), name)
