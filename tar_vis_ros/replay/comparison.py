"""Two replays of the same bags beside each other: paired differences with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tar_vis_core.errors import DataError
from tar_vis_core.io.json_files import read_json
from tar_vis_core.studies.bootstrap import Precision, interval, resamples
from tar_vis_ros.replay.figures import read_predictions
from tar_vis_ros.replay.outcome import BagOutcome, ImageOutcome
from tar_vis_ros.replay.truth import only_frames

TIMES, AP_TIMES = 2000, 500     # bootstrap samples, of means and of AP
BLOCK = 10          # neighbouring images are alike: so many of them are drawn together
MEASURES: dict[str, tuple[float, Callable[[ImageOutcome], float | None]]] = {     # of an image: unit, value
    'quality': (100, lambda image: image.quality),
    'instances': (1, lambda image: image.instances),
    'latency, ms': (1, lambda image: image.latency_ms),
    'model step, ms': (1, lambda image: image.step_ms),
    'executed layers': (1, lambda image: sum(image.executed)),
}


@dataclass(frozen=True)
class Difference:
    """A measure of both replays. The interval is that of ``b - a``, NaN if there is too little to draw from."""

    name: str
    a: float
    b: float
    low: float
    high: float
    units: str          # what was drawn

    def __str__(self) -> str:
        middle = '-' if np.isnan(self.low) else f'[{self.low:+.2f}, {self.high:+.2f}]'
        return f'{self.name:<17}{self.a:>9.2f}{self.b:>9.2f}{self.b - self.a:>+9.2f}  {middle:<18} {self.units}'


def read_replay(folder: Path) -> dict[str, tuple[Path, BagOutcome]]:
    """Return folder and outcome of each bag of a replay, by name. Raise DataError if there is none."""
    try:
        names = [bag['name'] for bag in read_json(folder / 'report.json')['bags']]
        return {name: (folder / name, BagOutcome.read(folder / name)) for name in names}
    except (OSError, DataError, KeyError, TypeError, ValueError) as error:
        raise DataError(f'{folder}: not the --out of a tar-vis-replay ({error})') from error


def compare(first: Path, second: Path) -> list[Difference]:
    """Return the differences over the bags that both replays have. Raise DataError if there are none."""
    a, b = read_replay(first), read_replay(second)
    common = [name for name in a if name in b]
    if not common:
        raise DataError(f'{first} has {", ".join(a)}, {second} has {", ".join(b)}: no bag in common')
    for name in common:
        if sorted(a[name][1].sha256.values()) != sorted(b[name][1].sha256.values()):
            raise DataError(f'{name} is not the same bag in {first} and {second} (sha256)')
    pairs = [(a[name], b[name]) for name in common]
    return [*filter(None, [_precision(pairs)]), *filter(None, (_of_images(name, pairs) for name in MEASURES))]


def _precision(pairs: Sequence) -> Difference | None:
    """Return the difference of AP over the bags with ground truth, None if there are none."""
    judged = [pair for pair in pairs if all(outcome.truth for _, outcome in pair)]
    if not judged:
        return None
    made = []
    for side in range(2):
        records, tubes = [], []
        for number, pair in enumerate(judged, 1):
            played = ({image.frame for image in outcome.frames} for _, outcome in pair)
            frames = sorted(set.intersection(*played) - {-1})
            record, found = only_frames(*read_predictions(*pair[side]), frames)
            records.append(replace(record, id=number))
            tubes += [replace(tube, video_id=number) for tube in found]
        made.append(Precision(records, tubes))
    every = np.arange(len(judged))
    drawn = [100 * (made[1](chosen) - made[0](chosen)) for chosen in resamples(len(judged), AP_TIMES)]
    low, high = interval(drawn) if len(judged) > 1 else (np.nan, np.nan)
    return Difference('AP', 100 * made[0](every), 100 * made[1](every), low, high, f'{len(judged)} bags')


def _of_images(name: str, pairs: Sequence) -> Difference | None:
    """Return the mean difference of a measure over the images that both answered, None if it is of none."""
    unit, value = MEASURES[name]
    blocks = []
    for (_, a), (_, b) in pairs:
        there = {image.index: image for image in b.frames if image.answered}
        both = [(value(image), value(there[image.index])) for image in a.frames
                if image.answered and image.index in there]
        known = unit * np.array([pair for pair in both if None not in pair], float).reshape(-1, 2)
        blocks += [known[start:start + BLOCK] for start in range(0, len(known), BLOCK)]
    if not blocks:
        return None
    sums, counts = np.array([block.sum(0) for block in blocks]), np.array([len(block) for block in blocks])
    chosen = resamples(len(blocks), TIMES)
    drawn = (sums[:, 1] - sums[:, 0])[chosen].sum(1) / counts[chosen].sum(1)
    low, high = interval(drawn) if len(blocks) > 1 else (np.nan, np.nan)
    a, b = sums.sum(0) / counts.sum()
    return Difference(name, a, b, low, high, f'{counts.sum()} images in blocks of {BLOCK}')


def table(first: Path, second: Path) -> str:
    """Return the comparison as text."""
    head = f'{"":<17}{"A":>9}{"B":>9}{"B - A":>9}  {"95 % interval":<18} drawn'
    return '\n'.join([f'A  {first}', f'B  {second}', head, *map(str, compare(first, second))])
