"""Scenes (an image with its instance masks) and what is done to them: warp, paste, recolour, degrade.

A :class:`Scene` is numpy and lives while a sample is made; a :class:`Sample` is torch and is what a loss sees.
All geometry goes through :func:`warp_scene`, so an image and its masks always fit each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

PAD_VALUE = 127                # grey around an image that does not fill the canvas


@dataclass
class Scene:
    """An image and all that is known about it; ``n`` instances."""

    image: np.ndarray       # (h, w, 3) uint8 RGB
    masks: np.ndarray       # (n, h, w) bool
    labels: np.ndarray      # (n,) int64, the class
    trusted: np.ndarray     # (n,) bool, False for a machine-made mask
    ignore: np.ndarray      # (h, w) bool, crowds and instances too small to ask for
    inside: np.ndarray      # (h, w) bool, False where the canvas shows padding
    exhaustive: bool        # True: every class is labelled; False: only the persons are
    boxed: np.ndarray | None = None     # (n,) bool, True if the mask is only the object's box; None: none is

    def __post_init__(self) -> None:
        if self.boxed is None:
            self.boxed = np.zeros(len(self.masks), bool)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    def select(self, keep: np.ndarray) -> Scene:
        """Return the scene with only the instances ``keep`` (indices or booleans), in that order."""
        return replace(self, masks=self.masks[keep], labels=self.labels[keep],
                       trusted=self.trusted[keep], boxed=self.boxed[keep])


@dataclass
class Sample:
    """One training image; ``n`` instances."""

    image: torch.Tensor      # (3, h, w) uint8 RGB
    masks: torch.Tensor      # (n, h, w) bool
    labels: torch.Tensor     # (n,) int64, the class
    trusted: torch.Tensor    # (n,) bool, False for a machine-made mask
    valid: torch.Tensor      # (n,) bool, False in a clip's frame that does not show the instance (its mask is empty)
    ignore: torch.Tensor     # (h, w) bool: an unmatched query in here is not charged as no-object
    exhaustive: bool         # False: only persons are labelled, an unmatched object may be real
    boxed: torch.Tensor      # (n,) bool, True if the mask is only the object's box


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tight box ``x, y, width, height`` of a boolean mask; width and height are 0 for an empty one."""
    return cv2.boundingRect(mask.view(np.uint8))


def warp_mask(mask: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Warp a boolean mask by a 3x3 matrix (source to target pixel centres) to ``size`` (height, width).

    Only the instance's own box is touched; bilinear, cut at one half.
    """
    height, width = size
    out = np.zeros((height, width), bool)
    x, y, w, h = mask_box(mask)
    if not w:
        return out
    corners = np.array([[x - 1, y - 1], [x + w, y - 1], [x + w, y + h], [x - 1, y + h]], np.float64)
    moved = corners @ matrix[:, :2].T + matrix[:, 2]
    if (moved[:, 2] <= 1e-6).any():
        left, top, right, bottom = 0, 0, width, height      # the box meets the horizon: take the whole canvas
    else:
        moved = moved[:, :2] / moved[:, 2:]
        left, top = np.clip(np.floor(moved.min(0)), 0, (width, height)).astype(int)
        right, bottom = np.clip(np.ceil(moved.max(0)) + 1, 0, (width, height)).astype(int)
    if right <= left or bottom <= top:
        return out
    shift = translation(-left, -top) @ matrix @ translation(x, y)
    crop = np.ascontiguousarray(mask[y:y + h, x:x + w]).view(np.uint8)
    out[top:bottom, left:right] = _warp(crop, shift, (bottom - top, right - left), 0)
    return out


def _warp(array: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: int) -> np.ndarray:
    target, fill = (int(size[1]), int(size[0])), (border,) * 3
    if abs(matrix[2, 0]) < 1e-12 and abs(matrix[2, 1]) < 1e-12:
        return cv2.warpAffine(array, matrix[:2] / matrix[2, 2], target, flags=cv2.INTER_LINEAR, borderValue=fill)
    return cv2.warpPerspective(array, matrix, target, flags=cv2.INTER_LINEAR, borderValue=fill)


def warp_scene(scene: Scene, matrix: np.ndarray, size: tuple[int, int]) -> Scene:
    """Warp image, masks and regions together by a 3x3 matrix to a canvas ``size`` (height, width)."""
    image = scene.image
    shrink = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if shrink < 0.6:                                         # bilinear sampling alone would alias
        image = cv2.GaussianBlur(image, (0, 0), 0.4 / max(shrink, 0.1))
    masks = np.zeros((len(scene.masks), *size), bool)
    for index, mask in enumerate(scene.masks):
        masks[index] = warp_mask(mask, matrix, size)
    return replace(scene, image=_warp(image, matrix, size, PAD_VALUE), masks=masks,
                   ignore=warp_mask(scene.ignore, matrix, size), inside=warp_mask(scene.inside, matrix, size))


def translation(x: float, y: float) -> np.ndarray:
    """Return a 3x3 matrix that moves by ``(x, y)`` pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def scaling(x: float, y: float) -> np.ndarray:
    """Return a 3x3 matrix that scales pixel areas (pixel centres sit at integers, the corner at -0.5)."""
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]], np.float64)


