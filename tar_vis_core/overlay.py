"""Tracked instances drawn on their image: masks, outlines and 'name #id score' labels."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from tar_vis_core.instances import Instance, TrackStatus

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def track_colour(track_id: int) -> tuple[int, int, int]:
    """The RGB colour of a track id: always the same, and neighbouring ids far apart in hue."""
    hue = (track_id * 0.618033988749895) % 1.0
    saturation, value = ((0.80, 1.00), (0.95, 0.85), (0.55, 1.00))[(track_id // 5) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_overlay(rgb: np.ndarray, instances: Sequence[Instance], *, opacity: float = 0.45,
                 labels: bool = True, lost: bool = False) -> np.ndarray:
    """A copy of the image with the instances on it, the best score on top.

    ``rgb`` is ``(H, W, 3)`` uint8, the image that the instances were found in. ``lost`` adds the
    last box of LOST tracks. Line and letter sizes follow the image's size.
    """
    picture = np.array(rgb, order='C')
    unit = min(picture.shape[:2]) / 480
    line = max(1, round(2 * unit))
    visible = sorted((i for i in instances if i.status != TrackStatus.LOST), key=lambda i: i.score)
    for instance in visible:
        _draw_mask(picture, instance, opacity, line)
    drawn = visible
    if lost:
        gone = [i for i in instances if i.status == TrackStatus.LOST]
        for instance in gone:
            x, y, w, h = instance.box
            cv2.rectangle(picture, (x, y), (x + w - 1, y + h - 1), track_colour(instance.track_id), 1)
        drawn = gone + visible
    if labels:
        taken: list[tuple[int, int, int, int]] = []
        for instance in reversed(drawn):   # the best score chooses its place first
            _draw_label(picture, instance, unit, taken)
    return picture


def _draw_mask(picture: np.ndarray, instance: Instance, opacity: float, line: int) -> None:
    x, y, w, h = instance.box
    colour = track_colour(instance.track_id)
    crop = instance.crop()
    region = picture[y:y + h, x:x + w]
    region[crop] = (region[crop] * (1 - opacity) + np.array(colour) * opacity + 0.5).astype(np.uint8)
    outlines, _ = cv2.findContours(crop.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
    cv2.drawContours(picture, outlines, -1, colour, line, cv2.LINE_AA)


def _draw_label(picture: np.ndarray, instance: Instance, unit: float, taken: list[tuple[int, int, int, int]]) -> None:
    gone = instance.status == TrackStatus.LOST
    text = f'{instance.class_name} #{instance.track_id} ' + ('lost' if gone else f'{instance.score:.2f}')
    scale, weight = max(0.35, 0.55 * unit), max(1, round(1.2 * unit))
    (text_width, text_height), below = cv2.getTextSize(text, _FONT, scale, weight)
    margin = max(2, round(3 * unit))
    width, height = text_width + 2 * margin, text_height + below + 2 * margin
    x, y = _free_place(instance.box, width, height, picture.shape, taken)
    taken.append((x, y, width, height))
    colour = track_colour(instance.track_id)
    cv2.rectangle(picture, (x, y), (x + width - 1, y + height - 1), colour, cv2.FILLED)
    red, green, blue = colour
    ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else (255, 255, 255)
    cv2.putText(picture, text, (x + margin, y + margin + text_height), _FONT, scale, ink, weight, cv2.LINE_AA)


def _free_place(box: tuple[int, int, int, int], width: int, height: int, shape: tuple[int, ...],
                taken: Sequence[tuple[int, int, int, int]]) -> tuple[int, int]:
    """Top left corner of a label: above its box, or below what is there already, inside the image where it fits."""
    lowest = max(0, shape[0] - height)
    x = max(0, min(box[0], shape[1] - width))
    y = max(0, min(box[1] - height, lowest))

    def covers(place: tuple[int, int, int, int]) -> bool:
        return x < place[0] + place[2] and place[0] < x + width and y < place[1] + place[3] and place[1] < y + height

    for _ in range(len(taken)):
        hit = next((place for place in taken if covers(place)), None)
        if hit is None or hit[1] + hit[3] > lowest:
            break
        y = hit[1] + hit[3]
    return x, y
