"""Made-up videos without limit, with exact truth: crowds of look-alikes that overlap, occlude, leave and return.

In a clip several bodies share class, texture and colours. Neither appearance nor position alone tells them apart, so
a model has to group what belongs together. Sizes stay moderate (12 to 40 % of the short side) and every
edge is shaded, so that a person who looks closely can tell. The background shows shards of the same textures, which
are no instances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from torch.utils.data import Dataset

from tar_vis_core.data import transforms as tf
from tar_vis_core.data.clip_times import check_canvas, check_gaps, draw_times
from tar_vis_core.data.pseudo_video import align_clip, draw_amplitude
from tar_vis_core.data.shapes import TILE, Shape, draw_tile
from tar_vis_core.data.transforms import CameraFaults, Sample, Scene
from tar_vis_core.models.class_sets import CROWD

WORLD = 1.5                     # side of the background over that of the canvas
SHUTTER = 0.5                   # fraction of a frame's time during which light falls in


@dataclass(frozen=True)
class Body:
    """One instance of a clip of T frames; lengths in pixels of the canvas."""

    shape: Shape
    look: int                   # index of its texture
    diameter: float
    places: np.ndarray          # (T, 3) x, y, turn in radians, in the world
    phases: np.ndarray          # (T,) articulation, radians
    depths: np.ndarray          # (T,) the greater lies in front
    patch: np.ndarray           # (2,) the part of the texture it is cut from

    def pose(self, frame: int) -> np.ndarray:
        """Return the 3x3 matrix from the outline's units to the world."""
        x, y, turn = self.places[frame]
        c, s = self.diameter / 2 * math.cos(turn), self.diameter / 2 * math.sin(turn)
        return np.array([[c, -s, x], [s, c, y], [0, 0, 1]])


@dataclass(frozen=True)
class Crowd:
    """All that a clip shows, before it is drawn."""

    bodies: list[Body]
    looks: list[np.ndarray]     # texture tiles
    background: np.ndarray      # (WORLD h, WORLD w, 3) uint8
    camera: list[np.ndarray]    # 3x3 per frame, world to canvas
    rim: float                  # how dark the edges are, 0..1


def smooth_offsets(rng: np.random.Generator, frames: int, speed: float, reach: float) -> np.ndarray:
    """Return smooth offsets ``(frames,)`` that change by at most ``speed`` per frame and are 0 in a random frame.

    They stay within ``2 reach`` however long the clip is, so a body that leaves comes back.
    """
    places = reach * np.sin(min(speed / reach, 1.0) * np.arange(frames) + rng.uniform(0, 2 * math.pi))
    return places - places[rng.integers(frames)]


def draw_camera(rng: np.random.Generator, frames: int, size: tuple[int, int], amplitude: float) -> list[np.ndarray]:
    """Return a pan, zoom and turn about the canvas's centre with some shake; ``amplitude`` in pixels a frame."""
    centre, short, radius = ((size[1] - 1) / 2, (size[0] - 1) / 2), min(size), math.hypot(*size) / 2
    heading, shake = rng.uniform(0, 2 * math.pi), amplitude * rng.choice((0.0, 0.1, 0.25))
    path = np.stack([smooth_offsets(rng, frames, amplitude * abs(math.cos(heading)), 0.15 * short),
                     smooth_offsets(rng, frames, amplitude * abs(math.sin(heading)), 0.15 * short),
                     smooth_offsets(rng, frames, amplitude / radius * rng.uniform(0, 0.8), 0.12),
                     smooth_offsets(rng, frames, amplitude / radius * rng.uniform(0, 0.8), 0.12)], 1)
    path += shake * rng.normal(0, 1, path.shape) * (1, 1, 0.5 / radius, 0.5 / radius)
    about = tf.translation(*centre), tf.translation(-centre[0], -centre[1])
    return [about[0] @ np.diag([math.exp(zoom), math.exp(zoom), 1]) @ about[1]
            @ tf.rotation(math.degrees(turn), centre) @ tf.translation(x, y) for x, y, zoom, turn in path]


