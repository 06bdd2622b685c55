"""Forms of TAR that need their own weights: each is trained from the same weights by the same recipe, then compared.

A run is kept under ``--out`` and continues after an interruption. A finished run is not trained again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from tar_vis_core.errors import TarVisError
from tar_vis_core.evaluation.decodings import Decoding, biased
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import make_folder
from tar_vis_core.models.presets import SYNCHRONIZERS
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.options import option
from tar_vis_core.runtime.device import pick_device
from tar_vis_core.studies.bootstrap import Row, mean_rows, resamples, spread
from tar_vis_core.studies.inputs import PAPER, StudyInputs, inputs_text, one_file, open_videos
from tar_vis_core.studies.report import write_report
from tar_vis_core.studies.sampled_decodings import sample
from tar_vis_core.training import train
from tar_vis_core.training.recipe import load_recipe
from tar_vis_core.weights.loading import is_routing, load_model, read_header, read_tensors, save_tensors

# of the synchronizer 'attention', by router: frames a second and AP (Table 3; AP of the abstract)
PAPER_ATTENTION = {'on': (34.6, 48.4), 'off': (24.2, None)}


@dataclass(frozen=True)
class Variant:
    """A variant to train, and the paper's figures for it with and without router: frames per second and AP."""

    name: str
    preset: str                                          # with its form of TAR
    plain: bool = False                                  # no TAR: the same number of frames, each by itself
    paper: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingStudy(StudyInputs):
    """None, bipartite, attention, with the router on and off (Table 3); trains each."""

    recipe: str = option('crowd_tar', 'packaged recipe or YAML file')
    iterations: int = option(0, "of each run; 0: the recipe's", low=0)
    seeds: tuple[int, ...] = option((0, 1, 2), 'a run for each')
    train_data: str = option('.', "folder of the recipe's data")
    set: tuple[str, ...] = option((), 'changes of the recipe', example='KEY=VALUE')
    resamples: int = option(1000, 'bootstrap samples', low=1)


@dataclass(frozen=True, kw_only=True)
class WarmupStudy(TrainingStudy):
    """Number of warm-up layers, M^s (Figure 4); trains each."""

    warmup_layers: tuple[int, ...] = option((1, 2, 3, 4), 'M^s', low=1)


def base_without_routing(asked: TrainingStudy) -> Path:
    """Return the weights that all variants start from, under ``--out``; routing starts fresh in each."""
    if asked.adapter:
        raise ValueError('--adapter: routing is trained here, afresh in each variant; leave it out')
    source = one_file(asked)
    path = asked.out / 'base.safetensors'
    state = {name: value for name, value in read_tensors(source).items() if not is_routing(name)}
    make_folder(asked.out)
    save_tensors(state, path, read_header(source).metadata)
    return path


def trained_weights(variant: Variant, seed: int, base: Path, asked: TrainingStudy) -> Path:
    """Return the weights of a variant's run. Raise TarVisError if the training fails."""
    changes = [*asked.set, f'preset={variant.preset}', f'seed={seed}']
    if asked.iterations:
        changes.append(f'iterations={asked.iterations}')
    recipe = load_recipe(asked.recipe, changes)
    if variant.plain:
        changes += ['clip=1', f'batch={recipe.batch * recipe.clip}']
    out = asked.out / f'{variant.name}_{recipe.iterations}_seed{seed}'
    words = [asked.recipe, '--data', str(user_path(asked.train_data)), '--out', str(out), '--init', str(base),
             '--device', asked.device, '--resume', *(word for change in changes for word in ('--set', change))]
    if train.main(words):
        raise TarVisError(f'the training in {out} failed; see above')
    return out / 'model.safetensors'


def router_decodings(model: VideoInstanceModel) -> dict[str, Decoding]:
    """Return the decodings by router: on; off with all layers executed (behind the Synchronizer, if there is one)."""
    if not model.config.routing:
        return {'off': lambda features, previous: model.decode(features)}
    return {'on': biased(model, 0.0), 'off': biased(model, -math.inf)}


