"""``tar-vis study NAME``: the paper's studies, each a table (CSV, Markdown) and a plot beside the paper's values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tar_vis_core.studies import (
    budgets,
    executed_layers,
    inputs,
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


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog='tar-vis study', description=__doc__)
    names = made.add_subparsers(dest='study', required=True, metavar='NAME')
    for name, (module, weights, text) in STUDIES.items():
        study = names.add_parser(name, help=text, description=module.__doc__.split('\n\n')[0])
        inputs.add_options(study, weights)
        module.add_options(study)
        study.set_defaults(call=module.run)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study and return 0. Raise TarVisError or ValueError if something is wrong."""
    args = parser().parse_args(argv)
    args.call(args)
    return 0
