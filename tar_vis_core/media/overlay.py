"""Tracked instances drawn on their image: masks, outlines, 'name #id score' labels and the paths that they came."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from tar_vis_core.instances import FrameResult, Instance, TrackStatus

_FONT = cv2.FONT_HERSHEY_SIMPLEX
OPACITY = 0.45      # of masks
Polyline = list[tuple[float, float]]    # mask centres x, y in pixels, frame after frame


def track_colour(track_id: int) -> tuple[int, int, int]:
    """Return the RGB colour of a track id: always the same, with neighbouring ids far apart in hue."""
    hue = (track_id * 0.618033988749895) % 1.0
    saturation, value = ((0.80, 1.00), (0.95, 0.85), (0.55, 1.00))[(track_id // 5) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


OUT_OF_SIGHT = 15       # frames, after which a path is no longer drawn


class Trails:
    """The centres of each track's mask in the last frames of one stream. Memory does not grow with time.

    It is kept for drawing only. It need not see every frame: a frame that it missed is a gap in the paths.
    """

    def __init__(self, frames: int = 45):
        """Keep paths over the last ``frames`` frames."""
        self._frames = frames
        self._epoch = -1
        self._centres: dict[int, dict[int, tuple[float, float]]] = {}    # track id: frame index: x, y

    def follow(self, result: FrameResult) -> dict[int, list[Polyline]]:
        """Take the next frame; return each track's paths up to now.

        A path is in pieces where frames lie between. It begins anew where the centre moved by more than the mask's
        larger side: an id that jumps is no object that ran.
        """
        if result.track_epoch != self._epoch:
            self._epoch, self._centres = result.track_epoch, {}
        for instance in result.instances:
            if instance.area:
                path = self._centres.setdefault(instance.track_id, {})
                centre, before = mask_centre(instance), path.get(result.frame_index - 1)
                if before is not None and math.dist(centre, before) > max(instance.box[2:]):
                    path.clear()
                path[result.frame_index] = centre
        first, listed = result.frame_index - self._frames, {instance.track_id for instance in result.instances}
        # a track that was there a moment ago keeps its path, one that is over or long out of sight does not
        kept = {track: {index: centre for index, centre in centres.items() if index > first}
                for track, centres in self._centres.items()
                if track in listed and max(centres) >= result.frame_index - OUT_OF_SIGHT}
        self._centres = {track: centres for track, centres in kept.items() if centres}
        return {track: _pieces(centres) for track, centres in self._centres.items()}


def _pieces(centres: Mapping[int, tuple[float, float]]) -> list[Polyline]:
    """Return the centres, given by frame index, cut where an index is missing."""
    pieces: list[Polyline] = []
    for index, centre in centres.items():
        if index - 1 not in centres:
            pieces.append([])
        pieces[-1].append(centre)
    return pieces


def mask_centre(instance: Instance) -> tuple[float, float]:
    """Return the mean x and y of the mask's pixels, from its run lengths. Raise ValueError if the mask is empty."""
    if not instance.area:
        raise ValueError(f'track {instance.track_id} has no mask in this frame')
    x, y, width, _ = instance.box
    rows, columns = np.divmod(np.cumsum(instance.runs, dtype=np.int64), width)   # of the pixel that ends each run
    # sums of row and column numbers over all pixels of the box before that one
    row_sums = width * rows * (rows - 1) // 2 + columns * rows
    column_sums = rows * (width * (width - 1) // 2) + columns * (columns - 1) // 2
    across, down = (float((sums[1::2] - sums[:-1:2]).sum()) / instance.area for sums in (column_sums, row_sums))
    return x + across, y + down


def draw_overlay(rgb: np.ndarray, instances: Sequence[Instance],
                 trails: Mapping[int, Sequence[Polyline]] | None = None) -> np.ndarray:
    """Return a copy of the image with the instances in sight on it, the best score on top.

    ``rgb`` is ``(H, W, 3)`` uint8, the image that the instances were found in. ``trails`` adds the paths that
    :meth:`Trails.follow` returns. Line and letter sizes follow the image's size.
    """
    picture = np.array(rgb, order='C')
    unit = min(picture.shape[:2]) / 480
    line = max(1, round(2 * unit))
    visible = sorted((i for i in instances if i.status != TrackStatus.LOST), key=lambda i: i.score)
    for instance in visible:
        _draw_mask(picture, instance, line)
    for track_id, paths in (trails or {}).items():
        _draw_trail(picture, paths, track_colour(track_id), line)
    taken: list[tuple[int, int, int, int]] = []
    for instance in reversed(visible):   # the best score chooses its place first
        _draw_label(picture, instance, unit, taken)
    return picture


def _draw_mask(picture: np.ndarray, instance: Instance, line: int) -> None:
    x, y, w, h = instance.box
    colour = track_colour(instance.track_id)
    crop, region = instance.crop().view(np.uint8), picture[y:y + h, x:x + w]
    # a table and OpenCV: many times as fast as NumPy, and other threads run meanwhile
    shades = (np.arange(256)[:, None] * (1 - OPACITY) + np.array(colour) * OPACITY + 0.5).astype(np.uint8)
    cv2.copyTo(cv2.LUT(region, shades[None]), crop, region)
    outlines, _ = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    cv2.drawContours(picture, outlines, -1, colour, line, cv2.LINE_AA)


def _draw_trail(picture: np.ndarray, paths: Sequence[Polyline], colour: tuple[int, int, int], line: int) -> None:
    pixels = [np.rint(path).astype(np.int32) for path in paths]
    cv2.polylines(picture, pixels, False, (0, 0, 0), line + 2, cv2.LINE_AA)     # seen on its own mask, too
    cv2.polylines(picture, pixels, False, colour, line, cv2.LINE_AA)


def _draw_label(picture: np.ndarray, instance: Instance, unit: float, taken: list[tuple[int, int, int, int]]) -> None:
    text = f'{instance.class_name} #{instance.track_id} {instance.score:.2f}'
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
    """Return the top left corner of a label: above its box or below other labels, inside the image if it fits."""
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
