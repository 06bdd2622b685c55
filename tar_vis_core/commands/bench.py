"""Time and cost of a model's whole step, in three lines that take turns in one run.

The lines are a reference-style baseline (the plain model as published implementations compute: all layers, full-size
masks and all heads after every layer, unfused attention, deformable attention by grid_sample, the pixel decoder in
float32), ours with all layers, and ours with TAR. --guard repeats the measurement of a file and fails if ratios between
lines have fallen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from tar_vis_core.benchmark.measurement import BenchRun, measure
from tar_vis_core.benchmark.report import TIMED, TOLERANCE, fallen, print_figures, ratios, read_figures
from tar_vis_core.errors import TarVisError
from tar_vis_core.flags import add_flags, chosen, flag
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import write_text
from tar_vis_core.options import options_of


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog='tar-vis bench', description=__doc__, epilog=TIMED,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(made, options_of(BenchRun))
    made.add_argument('--json', type=user_path, metavar='FILE', help='also write the figures to this file')
    made.add_argument('--guard', type=user_path, metavar='FILE',
                      help='repeat the measurement of a file of --json; exit code 1 if a ratio has fallen')
    made.add_argument('--tolerance', type=float, default=TOLERANCE,
                      help=f'share by which a ratio may fall with --guard (default: {TOLERANCE})')
    return made


def guarded(args: argparse.Namespace) -> tuple[BenchRun, dict]:
    """Return the measurement of ``--guard``'s file, and its figures. Raise ValueError if other options are given."""
    stored = read_figures(args.guard)
    if given := next((name for name in options_of(BenchRun) if getattr(args, name) is not None), None):
        raise ValueError(f'--guard takes {flag(given)} from {args.guard}; leave it out')
    if not 0 < args.tolerance < 1:
        raise ValueError(f'--tolerance is {args.tolerance}, expected a share between 0 and 1')
    # None is an empty text of an older file
    return BenchRun(**{name: value for name, value in stored['configuration'].items() if value is not None}), stored


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. Return the exit code, 1 for an error or if the guard finds that a ratio has fallen."""
    args = parser().parse_args(argv)
    try:
        run, stored = guarded(args) if args.guard else (chosen(args, BenchRun), None)
        figures = measure(run)
        print_figures(figures)
        if args.json:
            write_text(args.json, json.dumps(figures, indent=1) + '\n')
            print(f'figures: {args.json}')
        if stored is None:
            return 0
        worse = fallen(stored, figures, args.tolerance)
    except (TarVisError, ValueError, OSError) as error:
        print(f'tar-vis bench: {error}', file=sys.stderr)
        return 1
    before, now = ratios(stored), ratios(figures)
    print(f'\nguard, ratios stored on {stored["date"]}: '
          + '; '.join(f'{name} {now[name]:.2f}, stored {before[name]:.2f}' for name in before))
    for text in worse:
        print(f'tar-vis bench: {text}', file=sys.stderr)
    return 1 if worse else 0
