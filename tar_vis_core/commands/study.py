"""``tar-vis study NAME``: the paper's studies, each a table (CSV, Markdown) and a plot beside the paper's values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tar_vis_core.commands.data import size
from tar_vis_core.flags import add_flags, chosen
from tar_vis_core.io.paths import user_path
from tar_vis_core.options import options_of
from tar_vis_core.studies import executed_layers, motion, timing, trained_variants

# name: its options, its function, one line of help
STUDIES = {
    'layers': (executed_layers.LayersStudy, executed_layers.run, 'AP by decoder layers, TAR, its controls'),
    'motion': (motion.MotionStudy, motion.run, 'executed layers against inter-frame difference'),
    'operations': (timing.TimingStudy, timing.run_operations, 'speed by attention kernel, mask size and TAR'),
    'profile': (timing.TimingStudy, timing.run_profile, 'shares of the time of a frame by stage'),
    'synchronizer': (trained_variants.TrainingStudy, trained_variants.run_synchronizers, 'three synchronizers; trains'),
    'warmup': (trained_variants.WarmupStudy, trained_variants.run_warmup, 'number of warm-up layers; trains'),
}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog='tar-vis study', description=__doc__)
    names = made.add_subparsers(dest='study', required=True, metavar='NAME')
    for name, (table, _, text) in STUDIES.items():
        study = names.add_parser(name, help=text, description=table.__doc__)
        study.add_argument('--out', type=user_path, required=True, help='folder for table.csv, table.md and plot.png')
        study.add_argument('--size', type=size, default=(192, 288), metavar='HxW', help='synth: pixels (default: '
                           '192x288)')
        add_flags(study, options_of(table))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study and return 0. Raise TarVisError or ValueError if something is wrong."""
    args = parser().parse_args(argv)
    table, run, _ = STUDIES[args.study]
    run(chosen(args, table, out=args.out, size=args.size))
    return 0