def rotation(degrees: float, centre: tuple[float, float]) -> np.ndarray:
    """Return a 3x3 matrix that turns about ``centre`` (x, y), clockwise on the screen."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float64)
    return translation(*centre) @ turn @ translation(-centre[0], -centre[1])


def flipping(width: int) -> np.ndarray:
    """Return a 3x3 matrix that mirrors an image of ``width`` pixels left to right."""
    return np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]], np.float64)


def random_view(rng: np.random.Generator, scene: Scene, size: tuple[int, int], fill: bool = False) -> np.ndarray:
    """Return a random crop, scale, mirror and mild turn from ``scene`` to a canvas ``size``.

    Scale 1 puts the short side of the image on the short side of the canvas, which is what inference does. Three
    draws in four stay at 0.8 to 1.5; the others zoom out (small persons) or in (large ones). ``fill`` never shows
    padding, unless the view is turned.
    """
    (height, width), (h, w) = size, scene.size
    low, high = ((0.8, 1.5), (0.4, 0.8), (1.5, 2.5))[rng.choice(3, p=(0.76, 0.14, 0.10))]
    scale = min(size) / min(h, w) * math.exp(rng.uniform(math.log(low), math.log(high)))
    if fill:
        scale = max(scale, 1.09 * max(height / h, width / w))
    stretch = math.exp(rng.uniform(-0.08, 0.08))
    sx, sy = scale * stretch, scale / stretch
    matrix = scaling(sx, sy)
    focus = None
    if len(scene.masks) and rng.random() < 0.7:              # keep one instance in view
        x, y, bw, bh = mask_box(scene.masks[rng.integers(len(scene.masks))])
        focus = (sx * (x + bw / 2), sy * (y + bh / 2))
    offset = []
    for axis, (room, extent) in enumerate(((width, sx * w), (height, sy * h))):
        spare = room - extent
        if spare < 0 and focus is not None:
            offset.append(min(max(room * rng.uniform(0.2, 0.8) - focus[axis], spare), 0))
        else:
            offset.append(rng.uniform(min(spare, 0), max(spare, 0)))
    matrix = translation(*offset) @ matrix
    if rng.random() < 0.2:
        matrix = rotation(rng.uniform(-10, 10), (width / 2, height / 2)) @ matrix
    if rng.random() < 0.5:
        matrix = flipping(width) @ matrix
    return matrix


def random_placement(rng: np.random.Generator, donor: Scene, size: tuple[int, int]) -> np.ndarray:
    """Return where to paste the donor's instances: a random size, place and mirror on a canvas ``size``."""
    x, y, w, h = mask_box(donor.masks.any(0))
    wanted = min(size) * math.exp(rng.uniform(math.log(0.2), math.log(0.95)))
    scale = min(max(wanted / max(w, h, 1), 0.3), 2.0)
    matrix = scaling(scale, scale) @ translation(-(x + w / 2), -(y + h / 2))
    if rng.random() < 0.5:
        matrix = np.diag([-1.0, 1.0, 1.0]) @ matrix
    return translation(size[1] * rng.uniform(0.05, 0.95), size[0] * rng.uniform(0.15, 0.95)) @ matrix


