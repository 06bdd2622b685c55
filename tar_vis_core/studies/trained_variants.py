"""Forms of TAR that need their own weights: each is trained from the same weights by the same recipe, then compared.

A run is kept under ``--out`` and continues after an interruption. A finished run is not trained again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from tar_vis_core.errors import TarVisError
from tar_vis_core.evaluation.decodings import Decoding
from tar_vis_core.io.paths import user_path
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime.device import pick_device
from tar_vis_core.studies.bootstrap import resamples
from tar_vis_core.studies.inputs import PAPER, described, open_videos
from tar_vis_core.studies.report import write_report
from tar_vis_core.studies.sampling import Row, mean_rows, sample, spread
from tar_vis_core.training import train
from tar_vis_core.training.recipe import load_recipe
from tar_vis_core.weights.loading import is_routing, load_model, read_header, read_tensors, save_tensors
from tar_vis_core.weights.manifest import packaged_weights


@dataclass(frozen=True)
class Variant:
    """A variant to train, and the paper's figures for it with and without router: frames per second and AP."""

    name: str
    preset: str                                          # with its form of TAR
    plain: bool = False                                  # no TAR: the same number of frames, each by itself
    paper: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all studies that train."""
    group = parser.add_argument_group('training')
    group.add_argument('--recipe', default='crowd_tar', help='packaged recipe or YAML file (default: crowd_tar)')
    group.add_argument('--iterations', type=int, help="of each run (default: the recipe's)")
    group.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='a run for each (default: 0 1 2)')
    group.add_argument('--train-data', type=user_path, default=Path(),
                       help="folder of the recipe's data (default: here)")
    group.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='change an option of the recipe')
    parser.add_argument('--resamples', type=int, default=1000, help='bootstrap samples (default: 1000)')


def base_without_routing(args: argparse.Namespace) -> Path:
    """Return the weights that all variants start from, under ``--out``; routing starts fresh in each."""
    if args.adapter:
        raise ValueError('--adapter: routing is trained here, afresh in each variant; leave it out')
    source = args.weights or packaged_weights(args.preset)
    path = args.out / 'base.safetensors'
    state = {name: value for name, value in read_tensors(source).items() if not is_routing(name)}
    args.out.mkdir(parents=True, exist_ok=True)
    save_tensors(state, path, read_header(source).metadata)
    return path


def trained(variant: Variant, seed: int, base: Path, args: argparse.Namespace) -> Path:
    """Return the weights of a variant's run. Raise TarVisError if the training fails."""
    changes = [*args.set, f'preset={variant.preset}', f'seed={seed}']
    if args.iterations:
        changes.append(f'iterations={args.iterations}')
    recipe = load_recipe(args.recipe, changes)
    if variant.plain:
        changes += ['clip=1', f'batch={recipe.batch * recipe.clip}']
    out = args.out / f'{variant.name}_{recipe.iterations}_seed{seed}'
    words = [args.recipe, '--data', str(args.train_data), '--out', str(out), '--init', str(base), '--device',
             args.device, '--resume', *(word for change in changes for word in ('--set', change))]
    if train.main(words):
        raise TarVisError(f'the training in {out} failed; see above')
    return out / 'model.safetensors'


def ways_of(model: VideoInstanceModel) -> dict[str, Decoding]:
    """Return the decodings by router: on; off with all layers executed (behind the Synchronizer, if there is one)."""
    if not model.config.routing:
        return {'off': lambda features, previous: model.decode(features)}
    return {'on': lambda features, previous: model.decode(features, previous, 'adaptive'),
            'off': lambda features, previous: model.decode(features, previous, 'adaptive', skip_bias=-math.inf)}


def compare(args: argparse.Namespace, variants: Sequence[Variant]) -> list[Row]:
    """Train what is missing and evaluate: a row for each variant, router and seed, then the means over seeds."""
    records, base = open_videos(args), base_without_routing(args)
    samples, rows = resamples(len(records), args.resamples), []
    for seed in args.seeds:
        for variant in variants:
            path = trained(variant, seed, base, args)
            model = load_model(variant.preset, path).to(pick_device(args.device))
            for sampled in sample(model, records, ways_of(model), samples):
                router = sampled.row.name
                fps, ap = variant.paper.get(router, (None, None))
                rows.append({
                    'variant': variant.name, 'router': router, 'seed': str(seed), **spread('layers', sampled.executed),
                    **spread('AP', sampled.ap), 'AP50': 100 * sampled.row.ap.mean.ap50,
                    'switches': sampled.row.identities.switches, 'frames/s': 1e3 / sampled.ms,
                    'paper frames/s': fps, 'paper AP': ap})
    return rows + mean_rows(rows, ['variant', 'router'], 'seed')


def report(args: argparse.Namespace, variants: Sequence[Variant], title: str, notes: Sequence[str]) -> None:
    """Run the whole study: train, evaluate, write."""
    rows = compare(args, variants)

    def draw(axes: Axes) -> None:
        for colour, variant in enumerate(variants):
            for router, filled in (('on', True), ('off', False)):
                chosen = [row for row in rows if (row['variant'], row['router']) == (variant.name, router)]
                if not chosen:
                    continue
                *seeds, mean = [(row['layers'], row['AP']) for row in chosen]
                axes.plot(*np.array(seeds).T, '.', color=f'C{colour}', alpha=0.5)
                axes.plot(*mean, 'o', color=f'C{colour}', markersize=9, label=f'{variant.name}, router {router}',
                          markerfacecolor=None if filled else 'none')
        axes.set_xlabel('executed decoder layers a frame')
        axes.set_ylabel('AP, percent')
        axes.legend(fontsize=8, title='mean over seeds; dots: seeds', title_fontsize=8)

    iterations, changes = args.iterations or load_recipe(args.recipe, args.set).iterations, ', '.join(args.set)
    write_report(args.out, title, rows, [
        described(args, open_videos(args)) + f' Each variant trained by {args.recipe} ({changes or "as it is"}) for '
        f'{iterations} iterations from the same weights, seeds {", ".join(map(str, args.seeds))}. Low and high: in '
        f'rows of one seed 95 % intervals over {args.resamples} bootstrap samples of videos, in rows of means the '
        'least and the greatest seed.',
        PAPER + ' Its frames a second hold its other optimisations where the router is on; ours are of image encoder '
        'and decoder.', *notes], draw)
