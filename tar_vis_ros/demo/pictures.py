"""Pictures of a run: a contact sheet of its frames, and which decoder layers ran when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tar_vis_core.io.whole_files import replacing
from tar_vis_core.media.readers import VideoFileReader
from tar_vis_ros.demo.recorder import FrameSummary

SHEET_FRAMES, SHEET_COLUMNS = 12, 4
CAPTION_LETTERS = 48
LABELLED_RESETS = 5     # more would cover the curve
EXECUTED, SKIPPED, REUSED, LINE, RESET = '#1b6b72', '#e3e6e8', '#f0c36d', '#20323a', '#c2452d'


def contact_sheet(video: Path, frames: Sequence[FrameSummary], out: Path, title: str) -> None:
    """Draw about twelve frames of the overlay video, evenly spaced, with time, layers and tracks below each."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).round().astype(int))
    pictures = _pick(video, set(chosen.tolist()))
    columns = min(SHEET_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    aspect = next(iter(pictures.values())).shape[0] / next(iter(pictures.values())).shape[1]
    cell = 4.0      # inches
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout='constrained',
                                figsize=(cell * columns, rows * (cell * aspect + 0.55) + 0.5))
    for axis in axes.flat:
        axis.axis('off')
    for axis, index in zip(axes.flat, chosen):
        frame = frames[index]
        axis.imshow(pictures.get(int(index), np.full((3, 4, 3), 255, np.uint8)), interpolation='lanczos')
        axis.set_title(f'frame {index}, {frame.stamp_s - frames[0].stamp_s:.1f} s, '
                       f'{sum(frame.executed)} of {len(frame.executed)} layers\n{_found(frame)}', fontsize=10)
    figure.suptitle(title, fontsize=13)
    with replacing(out) as half:
        figure.savefig(half, dpi=100)
    plt.close(figure)


def routing_picture(frames: Sequence[FrameSummary], out: Path, title: str) -> None:
    """Draw the executed layers by frame, their number, and the inter-frame MSE, one below the other.

    In frames that took masks over neither the image encoder nor a layer ran.
    """
    executed = np.array([frame.executed for frame in frames], int)     # (frames, layers)
    executed[[frame.reused for frame in frames]] = 2
    mse = np.array([frame.frame_mse for frame in frames], float)
    count, layers = executed.shape
    across = np.arange(count)
    figure, (raster, number, change) = plt.subplots(
        3, 1, sharex=True, layout='constrained', figsize=(12, 7.5), height_ratios=(1.5, 1, 1))

    raster.imshow(executed.T, aspect='auto', interpolation='nearest', cmap=ListedColormap([SKIPPED, EXECUTED, REUSED]),
                  vmin=0, vmax=2, extent=(-0.5, count - 0.5, layers + 0.5, 0.5))
    raster.set_yticks(range(1, layers + 1))
    raster.set_ylabel('decoder layer')
    colours = {'executed': EXECUTED, 'skipped': SKIPPED}
    if (executed == 2).any():
        colours['masks taken over'] = REUSED
    raster.legend(handles=[Patch(color=colour, label=label) for label, colour in colours.items()],
                  loc='lower right', bbox_to_anchor=(1, 1), ncols=3, frameon=False)

    ran = (executed == 1).sum(1)
    number.step(across, ran, where='mid', color=EXECUTED, linewidth=1.2)
    number.axhline(ran.mean(), color=LINE, linewidth=0.8, linestyle=':')
    number.text(1.003, ran.mean(), f'mean {ran.mean():.1f}', va='center', fontsize=9,
                transform=number.get_yaxis_transform())
    number.set_ylim(0, layers + 0.5)
    number.set_ylabel('layers executed\nper frame')

    change.plot(across, np.maximum(mse, 0.1), color=LINE, linewidth=1.2)
    change.set_yscale('log')
    change.set_ylabel('inter-frame MSE\n(squared grey levels)')
    change.set_xlabel('frame')
    change.xaxis.set_major_locator(MaxNLocator(integer=True))
    change.set_xlim(-0.5, count - 0.5)
    for axis in (number, change):
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    resets = [index for index, frame in enumerate(frames) if frame.reset_reason]
    for index in resets:
        for axis in (raster, number, change):
            axis.axvline(index, color=RESET, linewidth=1, linestyle='--')
    for place, index in enumerate(resets[:LABELLED_RESETS]):
        change.text(index, 0.97 - 0.09 * place, f' reset: {frames[index].reset_reason} ', color=RESET, fontsize=9,
                    va='top', ha='right' if index > 0.6 * count else 'left', transform=change.get_xaxis_transform())
    figure.suptitle(title, fontsize=13)
    with replacing(out) as half:
        figure.savefig(half, dpi=110)
    plt.close(figure)


def _found(frame: FrameSummary) -> str:
    """Return a caption for one picture: names and ids of a few instances, else how many of each class."""
    text = ', '.join(f'{name} #{number}' for number, name in frame.tracks) or 'nothing'
    if len(text) > CAPTION_LETTERS:
        text = ', '.join(f'{count} {name}' for name, count in Counter(n for _, n in frame.tracks).most_common())
    return text if len(text) <= CAPTION_LETTERS else text[:CAPTION_LETTERS].rpartition(',')[0] + ', ...'


def _pick(video: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    pictures = {}
    with VideoFileReader(video) as reader:
        for index in range(max(wanted) + 1):
            picture = reader.read()
            if picture is None:
                break
            if index in wanted:
                h, w = picture.shape[:2]
                scale = min(1.0, 480 / w)
                pictures[index] = cv2.resize(picture, (round(w * scale), round(h * scale)),
                                             interpolation=cv2.INTER_AREA)
    return pictures
