"""Write ``report.json``, ``results.json`` and ``report.html``, a page that needs no other file."""

from __future__ import annotations

import base64
import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tar_vis_core.benchmark.machine import processor
from tar_vis_core.io.whole_files import write_json, write_text
from tar_vis_ros.replay.figures import Figures, accuracy, figures, merge_results
from tar_vis_ros.replay.outcome import PICTURES, BagOutcome

PAGE = Path(__file__).with_name('report.html')
DATA = '/*DATA*/'       # where the page wants its figures
PACKAGES = ('tar-vis-ros', 'torch', 'numpy', 'opencv-python-headless', 'rosbags', 'ros-rclpy')


def write_report(folder: Path, outcomes: Mapping[Path, BagOutcome], given: Mapping[str, object]) -> Figures:
    """Write the three files into ``folder``. Return the figures of all bags together.

    ``outcomes`` are those of the bags, by their folders; ``given`` are the arguments of the command.
    """
    total = figures(list(outcomes.values()), accuracy(outcomes))
    bags = []
    for place, outcome in outcomes.items():
        about = {name: value for name, value in vars(outcome).items() if name not in ('frames', 'worst', 'categories')}
        bags.append({**about, 'figures': asdict(figures([outcome], accuracy({place: outcome})))})
    report = {'written': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'), 'asked': given,
              'host': host(), 'versions': versions(), 'total': asdict(total), 'bags': bags}
    write_json(folder / 'report.json', report, indent=1)
    merge_results(folder / 'results.json', outcomes)
    shown = [{**bag, 'worst': outcome.worst, 'frames': image_columns(outcome), 'pictures': picture_uris(place)}
             for bag, (place, outcome) in zip(bags, outcomes.items(), strict=True)]
    data = json.dumps({**report, 'bags': shown}, allow_nan=False).replace('</', '<\\/')
    before, after = PAGE.read_text(encoding='utf-8').split(DATA)
    write_text(folder / 'report.html', before + data + after)
    return total


def image_columns(outcome: BagOutcome) -> dict[str, list]:
    """Return the outcomes by field, which is shorter than one by one."""
    rows = [asdict(image) for image in outcome.frames]
    names = rows[0].keys() - {'index', 'recorded_ns', 'stamp_ns', 'answer', 'published_ms'} if rows else ()
    made = {name: [row[name] for row in rows] for name in sorted(names)}
    made['executed'] = [''.join(map(str, map(int, ran))) for ran in made.get('executed', ())]
    # nanoseconds since 1970 are more than a number of JavaScript holds
    made['stamp'] = [f'{row["stamp_ns"] // 10**9}.{row["stamp_ns"] % 10**9:09d}' for row in rows]
    return made


def picture_uris(folder: Path) -> dict[int, str]:
    """Return the bag's pictures as data URIs, by image."""
    return {int(path.stem): 'data:image/jpeg;base64,' + base64.b64encode(path.read_bytes()).decode()
            for path in sorted((folder / PICTURES).glob('*.jpg'))}


def host() -> dict[str, object]:
    """Return what is known of the machine, without its name."""
    return {'system': platform.platform(), 'processor': processor(), 'cores': os.cpu_count()}


def versions() -> dict[str, str]:
    """Return the versions of Python and the main packages; apt's ROS has no Python metadata for some."""
    found = {'python': platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command_text() -> str:
    """Return the command line, to be run again."""
    return ' '.join(['tar-vis-replay', *sys.argv[1:]])


def summary_lines(total: Figures) -> Sequence[tuple[str, str]]:
    """Return the figures as label and text, for a terminal."""
    def spread(values: Mapping[str, float | None]) -> str:
        return ', '.join(f'{name} {"-" if value is None else f"{value:.1f}"}' for name, value in values.items()) + ' ms'

    def percent(value: float | None) -> str:
        return '-' if value is None else f'{100 * value:.1f}'

    rows = []
    if a := total.accuracy:
        rows += [('accuracy', f'AP {percent(a.ap)}, AP50 {percent(a.ap50)}, AR10 {percent(a.ar10)}  '
                              f'({a.objects} objects in {a.videos} videos, {a.frames} frames)'),
                 *([('streaming', f'AP {percent(a.streaming_ap)}, AP50 {percent(a.streaming_ap50)}  (what was known '
                                  'when each image was published)')] if a.streaming_ap is not None else []),
                 ('identities', f'{a.switches} switches, HOTA {percent(a.hota)}, IDF1 {percent(a.idf1)}')]
    rows += [('images', f'{total.images} published, {total.answered} answered, {total.dropped} dropped'
                        + (f', {total.sent_again} published again' if total.sent_again else '')),
             ('latency', f'{spread(total.latency_ms)}  (at the node, arrival to answer)'),
             ('round trip', f'{spread(total.round_trip_ms)}  (published here to answer here)'),
             ('model step', spread(total.step_ms))]
    if total.late_ms['p50'] is not None:
        rows.append(('published late', spread(total.late_ms)))
    if total.answered:
        rows.append(('executed layers', f'{total.executed_layers:.2f} of {total.layers}, mean'))
    return rows + ([('resets', str(total.resets))] if total.resets else [])
