"""A simulated hand-held camera over the photographs that scikit-image carries in its package.

These real pictures need no network. The camera pans, zooms and rolls like a hand. The light drifts a little, and the
sensor has a little noise. In each photograph the camera rests for a while.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tar_vis_core.media.readers import FrameReader, SourceError, read_image

SIZE = 640, 480          # width, height of the views
FPS = 10.0
SECONDS = 6.0            # per photograph
REST_S = (2.2, 3.9)      # the camera rests between these seconds of each photograph
BLEND_S = 0.4            # cross-fade into every second photograph; the others begin with a cut
NOISE_SIGMA = 1.2        # grey levels


@dataclass(frozen=True)
class PhotographScene:
    """A photograph and how the camera frames it."""

    file: str
    share: float = 0.9                        # of the largest window that fits into the photograph
    aim: tuple[float, float] = (0.0, 0.0)     # x, y in -1..1: where in the free room the camera points on average


SCENES = (
    PhotographScene('astronaut.png', share=0.9, aim=(-0.2, -0.75)),
    PhotographScene('chelsea.png', share=0.94, aim=(-0.3, 0.0)),
    PhotographScene('coffee.png', share=0.9),
    PhotographScene('motorcycle_left.png', share=0.86),
)


class PhotographReader(FrameReader):
    """640x480 views of the photographs, 6 s each at 10 frames per second; the frames are always the same."""

    name = 'photographs'
    fps = FPS

    def __init__(self) -> None:
        scenes = available_scenes()
        self._photographs = [read_image(path) for _, path in scenes]
        self._hand_held = [HandHeldCamera(scene, 1000 * i) for i, (scene, _) in enumerate(scenes)]
        noise = np.random.default_rng(0).normal(0.0, NOISE_SIGMA, (SIZE[1] + 64, SIZE[0] + 64, 3))
        self._noise = np.rint(noise).astype(np.int16)
        self._per_photograph = round(SECONDS * FPS)
        self.count = self._per_photograph * len(self._photographs)
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def read(self) -> np.ndarray | None:
        if self._next >= self.count:
            return None
        index = self._next
        self._next += 1
        number, frame = divmod(index, self._per_photograph)
        t = frame / FPS
        view = self._view(number, t)
        if number % 2 and t < BLEND_S:
            share = (t + 1 / FPS) / (BLEND_S + 1 / FPS)
            view = share * view + (1 - share) * self._view(number - 1, SECONDS + t)
        top, left = np.random.default_rng((0, index)).integers(0, 64, 2)
        view = view + self._noise[top:top + SIZE[1], left:left + SIZE[0]]
        return np.clip(np.rint(view), 0, 255).astype(np.uint8)

    def _view(self, number: int, t: float) -> np.ndarray:
        """Return the view of a photograph at ``t`` seconds, float32 ``(H, W, 3)``."""
        camera = self._hand_held[number]
        photograph = self._photographs[number]
        view = cv2.warpAffine(photograph, camera.matrix(t, photograph.shape[:2], SIZE), SIZE,
                              flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return view.astype(np.float32) * camera.brightness(t)


class HandHeldCamera:
    """Smooth motion from a few sines with seeded phases; its clock stands still while the camera rests."""

    def __init__(self, scene: PhotographScene, seed: int):
        self._scene = scene
        rng = np.random.default_rng(seed)
        # x, y, zoom, roll: slow sway (0.06-0.16 Hz) and a little tremor (0.8-1.6 Hz)
        self._frequencies = np.concatenate([rng.uniform(0.06, 0.16, (4, 2)), rng.uniform(0.8, 1.6, (4, 1))], axis=1)
        self._phases = rng.uniform(0, 2 * np.pi, (4, 3))
        self._weights = np.array([0.6, 0.36, 0.04])

    def matrix(self, t: float, photograph: tuple[int, int], view: tuple[int, int]) -> np.ndarray:
        """Return the 2x3 map from photograph pixels to view pixels at ``t``. The view stays inside the photograph."""
        sway_x, sway_y, zoom, roll = self._sway(t)
        height, width = photograph
        out_w, out_h = view
        aim_x, aim_y = self._scene.aim
        angle = 0.045 * roll                                    # at most 2.6 degrees
        share = self._scene.share + 0.05 * zoom
        turned_w = out_w * np.cos(angle) + out_h * abs(np.sin(angle))
        turned_h = out_h * np.cos(angle) + out_w * abs(np.sin(angle))
        window = share * min(width / turned_w, height / turned_h)     # photograph pixels per view pixel
        at_x, at_y = aim_x + (1 - abs(aim_x)) * sway_x, aim_y + (1 - abs(aim_y)) * sway_y
        centre_x = width / 2 + at_x * (width - window * turned_w) / 2
        centre_y = height / 2 + at_y * (height - window * turned_h) / 2
        cos, sin = np.cos(angle) / window, np.sin(angle) / window
        return np.array([[cos, -sin, out_w / 2 - cos * centre_x + sin * centre_y],
                         [sin, cos, out_h / 2 - sin * centre_x - cos * centre_y]])

    def brightness(self, t: float) -> np.float32:
        """Return a factor that drifts by 3 % like clouds and exposure, also while the camera rests."""
        return np.float32(1.0 + 0.03 * np.sin(2 * np.pi * 0.11 * t + self._phases[0, 0]))

    def _sway(self, t: float) -> np.ndarray:
        """Return x, y, zoom and roll, each within -1..1."""
        angles = 2 * np.pi * self._frequencies * _moving_time(t) + self._phases
        return np.sin(angles) @ self._weights


def available_scenes() -> list[tuple[PhotographScene, Path]]:
    """Return the scenes whose photographs the installed scikit-image holds. Raise SourceError if there is none."""
    spec = importlib.util.find_spec('skimage')
    folder = Path(spec.origin).parent / 'data' if spec and spec.origin else None
    scenes = [(s, folder / s.file) for s in SCENES if (folder / s.file).is_file()] if folder else []
    if not scenes:
        raise SourceError('the built-in photographs come with scikit-image, which is not installed: '
                          'pip install scikit-image, or name a video file')
    return scenes


def _moving_time(t: float) -> float:
    """Return seconds of motion until ``t``: stands still during the rest, and slows down and starts again softly."""
    start, end = REST_S
    ease = 0.5      # seconds of slowing down before the rest, and of speeding up after it
    if t <= start - ease:
        return t
    before = start - ease
    if t <= start:
        u = (t - before) / ease
        return before + ease * (u - u * u / 2)
    if t <= end:
        return before + ease / 2
    if t <= end + ease:
        u = (t - end) / ease
        return before + ease / 2 + ease * u * u / 2
    return before + ease + (t - end - ease)