def paste(scene: Scene, donor: Scene, behind: bool = False) -> Scene:
    """Lay the donor's instances over the scene (both on the same canvas); covered mask pixels are taken away.

    ``behind`` puts them behind the scene's own instances instead. Instances keep their order, the scene's before the
    donor's, even if nothing of them stays visible.
    """
    masks, added = scene.masks, donor.masks
    if behind and len(masks):
        added = added & ~(masks.any(0) | scene.ignore)
    over = added.any(0)
    x, y, w, h = mask_box(over)
    image = scene.image.copy()
    if w:
        box = np.s_[y:y + h, x:x + w]
        alpha = cv2.GaussianBlur(over[box].astype(np.float32), (3, 3), 0)[..., None] * over[box][..., None]
        image[box] = np.rint(image[box] + alpha * (donor.image[box].astype(np.float32) - image[box]))
        masks = masks & ~over
    return replace(
        scene, image=image, masks=np.concatenate([masks, added]),
        labels=np.concatenate([scene.labels, donor.labels]),
        trusted=np.concatenate([scene.trusted, donor.trusted]), boxed=np.concatenate([scene.boxed, donor.boxed]),
        ignore=scene.ignore & ~over, inside=scene.inside | over)


def random_colours(rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Return a 3x4 colour matrix for RGB: brightness, contrast, saturation, a little hue and white balance."""
    contrast = math.exp(rng.uniform(-0.35, 0.35) * strength)
    brightness = rng.uniform(-28, 28) * strength
    saturation = math.exp(rng.uniform(-0.6, 0.4) * strength)
    turn = rng.uniform(-0.22, 0.22) * strength
    balance = np.exp(rng.uniform(-0.08, 0.08, 3) * strength)
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    c, s = saturation * math.cos(turn), saturation * math.sin(turn)
    linear = np.linalg.inv(to_yiq) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ to_yiq
    linear = contrast * balance[:, None] * linear
    return np.concatenate([linear, np.full((3, 1), 128 * (1 - contrast) + brightness)], 1)


@dataclass(frozen=True)
class CameraFaults:
    """The faults of a cheap camera. The frames of a clip share them; the noise is new in each."""

    defocus: float = 0.0                 # sigma of a Gaussian, pixels
    smear: tuple[int, int] = (1, 1)      # box of motion blur, pixels
    noise: int = 0                       # amplitude in grey levels
    quality: int = 0                     # of JPEG compression; 0 = none

    @staticmethod
    def draw(rng: np.random.Generator) -> CameraFaults:
        """Draw mostly none; one picture in eight is blurred, one in eight noisy, one in twelve compressed hard."""
        defocus, smear = 0.0, (1, 1)
        if rng.random() < 0.06:
            defocus = rng.uniform(0.5, 1.6)
        elif rng.random() < 0.06:
            length = int(rng.integers(3, 8))
            smear = (length, 1) if rng.random() < 0.7 else (1, length)
        noise = 1 << int(rng.integers(2, 5)) if rng.random() < 0.12 else 0
        return CameraFaults(defocus, smear, noise, int(rng.integers(25, 75)) if rng.random() < 0.08 else 0)

    def apply(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Return the degraded image, ``(h, w, 3)`` uint8."""
        if self.defocus:
            image = cv2.GaussianBlur(image, (0, 0), self.defocus)
        if self.smear != (1, 1):
            image = cv2.blur(image, self.smear)
        if self.noise:
            grain = rng.integers(-128, 128, image.shape, np.int8).astype(np.int16)
            image = np.clip(image + (grain * self.noise >> 7), 0, 255).astype(np.uint8)
        if self.quality:
            encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1]
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        return image


def drop_small(scene: Scene, min_pixels: int, max_instances: int) -> Scene:
    """Turn instances with fewer visible pixels than ``min_pixels`` into ignored region; keep the largest at most."""
    areas = np.array([np.count_nonzero(mask) for mask in scene.masks], np.int64)
    keep = areas >= min_pixels
    if keep.sum() > max_instances:
        keep[np.argsort(-areas, kind='stable')[max_instances:]] = False
    ignore = scene.ignore | scene.masks[~keep].any(0) if not keep.all() else scene.ignore
    kept = scene.select(keep)
    if len(kept.masks):
        ignore = ignore & ~kept.masks.any(0)
    return replace(kept, ignore=ignore)


def to_sample(scene: Scene) -> Sample:
    """Return the scene as tensors, ready for a loss."""
    return Sample(
        image=torch.from_numpy(np.ascontiguousarray(scene.image.transpose(2, 0, 1))),
        masks=torch.from_numpy(scene.masks), labels=torch.from_numpy(scene.labels),
        trusted=torch.from_numpy(scene.trusted),
        valid=torch.from_numpy(scene.masks.any((1, 2))), ignore=torch.from_numpy(scene.ignore),
        exhaustive=scene.exhaustive,
        boxed=torch.from_numpy(scene.boxed))