def compare(asked: TrainingStudy, variants: Sequence[Variant]) -> list[Row]:
    """Train what is missing and evaluate: a row for each variant, router and seed, then the means over seeds."""
    if not asked.seeds:
        raise ValueError('--seeds names none')
    records, base = open_videos(asked), base_without_routing(asked)
    samples, rows = resamples(len(records), asked.resamples), []
    for seed in asked.seeds:
        for variant in variants:
            path = trained_weights(variant, seed, base, asked)
            model = load_model(variant.preset, path).to(pick_device(asked.device))
            for sampled in sample(model, records, router_decodings(model), samples):
                router = sampled.row.name
                fps, ap = variant.paper.get(router, (None, None))
                rows.append({
                    'variant': variant.name, 'router': router, 'seed': str(seed), **spread('layers', sampled.executed),
                    **spread('AP', sampled.ap), 'AP50': 100 * sampled.row.ap.mean.ap50,
                    'switches': sampled.row.identities.switches, 'frames/s': 1e3 / sampled.ms,
                    'paper frames/s': fps, 'paper AP': ap})
    return rows + mean_rows(rows, ['variant', 'router'], 'seed')


def report(asked: TrainingStudy, variants: Sequence[Variant], title: str, notes: Sequence[str]) -> None:
    """Run the whole study: train, evaluate, write."""
    rows = compare(asked, variants)

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

    iterations, changes = asked.iterations or load_recipe(asked.recipe, asked.set).iterations, ', '.join(asked.set)
    write_report(asked.out, title, rows, [
        inputs_text(asked, open_videos(asked)) + f' Each variant trained by {asked.recipe} '
        f'({changes or "as it is"}) for {iterations} iterations from the same weights, seeds '
        f'{", ".join(map(str, asked.seeds))}. Low and high: in rows of one seed 95 % intervals over '
        f'{asked.resamples} bootstrap samples of videos, in rows of means the least and the greatest seed.',
        PAPER + ' Its frames a second hold its other optimisations where the router is on; ours are of image encoder '
        'and decoder.', *notes], draw)


def run_synchronizers(asked: TrainingStudy) -> None:
    """Run ``tar-vis study synchronizer``."""
    paper = {'attention': PAPER_ATTENTION}
    chosen = [Variant('plain', asked.preset, True, {'off': (24.7, 47.4)}),
              *(Variant(name, f'{asked.preset}:synchronizer={name}', paper=paper.get(name, {}))
                for name in reversed(SYNCHRONIZERS))]
    report(asked, chosen, 'Synchronizer and router', [
        'plain: no TAR, trained on as many frames. none: routers compare queries slot by slot as they are. bipartite: '
        'queries go into the last frame\'s slots one to one (least cosine distance), their positions with them. '
        'attention: cross-attention from the last frame\'s queries (Eq. 2-3). Router off: the weights of router on, '
        'all layers executed.',
        'It shows what the synchronizer is worth to these routers on this task, and how far seeds differ. It cannot '
        'show what longer training would give, and a difference within the spread of the seeds is none. With the '
        'router off, weights that were trained to skip are judged by what they were not trained for.'])


def run_warmup(asked: WarmupStudy) -> None:
    """Run ``tar-vis study warmup``."""
    chosen = [Variant(f'{count}', f'{asked.preset}:warmup_layers={count}') for count in asked.warmup_layers]
    report(asked, chosen, 'Warm-up layers', [
        'Variants are M^s: so many layers always run, then come synchronizer and routers. Router off: the weights of '
        'router on, all layers executed. The paper chooses 1; we know no values of its Figure 4.',
        'It shows whether later synchronisation pays for the layers that it cannot skip, on this task. It cannot show '
        'what longer training would give, and a difference within the spread of the seeds is none.'])
