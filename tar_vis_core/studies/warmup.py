"""The number of warm-up layers before synchronizer and routers, M^s (the paper's Figure 4)."""

from __future__ import annotations

import argparse

from tar_vis_core.studies import trained_variants
from tar_vis_core.studies.trained_variants import Variant, report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's own options."""
    parser.add_argument('--warmup-layers', type=int, nargs='+', default=[1, 2, 3, 4], help='M^s (default: 1 2 3 4)')
    trained_variants.add_options(parser)


def run(args: argparse.Namespace) -> None:
    """Run ``tar-vis study warmup``."""
    chosen = [Variant(f'{count}', f'{args.preset}:warmup_layers={count}') for count in args.warmup_layers]
    report(args, chosen, 'Warm-up layers', [
        'Variants are M^s: so many layers always run, then come synchronizer and routers. Router off: the weights of '
        'router on, all layers executed. The paper chooses 1; we know no values of its Figure 4.',
        'It shows whether later synchronisation pays for the layers that it cannot skip, on this task. It cannot show '
        'what longer training would give, and a difference within the spread of the seeds is none.'])
