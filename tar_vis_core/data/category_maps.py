"""COCO categories that stand for classes of the video sets, for pseudo-videos made of COCO's stills.

Source: the tables that DVIS and DVIS++ train with. A COCO category that is not here, such as the computer's mouse,
is left out.
"""

from __future__ import annotations

SHARED = ('person', 'airplane', 'boat', 'cat', 'dog', 'horse', 'cow', 'elephant', 'bear', 'zebra', 'giraffe')
YOUTUBE_VIS = ('train', 'truck', 'snowboard', 'skateboard', 'surfboard', 'tennis racket')

# class set of videos: {COCO category: its class}
FROM_COCO = {
    'youtube_vis_2019': {
        **{name: name for name in SHARED + YOUTUBE_VIS},
        'bicycle': 'motorbike', 'motorcycle': 'motorbike', 'car': 'sedan', 'skis': 'snowboard'},
    'youtube_vis_2021': {
        **{name: name for name in (*SHARED, *YOUTUBE_VIS, 'bird', 'car')},
        'bicycle': 'motorbike', 'motorcycle': 'motorbike', 'frisbee': 'flying disc', 'skis': 'snowboard'},
    'ovis': {
        **{name: name for name in (*SHARED, 'bicycle', 'motorcycle', 'sheep')},
        'car': 'vehicle', 'bus': 'vehicle', 'truck': 'vehicle'}}
