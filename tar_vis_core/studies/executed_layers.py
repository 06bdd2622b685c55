"""Accuracy by number of decoder layers (the paper's Table 5), by which layers (Figure 2), and by TAR with controls.

We read m+n of Figure 2 as: the first m and the last n decoder layers run, those between do not. TAR is compared with
controls at the same number of executed layers:

- the plain decoder's first k layers, interpolated between the measured k;
- the first k layers behind the Synchronizer ('fixed gates'), which have the previous queries and lack only the routers'
  choice;
- all layers executed, all routed layers skipped, and random gates at TAR's own rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes

from tar_vis_core.evaluation.decodings import Decoding, biased, decodings_of
from tar_vis_core.instances import RoutingTrace
from tar_vis_core.io.paths import user_path
from tar_vis_core.models.frame_memory import FrameMemory
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.options import ModelOptions, option, same_option
from tar_vis_core.studies.bootstrap import Row, interval, mean_rows, resamples, spread
from tar_vis_core.studies.inputs import PAPER, StudyInputs, inputs_text, open_model, open_videos
from tar_vis_core.studies.report import write_report
from tar_vis_core.studies.sampled_decodings import Sampled, sample

# milliseconds of a whole frame, and AP where we know it (Tables 4 and 5, abstract)
PAPER_MS = {'first 1': 24.2, 'first 2': 26.0, 'first 3': 27.4, 'first 6': 33.7, 'first 9': 40.5, 'TAR': 31.5}
PAPER_AP = {'first 6': 47.6, 'first 9': 47.4, 'TAR': 48.4}
ALL, NONE = 'TAR, all executed', 'TAR, all skipped'


@dataclass(frozen=True, kw_only=True)
class LayersStudy(StudyInputs):
    """AP by decoder layers (Table 5, Figure 2), TAR, its controls and its trade-off."""

    layers: tuple[int, ...] = option((1, 2, 3, 6, 9), 'first k', low=0)
    pairs: tuple[str, ...] = option(('1+1', '1+2', '2+1', '3+3'), 'first M and last N', example='M+N such as 1+2')
    skip_bias: tuple[float, ...] = option((-2.0, -1.0, -0.5, 0.5, 1.0, 2.0),
                                          "added to the routers' skip score, beside 0")
    resamples: int = option(1000, 'bootstrap samples', low=1)
    tracker: str = same_option(ModelOptions, 'tracker')


def layer_pair(text: str) -> tuple[int, int]:
    """Return ``M+N`` as two numbers."""
    m, _, n = text.partition('+')
    if not (m.isdigit() and n.isdigit()):
        raise ValueError(f'--pairs has {text!r}, expected M+N such as 1+2')
    return int(m), int(n)


def decode_layers(model: VideoInstanceModel, features: Features, chosen: Sequence[int]) -> DecoderOutput:
    """Run the plain decoder with the layers ``chosen`` only, each at its own level; every frame by itself."""
    decoder = model.decoder
    memory = FrameMemory(features.mask_features, features.levels, decoder.level_embed)
    x = decoder.query_feat.expand(features.mask_features.shape[0], -1, -1)
    for i in chosen:
        x = decoder.run_layer(i, x, memory)
    count = len(decoder.layers)
    return decoder.output(x, RoutingTrace(tuple(i in chosen for i in range(count)), np.full(count, np.nan, np.float32)))


def with_gates(model: VideoInstanceModel, count: int) -> Decoding:
    """Return TAR with the first ``count`` layers executed on every frame, whatever the routers say."""
    gates = np.arange(model.config.decoder_layers) < count
    return lambda features, previous: model.decode(features, previous, 'adaptive',
                                                   gate=lambda layer: gates[layer:].astype(float))


def decodings_to_compare(model: VideoInstanceModel, layers: Sequence[int], pairs: Sequence[tuple[int, int]],
                    biases: Sequence[float]) -> dict[str, Decoding]:
    """Return the decodings to compare: first k, m+n, and if there are routers TAR with its controls and each bias."""
    count, routing = model.config.decoder_layers, model.config.routing
    for k in [*layers, *(m + n for m, n in pairs)]:
        if not 0 <= k <= count:
            raise ValueError(f'{k} layers asked for, the decoder has {count}')

    def both_ends(m: int, n: int) -> Decoding:
        return lambda features, previous: decode_layers(model, features, [*range(m), *range(count - n, count)])

    decodings = decodings_of(model, sorted(set(layers)), routing)
    decodings |= {f'{m}+{n}': both_ends(m, n) for m, n in pairs}
    if routing:
        # one gate and all gates open are 'all skipped' and 'all executed'
        between = [k for k in sorted(set(layers)) if model.config.warmup_layers < k < count]
        decodings |= {f'TAR, fixed gates {k}': with_gates(model, k) for k in between}
        decodings |= {f'TAR, bias {b:+g}': biased(model, b) for b in sorted(biases)}
    return decodings


def at_same_layers(fixed: Sequence[Sampled], executed: np.ndarray) -> np.ndarray:
    """Return the AP of fixed numbers of layers, interpolated at ``executed`` layers ``(1 + samples,)`` in each sample.

    It is NaN outside the measured numbers, and if there are none.
    """
    if not fixed:
        return np.full(len(executed), math.nan)
    fixed = sorted(fixed, key=lambda s: s.executed[0])
    layers, aps = (np.stack([getattr(s, name) for s in fixed], 1) for name in ('executed', 'ap'))
    return np.array([np.interp(*curve, math.nan, math.nan) for curve in zip(executed, layers, aps)])


def table_row(weights: str, sampled: Sampled, everything: Sequence[Sampled]) -> Row:
    """Return a row of the table, in percent points."""
    name, mean = sampled.row.name, sampled.row.ap.mean
    plain = [s for s in everything if s.row.name.startswith('first ') and s.executed[0] > 0]
    gated = [s for s in everything if s.row.name in (NONE, ALL) or s.row.name.startswith('TAR, fixed')]
    full = [s.ap for s in everything if s.row.name == ALL] or [np.full(len(sampled.ap), math.nan)]
    row: Row = {'weights': weights, 'decoding': name, 'layers': float(sampled.executed[0]), **spread('AP', sampled.ap),
                'AP50': 100 * mean.ap50, 'switches': sampled.row.identities.switches,
                **spread('AP - all executed', sampled.ap - full[0]),
                **spread('AP - first k at same layers', sampled.ap - at_same_layers(plain, sampled.executed)),
                **spread('AP - fixed gates at same layers', sampled.ap - at_same_layers(gated, sampled.executed))}
    return row | {'ms': sampled.ms, 'paper ms': PAPER_MS.get(name), 'paper AP': PAPER_AP.get(name)}


def ap_plot(results: dict[str, list[Sampled]]) -> Callable[[Axes], None]:
    """Return the function that draws AP over executed layers, with one colour for each weights file."""
    def draw(axes: Axes) -> None:
        for number, (weights, everything) in enumerate(results.items()):
            kinds = {'first k': ('o-', lambda n: n.startswith('first ')), 'm+n': ('x', lambda n: '+' in n[:3]),
                     'TAR, by skip bias': ('s--', lambda n: n == 'TAR' or n.startswith('TAR, bias')),
                     'TAR, fixed gates': ('^:', lambda n: n in (NONE, ALL) or n.startswith('TAR, fixed')),
                     'TAR, random gates': ('v', lambda n: n == 'TAR, random gates')}
            for kind, (label, (style, belongs)) in enumerate(kinds.items()):
                # one colour for a kind, or for a file where there are several
                colour = number if len(results) > 1 else kind
                chosen = sorted((s for s in everything if belongs(s.row.name)), key=lambda s: s.executed[0])
                if not chosen:
                    continue
                low, high = np.array([interval(s.ap[1:]) for s in chosen]).T
                value = np.array([s.ap[0] for s in chosen])
                reach = np.maximum([value - low, high - value], 0)
                axes.errorbar([s.executed[0] for s in chosen], value, reach, fmt=style, color=f'C{colour}',
                              markersize=5, capsize=2, elinewidth=0.6, markerfacecolor='none' if '-' in style else None,
                              label=f'{label} ({weights})' if len(results) > 1 else label)
        axes.set_xlabel('executed decoder layers a frame')
        axes.set_ylabel('AP, percent (95 % over videos)')
        axes.legend(fontsize=7)
    return draw


@torch.inference_mode()
def run(asked: LayersStudy) -> None:
    """Run ``tar-vis study layers``."""
    records = open_videos(asked)
    samples = resamples(len(records), asked.resamples)
    results: dict[str, list[Sampled]] = {}
    pairs = [layer_pair(text) for text in asked.pairs]
    for path in [*map(user_path, asked.weights)] or [None]:
        model = open_model(asked, path)
        decodings = decodings_to_compare(model, asked.layers, pairs, asked.skip_bias)
        name = 'packaged' if path is None else f'{path.parent.name}/{path.stem}'
        results[name] = sample(model, records, decodings, samples, asked.tracker)
    rows = [table_row(name, s, everything) for name, everything in results.items() for s in everything]
    if len(results) > 1:
        rows += mean_rows(rows, ['decoding'], 'weights')
    write_report(asked.out, 'AP by executed decoder layers', rows, [
        inputs_text(asked, records) + f' {asked.resamples} bootstrap samples of videos, seed 0; low and high are 95 % '
        'intervals over videos, in rows over several weights the least and the greatest of them.',
        PAPER + ' Its milliseconds are of a whole frame (TAR: without its other optimisations, Table 4); ours are '
        'medians of image encoder and decoder, taken while all decodings take turns.',
        'm+n: the first m and the last n layers. Fixed gates k: behind the synchronizer the first k layers on every '
        'frame. Layers are counted over all frames, first frames with all of them included; AP at the same layers is '
        'interpolated between the fixed numbers. It shows what this model loses with fewer layers on these videos, and '
        'whether its routers choose better than a fixed number or chance at the same cost. It cannot show what TAR '
        'gives another model, and where all layers hardly beat one it shows nothing of TAR at all. The fixed decodings '
        'run weights that were trained for all layers (and for routing, where they hold routers), not for fewer.'],
        ap_plot(results))
