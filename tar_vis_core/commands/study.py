"""``tar-vis study NAME``: the paper's studies, each a table (CSV, Markdown) and a plot beside the paper's values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tar_vis_core.commands.data import size
from tar_vis_core.io.paths import user_path
from tar_vis_core.models.presets import PRESETS
from tar_vis_core.studies import (
    budgets,
    executed_layers,
    layer_value,
    motion,
    operations,
    reused_encodings,
    synchronizer,
    timing,
    warmup,
)

# name: module with add_options(parser) and run(args), how many files --weights takes, one line of help
STUDIES = {
    'layers': (executed_layers, '+', 'AP by decoder layers (Table 5, Figure 2), TAR, its controls and its trade-off'),
    'motion': (motion, None, 'executed layers against inter-frame difference (Figure 5)'),
    'operations': (operations, None, 'frames a second by attention kernel, mask size and TAR (Table 4)'),
    'profile': (timing, None, 'shares of the time of a frame by stage (Figure 1)'),
    'synchronizer': (synchronizer, None, 'none, bipartite, attention, with router on and off (Table 3); trains'),
    'budget': (budgets, None, 'step time, bias and layers while the latency budget changes (not of the paper)'),
    'still': (reused_encodings, None, 'encoder features reused while the picture stands still (not of the paper)'),
    'worth': (layer_value, None, 'what layers are worth by frame, and whether routers follow it (not of the paper)'),
    'warmup': (warmup, None, 'number of warm-up layers (Figure 4); trains'),
}


def add_inputs(parser: argparse.ArgumentParser, weights: str | int | None = None) -> None:
    """Add the flags that all studies share; ``weights`` is how many files there may be, as argparse says it."""
    parser.add_argument('--out', type=user_path, required=True, help='folder for table.csv, table.md and plot.png')
    parser.add_argument('--preset', default='crowd', help=f'{", ".join(PRESETS)} (default: crowd)')
    parser.add_argument('--weights', type=user_path, nargs=weights,
                        help="safetensors file (default: the preset's packaged weights)")
    parser.add_argument('--adapter', type=user_path, help='safetensors file with TAR for weights without it')
    parser.add_argument('--device', default='auto', help='auto, cpu or cuda:N')
    parser.add_argument('--threads', type=int, default=0, help="CPU threads (default: torch's own)")
    data = parser.add_argument_group('videos')
    data.add_argument('--data', default='synth', metavar='JSON',
                      help='YouTube-VIS file, or synth (default): crowds of look-alikes, made under --out')
    data.add_argument('--categories', nargs='+', metavar='NAME', help='of the file: those that count (default: all)')
    data.add_argument('--videos', type=int, default=20, help='how many: made, or the first of the file (default: 20)')
    data.add_argument('--frames', type=int, default=24, help='synth: frames of each (default: 24)')
    data.add_argument('--size', type=size, default=(192, 288), metavar='HxW', help='synth: pixels (default: 192x288)')
    data.add_argument('--data-seed', type=int, default=1000, help='synth: which videos (default: 1000)')


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog='tar-vis study', description=__doc__)
    names = made.add_subparsers(dest='study', required=True, metavar='NAME')
    for name, (module, weights, text) in STUDIES.items():
        study = names.add_parser(name, help=text, description=module.__doc__.split('\n\n')[0])
        add_inputs(study, weights)
        module.add_options(study)
        study.set_defaults(call=module.run)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study and return 0. Raise TarVisError or ValueError if something is wrong."""
    args = parser().parse_args(argv)
    args.call(args)
    return 0