def draw_places(rng: np.random.Generator, kinds: np.ndarray, diameters: np.ndarray, size: tuple[int, int]
                ) -> np.ndarray:
    """Return centres ``(n, 2)``. Most bodies lie half over an earlier one, of their own kind if there is one."""
    centres = np.zeros((len(kinds), 2))
    extent = np.array(size[::-1], float)
    for i, kind in enumerate(kinds):
        same = np.flatnonzero(kinds[:i] == kind)
        for _ in range(12):
            if i and (rng.random() < 0.8 or len(same) == 1):
                near = rng.choice(same) if len(same) and rng.random() < 0.75 else rng.integers(i)
                angle, apart = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 0.75)
                step = apart * (diameters[i] + diameters[near]) / 2
                centres[i] = centres[near] + step * np.array([math.cos(angle), math.sin(angle)])
            else:
                centres[i] = extent * rng.uniform(0.1, 0.9, 2)
            gaps = np.hypot(*(centres[:i] - centres[i]).T) / (diameters[:i] + diameters[i]) * 2
            if (np.abs(centres[i] / extent - 0.5) < 0.53).all() and (gaps > 0.38).all():
                break
    return centres


def draw_crowd(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Crowd:
    """Return a random clip on a canvas ``size``: 4 to 14 bodies of one to three kinds (class and look) that move."""
    short, count = min(size), int(rng.integers(4, 15))
    kinds = int(rng.integers(1, 2 + min(2, count // 4)))
    looks = [draw_tile(rng) for _ in range(int(rng.integers(1, kinds + 1)))]
    labels = rng.integers(len(CROWD), size=kinds)
    look_of = rng.integers(len(looks), size=kinds)                 # kinds of one look are told apart by shape alone
    kind_of = np.sort(np.concatenate([np.arange(kinds).repeat(2), rng.integers(kinds, size=count - 2 * kinds)]))
    amplitude = draw_amplitude(rng, size, still=0.15)
    diameters = np.clip(rng.uniform(0.16, 0.34) * np.exp(rng.normal(0, 0.15, count)), 0.12, 0.4) * short
    centres = draw_places(rng, kind_of, diameters, size)
    restless = rng.random() < 0.4                                  # the order in depth changes
    bodies = []
    for kind, diameter, centre, depth in zip(kind_of, diameters, centres, rng.permutation(count), strict=True):
        speed, reach = amplitude * math.exp(rng.normal(0, 0.5)), short * rng.uniform(0.1, 0.4)
        heading = rng.uniform(0, 2 * math.pi)
        places = np.stack([centre[0] + smooth_offsets(rng, frames, speed * abs(math.cos(heading)), reach),
                           centre[1] + smooth_offsets(rng, frames, speed * abs(math.sin(heading)), reach),
                           rng.uniform(0, 2 * math.pi) + smooth_offsets(rng, frames, 2 * speed / short, 0.6)], 1)
        depths = depth + smooth_offsets(rng, frames, restless * 10 * amplitude / short, 3.0)
        phases = min(8 * speed / short, 0.7) * np.arange(frames)
        bodies.append(Body(Shape.draw(rng, int(labels[kind])), int(look_of[kind]), diameter, places, phases, depths,
                           rng.uniform(0.2, 0.8, 2) * TILE))
    order = rng.permutation(count)                                 # an index says nothing of kind or place
    rim = rng.uniform(0.12, 0.45)
    return Crowd([bodies[i] for i in order], looks, draw_background(rng, size, looks, rim),
                 draw_camera(rng, frames, size, amplitude * rng.uniform(0, 1)), rim)


def draw_background(rng: np.random.Generator, size: tuple[int, int], looks: list[np.ndarray], rim: float) -> np.ndarray:
    """Return a textured ground, larger than the canvas, with angular shards of the bodies' own textures."""
    height, width = round(WORLD * size[0]), round(WORLD * size[1])
    short = min(size)
    ground = cv2.warpAffine(draw_tile(rng, 0.6), _texture(rng.uniform(0, TILE, 2), 1.7 * short / 192, 0)[:2],
                            (width, height), borderMode=cv2.BORDER_REFLECT)
    ids = np.zeros((height, width), np.int16)
    for _ in range(int(rng.integers(6, 24))):
        corners = rng.integers(3, 5)
        angle = np.sort(rng.uniform(0, 2 * math.pi) + 2 * math.pi / corners * (np.arange(corners)
                                                                              + rng.uniform(-0.3, 0.3, corners)))
        centre, radius = rng.random(2) * (width, height), short * rng.uniform(0.05, 0.14)
        points = centre + radius * np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.5, 1.2, (corners, 1))
        place = tf.translation(*centre) @ _texture(rng.uniform(0.2, 0.8, 2) * TILE, short / 192, angle[0])
        draw_outline(ground, ids, 0, points, looks[rng.integers(len(looks))], place, rim, radius, np.zeros(2))
    return ground


def _texture(patch: np.ndarray, scale: float, turn: float) -> np.ndarray:
    """Return the 3x3 matrix from a tile to the piece that is cut out of it, about the point ``patch`` of the tile."""
    c, s = scale * math.cos(turn), scale * math.sin(turn)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ tf.translation(*-patch)


def draw_outline(image: np.ndarray, ids: np.ndarray, index: int, points: np.ndarray, tile: np.ndarray,
                 texture: np.ndarray, rim: float, diameter: float, streak: np.ndarray) -> None:
    """Draw one textured outline over ``image``, in place, and write ``index`` to ``ids`` where it covers half a pixel.

    ``points (n, 2)`` x, y; ``texture`` maps the tile to the image; ``streak`` is the motion (x, y) while the shutter
    is open, which smears the picture, not the ids.
    """
    pad = 2 + np.ceil(np.abs(streak)) / 2
    left, top = np.maximum(np.floor(points.min(0)) - pad, 0).astype(int)
    right, bottom = np.minimum(np.ceil(points.max(0)) + pad + 1, ids.shape[::-1]).astype(int)
    width, height = int(right - left), int(bottom - top)
    if width <= 0 or height <= 0:
        return
    twice = np.zeros((2 * height, 2 * width), np.uint8)             # twice the resolution, sixteenths of a pixel
    corners = np.rint(((points - (left, top) + 0.5) * 2 - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(twice, [corners], 255, shift=4)
    alpha = cv2.resize(twice, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    inside = alpha >= 0.5
    colour = cv2.warpAffine(tile, (tf.translation(-left, -top) @ texture)[:2], (width, height),
                            borderMode=cv2.BORDER_REFLECT)
    depth = cv2.GaussianBlur(alpha, (0, 0), max(1.0, 0.035 * diameter), borderType=cv2.BORDER_REPLICATE)
    shade = np.clip(1 - rim * (2 - 2 * depth), 0, 1)                # 1 - rim at a straight edge, 1 within
    colour = (colour * shade[..., None]).astype(np.uint8)
    if (length := float(np.abs(streak).max())) >= 1.5:
        kernel = line_kernel(streak, int(length) | 1)
        alpha = cv2.filter2D(alpha, -1, kernel, borderType=cv2.BORDER_REPLICATE)
        colour = cv2.filter2D(colour, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    box = np.s_[top:bottom, left:right]
    image[box] = cv2.blendLinear(colour, np.ascontiguousarray(image[box]), alpha, 1 - alpha)
    ids[box][inside] = index


def line_kernel(streak: np.ndarray, side: int) -> np.ndarray:
    """Return a ``(side, side)`` kernel that smears along ``streak``."""
    kernel, middle = np.zeros((side, side), np.float32), (side - 1) / 2
    end = np.asarray(streak) / np.abs(streak).max() * middle
    first, last = np.rint(middle - end).astype(int), np.rint(middle + end).astype(int)
    cv2.line(kernel, tuple(map(int, first)), tuple(map(int, last)), 1.0)
    return kernel / kernel.sum()


def render(crowd: Crowd, frame: int, size: tuple[int, int]) -> Scene:
    """Draw one frame, back to front; masks hold the visible pixels, empty if a body is not seen."""
    camera, bodies = crowd.camera[frame], crowd.bodies
    before = max(frame - 1, 0)
    after = before + 1 if len(crowd.camera) > 1 else before         # the motion that the shutter sees
    margin = tf.translation(*(-(WORLD - 1) / 2 * np.array(size[::-1])))
    image = cv2.warpAffine(crowd.background, (camera @ margin)[:2], size[::-1], borderMode=cv2.BORDER_REFLECT)
    pan = SHUTTER * (crowd.camera[after] - crowd.camera[before])[:2] @ (size[1] / 2, size[0] / 2, 1)
    if np.abs(pan).max() >= 1.5:
        image = cv2.filter2D(image, -1, line_kernel(pan, int(np.abs(pan).max()) | 1))
    ids = np.full(size, -1, np.int16)
    for index in np.argsort([body.depths[frame] for body in bodies], kind='stable'):
        body = bodies[index]
        pose = camera @ body.pose(frame)
        points = body.shape.outline(body.phases[frame]) @ pose[:2, :2].T + pose[:2, 2]
        unit = 2 / body.diameter * min(size) / 192                  # textures do not grow with the body
        texture = pose @ np.diag([unit, unit, 1]) @ tf.translation(*-body.patch)
        streak = SHUTTER * (crowd.camera[after] @ body.pose(after) - crowd.camera[before] @ body.pose(before))[:2, 2]
        draw_outline(image, ids, int(index), points, crowd.looks[body.look], texture, crowd.rim, body.diameter, streak)
    masks = ids == np.arange(len(bodies), dtype=np.int16)[:, None, None]
    labels = np.array([body.shape.label for body in bodies], np.int64)
    return Scene(image, masks, labels, np.ones(len(bodies), bool),
                 np.zeros(size, bool), np.ones(size, bool), exhaustive=True)


class SynthVideos(Dataset):
    """Clips of ``frames`` samples of class set 'crowd', whose instances stand at the same index in every frame.

    The same (seed, ``epoch``, index) gives the same clip; ``length`` only says when an epoch ends. From frame to frame
    the world advances by one of ``gaps`` (:func:`draw_times`). Epoch and ``size``, the canvas (height, width), may
    change between clips.
    """

    def __init__(self, size: tuple[int, int] = (192, 288), frames: int = 2, *, length: int = 10_000, seed: int = 0,
                 gaps: Sequence[int] = (1,), min_pixels: int = 40, max_instances: int = 14) -> None:
        check_canvas(size, frames)
        self.size, self.frames, self.gaps = size, frames, check_gaps(gaps)
        self.length, self.seed, self.epoch = length, seed, 0
        self.min_pixels, self.max_instances = min_pixels, max_instances

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Sample]:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        times = draw_times(rng, self.frames, self.gaps)
        crowd = draw_crowd(rng, times[-1] + 1, self.size)
        clip = [render(crowd, time, self.size) for time in times]
        fault, flicker = CameraFaults.draw(rng), rng.choice((0.0, 0.02, 0.1))
        fault = CameraFaults(fault.defocus, (1, 1), max(fault.noise, int(rng.choice((0, 2, 4, 8)))), fault.quality)
        for frame in clip:
            frame.image = fault.apply(rng, cv2.transform(frame.image, tf.random_colours(rng, flicker)))
        return [tf.to_sample(frame) for frame in align_clip(clip, self.min_pixels, self.max_instances)]
