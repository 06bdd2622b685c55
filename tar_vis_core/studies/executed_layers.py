"""Accuracy by number of decoder layers (the paper's Table 5), by which layers (Figure 2), and by TAR with controls.

We read m+n of Figure 2 as: the first m and the last n decoder layers run, those between do not. TAR is compared with
controls at the same number of executed layers:

- the plain decoder's first k layers, interpolated between the measured k;
- the first k layers behind the Synchronizer ('fixed gates'), which have the previous queries and lack only the routers'
  choice;
- all layers executed, all routed layers skipped, and random gates at TAR's own rate;
- the first k layers of the order of Routers that look at the picture ('order');
- TAR's own numbers of layers on other frames, and the best by truth (``controls.py``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes

from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.evaluation.decodings import Decoding, biased, decodings_of
from tar_vis_core.instances import RoutingTrace
from tar_vis_core.io.paths import user_path
from tar_vis_core.models.frame_memory import FrameMemory
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.seeing_routers import SeeingRouters
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.options import option
from tar_vis_core.studies.bootstrap import Row, interval, mean_rows, resamples, spread
from tar_vis_core.studies.controls import ByChance, ByConfidence, ByPictures, Oracle, Watched, in_order
from tar_vis_core.studies.inputs import PAPER, StudyInputs, inputs_text, open_model, open_videos
from tar_vis_core.studies.report import UNKNOWN, write_report
from tar_vis_core.studies.sampled_decodings import Sampled, sample

# milliseconds of a whole frame, and AP where we know it (Tables 4 and 5, abstract)
PAPER_MS = {'first 1': 24.2, 'first 2': 26.0, 'first 3': 27.4, 'first 6': 33.7, 'first 9': 40.5, 'TAR': 31.5}
PAPER_AP = {'first 6': 47.6, 'first 9': 47.4, 'TAR': 48.4}
ALL, NONE, RANDOM = 'TAR, all executed', 'TAR, all skipped', 'TAR, random gates'
CHANCE, MSE, CONFIDENCE, ORACLE = 'TAR, by chance', 'TAR, by MSE', 'TAR, by confidence', 'TAR, oracle'


@dataclass(frozen=True, kw_only=True)
class LayersStudy(StudyInputs):
    """AP by decoder layers (Table 5, Figure 2), TAR, its controls and its trade-off."""

    layers: tuple[int, ...] = option((1, 2, 3, 6, 9), 'first k', low=0)
    pairs: tuple[str, ...] = option(('1+1', '1+2', '2+1', '3+3'), 'first M and last N', example='M+N such as 1+2')
    skip_bias: tuple[float, ...] = option((-2.0, -1.0, -0.5, 0.5, 1.0, 2.0),
                                          "added to the routers' skip score, beside 0")
    resamples: int = option(1000, 'bootstrap samples', low=1)
    controls: bool = option(False, "also TAR's numbers of layers by chance, MSE, confidence and truth")


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


def decodings_to_compare(model: VideoInstanceModel, asked: LayersStudy, records: Sequence[VideoRecord]
                         ) -> dict[str, Decoding]:
    """Return the decodings to compare: first k, m+n, and if there are routers TAR with its controls and each bias."""
    count, routing, layers = model.config.decoder_layers, model.config.routing, sorted(set(asked.layers))
    pairs = [layer_pair(text) for text in asked.pairs]
    for k in [*layers, *(m + n for m, n in pairs)]:
        if not 0 <= k <= count:
            raise ValueError(f'{k} layers asked for, the decoder has {count}')
    sees = routing and isinstance(model.decoder.routers, SeeingRouters)
    if asked.controls and (not sees or model.decoder.seeds is not None):
        raise ValueError('--controls is for routers that look at the picture and queries that do not start from boxes, '
                         'such as --preset crowd:routers=seeing')

    def both_ends(m: int, n: int) -> Decoding:
        return lambda features, previous: decode_layers(model, features, [*range(m), *range(count - n, count)])

    decodings = decodings_of(model, layers, routing)
    decodings |= {f'{m}+{n}': both_ends(m, n) for m, n in pairs}
    if routing:
        # one gate and all gates open are 'all skipped' and 'all executed'
        between = [k for k in layers if model.config.warmup_layers < k < count]
        decodings |= {f'TAR, fixed gates {k}': with_gates(model, k) for k in between}
        if sees:
            decodings |= {f'TAR, order {k}': in_order(model, k - model.config.warmup_layers) for k in between}
        if asked.controls:
            tar = decodings['TAR'] = Watched(model, decodings['TAR'])
            decodings |= {CHANCE: ByChance(model, tar), MSE: ByPictures(model, tar, records),
                          CONFIDENCE: ByConfidence(model, tar), ORACLE: Oracle(model, tar, records)}
        decodings |= {f'TAR, bias {b:+g}': biased(model, b) for b in sorted(asked.skip_bias)}
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
    full, by_chance = ([s.ap for s in everything if s.row.name == of] or [np.full(len(sampled.ap), math.nan)]
                       for of in (ALL, RANDOM))
    row: Row = {'weights': weights, 'decoding': name, 'layers': float(sampled.executed[0]), **spread('AP', sampled.ap),
                'AP50': 100 * mean.ap50, 'switches': sampled.row.identities.switches,
                **spread('AP - all executed', sampled.ap - full[0]),
                **spread('AP - random gates', sampled.ap - by_chance[0]),
                **spread('AP - first k at same layers', sampled.ap - at_same_layers(plain, sampled.executed)),
                **spread('AP - fixed gates at same layers', sampled.ap - at_same_layers(gated, sampled.executed))}
    return row | {'ms': sampled.ms, 'paper ms': PAPER_MS.get(name), 'paper AP': PAPER_AP.get(name)}


def ap_plot(results: dict[str, list[Sampled]]) -> Callable[[Axes], None]:
    """Return the function that draws AP over executed layers; of several weights files the mean, least and greatest."""
    kinds = {'first k': ('o-', lambda n: n.startswith('first ')),
             'm+n': ('x', lambda n: '+' in n[:3]),
             'TAR, by skip bias': ('s--', lambda n: n == 'TAR' or n.startswith('TAR, bias')),
             'TAR, fixed gates': ('^:', lambda n: n in (NONE, ALL) or n.startswith('TAR, fixed')),
             'TAR, first of its order': ('P:', lambda n: n in (NONE, ALL) or n.startswith('TAR, order')),
             RANDOM: ('v', RANDOM.__eq__), CHANCE: ('<', CHANCE.__eq__), MSE: ('>', MSE.__eq__),
             CONFIDENCE: ('d', CONFIDENCE.__eq__), ORACLE: ('*', ORACLE.__eq__)}

    def draw(axes: Axes) -> None:
        rows: dict[str, list[Sampled]] = {}
        for s in itertools.chain(*results.values()):
            rows.setdefault(s.row.name, []).append(s)
        for number, (kind, (style, belongs)) in enumerate(kinds.items()):
            points = []
            for name in filter(belongs, rows):
                layers, aps = np.array([(s.executed[0], s.ap[0]) for s in rows[name]]).T
                low, high = interval(rows[name][0].ap[1:]) if len(results) == 1 else (aps.min(), aps.max())
                points.append((layers.mean(), aps.mean(), low, high))
            if not points:
                continue
            layers, value, low, high = np.array(sorted(points)).T
            reach = np.maximum([value - low, high - value], 0)
            axes.errorbar(layers, value, reach, fmt=style, color=f'C{number}', markersize=5, capsize=2, elinewidth=0.6,
                          markerfacecolor='none' if '-' in style else None, label=kind)
        axes.set_xlabel('executed decoder layers a frame')
        axes.set_ylabel('AP, percent (' + ('95 % over videos)' if len(results) == 1 else f'{len(results)} weights)'))
        axes.legend(fontsize=7)
    return draw


@torch.inference_mode()
def run(asked: LayersStudy) -> None:
    """Run ``tar-vis study layers``."""
    records = open_videos(asked)
    samples = resamples(len(records), asked.resamples)
    results: dict[str, list[Sampled]] = {}
    agreements = []
    for path in [*map(user_path, asked.weights)] or [None]:
        model = open_model(asked, path)
        decodings = decodings_to_compare(model, asked, records)
        name = 'packaged' if path is None else f'{path.parent.name}/{path.stem}'
        results[name] = sample(model, records, decodings, samples)
        if asked.controls:
            agreements.append(f'{name} {decodings[ORACLE].agreement():.2f}')
    rows = [table_row(name, s, everything) for name, everything in results.items() for s in everything]
    if len(results) > 1:
        rows += mean_rows(rows, ['decoding'], 'weights')
    write_report(asked.out, 'AP by executed decoder layers', rows, [
        inputs_text(asked, records) + f' {asked.resamples} bootstrap samples of videos, seed 0; low and high are 95 % '
        'intervals over videos, in rows over several weights the least and the greatest of them.',
        PAPER + ' Its milliseconds are of a whole frame (TAR: without its other optimisations, Table 4); ours are '
        'medians of image encoder and decoder, taken while all decodings take turns.',
        f'Spearman of what the Routers say before the first routed layer and of what all routed layers are worth: '
        f'{", ".join(agreements) or UNKNOWN}.',
        'm+n: the first m and the last n layers. Fixed gates k: behind the synchronizer the first k layers on every '
        'frame. Order k: the warm-up layers and the first others in the order of routers that look at the picture. By '
        "chance, MSE, confidence: TAR's own numbers of layers, the greater for frames that are drawn, whose picture "
        'differs more, or whose masks are less sure behind the synchronizer. Oracle: the number of layers that is best '
        'by truth, at a price. Layers are counted over all frames, first frames with all of them included; AP at the '
        'same layers is interpolated between the fixed numbers. It shows what this model loses with fewer layers, and '
        'whether its routers choose better than a fixed number or chance at the same cost. It cannot show what TAR '
        'gives another model, and where all layers hardly beat one it shows nothing of TAR at all. The fixed decodings '
        'run weights that were trained for all layers (and for routing, where they hold routers), not for fewer.'],
        ap_plot(results))
