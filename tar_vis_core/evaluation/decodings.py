"""Ways of decoding to compare: the first k layers, and TAR with its controls.

The controls measure the value of a router's choice: all layers, every routable layer skipped, and random gates that
execute as often as the router does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.seeing_routers import Past
from tar_vis_core.models.video_model import Features, VideoInstanceModel

# of the features, and of what its own frame before left
Decoding = Callable[[Features, Past | None], DecoderOutput]


def decodings_of(model: VideoInstanceModel, layers: list[int], routing: bool) -> dict[str, Decoding]:
    """Return the decodings to compare: the first k layers, and TAR with its controls.

    Each takes (features, previous queries), None for the first frame of a video. The random gates keep to the rate
    of the routers up to now: on every frame they must come after 'TAR'.
    """
    def fixed(k: int) -> Decoding:
        return lambda features, previous: model.decode(features, routing='fixed', fixed_layers=k)

    found = {f'first {k}': fixed(k) for k in layers}
    if not routing:
        return found
    rng = np.random.default_rng(0)
    rate: list[float] = []      # share of the routed layers that ran, by frame: the routers', then the random gates'
    drawn: list[float] = []

    def share_of(out: DecoderOutput) -> float:
        return float(np.mean(out.trace.executed[model.config.warmup_layers:]))

    def adaptive(features: Features, previous: Past | None) -> DecoderOutput:
        out = model.decode(features, previous, 'adaptive')
        if previous is not None:
            rate.append(share_of(out))
        return out

    def random_gates(features: Features, previous: Past | None) -> DecoderOutput:
        if previous is None:
            return model.decode(features)
        # the mean up to now lags behind a rate that changes: what it missed is made up for over some twenty frames
        share, count = np.mean(rate) + (sum(rate[:-1]) - sum(drawn)) / 20, model.config.decoder_layers
        out = model.decode(features, previous, 'adaptive',
                           gate=lambda layer: (rng.random(count - layer) < share).astype(float))
        drawn.append(share_of(out))
        return out

    return {**found, 'TAR': adaptive, 'TAR, all executed': biased(model, -math.inf),
            'TAR, all skipped': biased(model, math.inf), 'TAR, random gates': random_gates}


def biased(model: VideoInstanceModel, skip_bias: float) -> Decoding:
    """Return TAR with a bias on the routers' skip score."""
    return lambda features, previous: model.decode(features, previous, 'adaptive', skip_bias=skip_bias)
