"""Small pictures of a replayed bag: the answer over each image, the ground truth as white outlines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image

from tar_vis_core.media.overlay import draw_overlay
from tar_vis_core.media.pictures import write_picture
from tar_vis_ros.bags.reader import BagError, ImageBag
from tar_vis_ros.conversions.images import ImageError, to_rgb
from tar_vis_ros.replay.outcome import PICTURES, BagOutcome
from tar_vis_ros.replay.scoring import recorded_answers
from tar_vis_ros.replay.truth import Truth

WIDTH, QUALITY = 480, 80     # pixels; of the JPEG


def draw_pictures(outcome: BagOutcome, folder: Path, bag: ImageBag, order: Sequence[int], truth: Truth | None,
                  most: int) -> None:
    """Write ``INDEX.jpg`` of the worst images and of others evenly spaced, ``most`` together, into PICTURES."""
    chosen = choose_images(outcome, most)
    answers = recorded_answers(folder, order) if order else ()
    results = {index: result for index, result, _ in answers if index in chosen}
    (folder / PICTURES).mkdir()
    try:
        for image in bag.images():
            if image.index > max(chosen, default=-1):
                break
            if image.index not in chosen:
                continue
            try:
                rgb = to_rgb(deserialize_message(image.cdr, CompressedImage if bag.compressed else Image))
            except ImageError:      # the node has refused it, too
                continue
            if image.index in results:
                rgb = draw_overlay(rgb, results[image.index].instances)
            if truth and (frame := outcome.frames[image.index].frame) >= 0:
                rgb = with_truth_outlines(rgb, truth, frame)
            write_small_jpeg(folder / PICTURES / f'{image.index:06d}.jpg', rgb)
    except BagError:    # of a bag that is cut off, which has been said
        pass


def choose_images(outcome: BagOutcome, most: int) -> set[int]:
    """Return the images to draw: all if there is room for them, else the worst and others that were answered."""
    images = [image.index for image in outcome.frames]
    if len(images) <= most:
        return set(images)
    chosen = set(outcome.worst[:most])
    others = [image.index for image in outcome.frames if image.answered] or images
    places = np.linspace(0, len(others) - 1, min(most - len(chosen), len(others)))
    return chosen | {others[place] for place in places.round().astype(int)}


def with_truth_outlines(rgb: np.ndarray, truth: Truth, frame: int) -> np.ndarray:
    """Return a copy with the labelled masks as white lines."""
    picture = np.array(rgb, order='C')
    for track in truth.record.tracks:
        if (mask := track.mask(frame)) is not None:
            lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, lines, -1, (255, 255, 255), 1)
    return picture


def write_small_jpeg(path: Path, rgb: np.ndarray) -> None:
    """Write a JPEG of at most WIDTH pixels across."""
    height, width = rgb.shape[:2]
    if width > WIDTH:
        rgb = cv2.resize(rgb, (WIDTH, max(1, round(height * WIDTH / width))), interpolation=cv2.INTER_AREA)
    write_picture(path, rgb, QUALITY)
