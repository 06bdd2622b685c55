"""Clips made from stills: a camera that moves over a picture and objects that move in it, with exact truth.

Every frame is warped once from the source picture, so masks and identities are those of the still. The amplitude of
the motion is drawn from nothing (a camera on a wall) to a twelfth of the picture a frame (a robot that turns).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from torch.utils.data import Dataset

from tar_vis_core.data import transforms as tf
from tar_vis_core.data.clip_times import check_canvas, check_gaps, draw_times
from tar_vis_core.data.coco import CocoDataset
from tar_vis_core.data.transforms import Sample, Scene


@dataclass(frozen=True)
class Mover:
    """A scene whose instances are pasted into the clip and move on their own."""

    donor: Scene
    placement: np.ndarray          # 3x3, donor to canvas, before motion
    path: list[np.ndarray]         # 3x3 per frame, canvas to canvas
    behind: bool = False           # behind the still's own instances


def draw_amplitude(rng: np.random.Generator, size: tuple[int, int], still: float = 0.2) -> float:
    """Return typical motion, pixels a frame: 0 with odds ``still``, else log-uniform, 0.1 to 8 % of the short edge."""
    if rng.random() < still:
        return 0.0
    return min(size) * math.exp(rng.uniform(math.log(0.001), math.log(0.08)))


def draw_path(rng: np.random.Generator, times: Sequence[int], size: tuple[int, int], amplitude: float,
              perspective: bool = False) -> list[np.ndarray]:
    """Return a 3x3 matrix for each of the ``times`` (frames, rising): a smooth pan, zoom and turn with some shake.

    The turn is about the canvas's centre. ``amplitude`` is the typical motion in pixels per frame; with 0 all matrices
    are the identity. A random frame of the clip keeps its place.
    """
    (height, width), frames = size, times[-1] + 1
    radius = math.hypot(height, width) / 2
    heading = rng.uniform(0, 2 * math.pi)
    speed = amplitude * np.array([math.cos(heading), 0.6 * math.sin(heading)])
    rates = np.array([*speed, *(amplitude / radius * rng.normal(0, 0.6, 2)),
                      *(amplitude / radius * rng.normal(0, 0.15 if perspective else 0.0, 2))])
    shake = np.array([0.25, 0.25, 0.2 / radius, 0.2 / radius, 0, 0]) * amplitude
    steps = rates * rng.uniform(0.6, 1.4, (frames, 1)) + shake * rng.normal(0, 1, (frames, 6))
    places = np.cumsum(steps, 0)
    places -= places[rng.integers(len(places))]
    centre = ((width - 1) / 2, (height - 1) / 2)
    path = []
    for x, y, zoom, turn, tilt_x, tilt_y in places[list(times)]:
        zoom, tilt = math.exp(np.clip(zoom, -1, 1)), np.clip((tilt_x, tilt_y), -0.3, 0.3) / radius
        lens = np.array([[zoom, 0, 0], [0, zoom, 0], [*tilt, 1]])
        about = tf.translation(*centre) @ lens @ tf.translation(-centre[0], -centre[1])
        path.append(about @ tf.rotation(math.degrees(turn), centre) @ tf.translation(x, y))
    return path


def render_clip(scene: Scene, view: np.ndarray, camera: list[np.ndarray], movers: list[Mover],
                size: tuple[int, int]) -> list[Scene]:
    """Return the frames of a clip. Instances keep their index: the scene's, then each mover's; unseen ones are empty.

    ``view`` maps the still to the canvas. A mover's path moves it in the world; then ``camera`` moves everything.
    """
    frames = []
    for index, shot in enumerate(camera):
        frame = tf.warp_scene(scene, shot @ view, size)
        for mover in movers:
            placed = tf.warp_scene(mover.donor, shot @ mover.path[index] @ mover.placement, size)
            frame = tf.paste(frame, placed, mover.behind)
        frames.append(frame)
    return frames


def align_clip(frames: list[Scene], min_pixels: int, max_instances: int) -> list[Scene]:
    """Keep the instances seen somewhere in the clip (the largest at most), in one order for all frames.

    A mask with fewer pixels than ``min_pixels`` is emptied in that frame and its pixels are ignored there; so are those
    of an instance that is left out.
    """
    areas = np.array([[np.count_nonzero(mask) for mask in frame.masks] for frame in frames])
    areas = np.where(areas < min_pixels, 0, areas).reshape(len(frames), -1)
    order = np.argsort(-areas.sum(0), kind='stable')[:max_instances]
    kept = np.sort(order[areas.sum(0)[order] > 0])
    aligned = []
    for frame, seen in zip(frames, areas, strict=True):
        shown = np.zeros(len(seen), bool)
        shown[kept] = seen[kept] > 0
        masks = frame.masks & shown[:, None, None]
        ignore = (frame.ignore | frame.masks[~shown].any(0)) & ~masks.any(0)
        aligned.append(replace(frame, masks=masks, ignore=ignore).select(kept))
    return aligned


class PseudoVideoDataset(Dataset):
    """Clips of ``frames`` samples whose masks, labels and trust stand at the same index in every frame.

    A clip advances by one of ``gaps`` from frame to frame (:func:`draw_times`). Seed, epoch, canvas, instance limits
    and the stills themselves are those of ``stills``. The same (seed, epoch, index) gives the same clip.
    """

    def __init__(self, stills: CocoDataset, frames: int = 2, *, movers: float = 0.6,
                 still_camera: float = 0.25, gaps: Sequence[int] = (1,)) -> None:
        check_canvas(stills.size, frames)
        self.stills, self.frames, self.gaps = stills, frames, check_gaps(gaps)
        self.movers, self.still_camera = movers, still_camera

    def __len__(self) -> int:
        return len(self.stills)

    def __getitem__(self, index: int) -> list[Sample]:
        rng, size = self.stills.rng(index), self.stills.size
        scene = self.stills.records[index].scene()
        view = tf.random_view(rng, scene, size, fill=rng.random() < 0.7)
        times = draw_times(rng, self.frames, self.gaps)
        camera = draw_path(rng, times, size, draw_amplitude(rng, size, self.still_camera), rng.random() < 0.3)
        movers = self.draw_movers(rng, times, size) if rng.random() < self.movers else []
        clip = render_clip(scene, view, camera, movers, size)
        colours = tf.random_colours(rng) if rng.random() < 0.8 else np.eye(3, 4)
        flicker, camera_fault = rng.choice((0.0, 0.02, 0.1)), tf.CameraFaults.draw(rng)
        grain = int(rng.choice((0, 2, 4)))                   # a resting camera's frames still differ by its noise
        camera_fault = replace(camera_fault, noise=max(camera_fault.noise, grain))
        for frame in clip:
            change = tf.random_colours(rng, flicker)
            change = change[:, :3] @ colours + np.pad(change[:, 3:], ((0, 0), (3, 0)))
            frame.image = camera_fault.apply(rng, cv2.transform(frame.image, change))
        return [tf.to_sample(frame) for frame in align_clip(clip, self.stills.min_pixels, self.stills.max_instances)]

    def draw_movers(self, rng: np.random.Generator, times: list[int], size: tuple[int, int]) -> list[Mover]:
        """Return one to three groups to paste. Sometimes all are copies of one: only position tells them apart."""
        movers: list[Mover] = []
        copies, donor = rng.random() < 0.25, None
        for _ in range(int(rng.integers(2, 4) if copies else rng.integers(1, 4))):
            donor = donor if copies and donor is not None else self.stills.draw_donor(rng, most=2)
            if donor is None:
                break
            path = draw_path(rng, times, size, draw_amplitude(rng, size, still=0.15))
            movers.append(Mover(donor, tf.random_placement(rng, donor, size), path, bool(rng.random() < 0.3)))
        return movers
