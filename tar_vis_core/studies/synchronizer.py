"""Ways to bring a frame's queries into the last frame's slots, with the router on and off (the paper's Table 3)."""

from __future__ import annotations

import argparse

from tar_vis_core.models.presets import SYNCHRONIZERS
from tar_vis_core.studies import trained_variants
from tar_vis_core.studies.trained_variants import Variant, report

add_options = trained_variants.add_options

# by synchronizer and router, frames a second and AP (Table 3; AP of the abstract)
PAPER = {'attention': {'on': (34.6, 48.4), 'off': (24.2, None)}}


def run(args: argparse.Namespace) -> None:
    """Run ``tar-vis study synchronizer``."""
    chosen = [Variant('plain', args.preset, True, {'off': (24.7, 47.4)}),
              *(Variant(name, f'{args.preset}:synchronizer={name}', paper=PAPER.get(name, {}))
                for name in reversed(SYNCHRONIZERS))]
    report(args, chosen, 'Synchronizer and router', [
        'plain: no TAR, trained on as many frames. none: routers compare queries slot by slot as they are. bipartite: '
        'queries go into the last frame\'s slots one to one (least cosine distance), their positions with them. '
        'attention: cross-attention from the last frame\'s queries (Eq. 2-3). Router off: the weights of router on, '
        'all layers executed.',
        'It shows what the synchronizer is worth to these routers on this task, and how far seeds differ. It cannot '
        'show what longer training would give, and a difference within the spread of the seeds is none. With the '
        'router off, weights that were trained to skip are judged by what they were not trained for.'])
