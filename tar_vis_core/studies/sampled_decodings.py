"""Ways of decoding, evaluated on the same bootstrap samples of videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from tar_vis_core.benchmark.cost import metered_parts
from tar_vis_core.data.ytvis import VideoRecord
from tar_vis_core.evaluation.decodings import Decoding
from tar_vis_core.evaluation.videos import VideoRow, evaluate_videos
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.seeing_routers import Past
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.runtime.device import elapsed_ms, mark
from tar_vis_core.studies.bootstrap import Precision


@dataclass(frozen=True)
class Sampled:
    """One decoding, over all videos and over each bootstrap sample of them."""

    row: VideoRow
    ms: float                # a frame, median: image encoder and decoder
    ap: np.ndarray           # (1 + samples,) percent, all videos first
    executed: np.ndarray     # (1 + samples,) layers a frame


def timed(decoding: Decoding, device: torch.device, marks: list[tuple]) -> Decoding:
    """Return the decoding, which from now on leaves marks of the time before and after each call in ``marks``."""
    def run(features: Features, previous: Past | None) -> DecoderOutput:
        before = mark(device)
        out = decoding(features, previous)
        marks.append((before, mark(device)))
        return out
    return run


def sample(model: VideoInstanceModel, records: list[VideoRecord], decodings: Mapping[str, Decoding],
           samples: np.ndarray) -> list[Sampled]:
    """Evaluate the decodings, all on the same bootstrap samples of videos ``(samples, videos)``, and time them."""
    device = model.pixel_mean.device
    decoded: dict[str, list[tuple]] = {name: [] for name in decodings}
    watched = {name: timed(decoding, device, decoded[name]) for name, decoding in decodings.items()}
    with metered_parts(model, lambda: mark(device)) as marks:
        rows = evaluate_videos(model, records, watched)
    encoder_ms = float(np.median([elapsed_ms(*backbone) + elapsed_ms(*pixels) for backbone, pixels in zip(
        marks['backbone'], marks['pixel_decoder'], strict=True)]))
    chosen = [np.arange(len(records)), *samples]
    made = []
    for row in tqdm(rows, desc='bootstrap', unit='decoding'):
        precision = Precision(records, row.predictions)
        layers, frames = np.array([(e.sum(), len(e)) for e in row.executed]).T
        decoder_ms = float(np.median([elapsed_ms(*pair) for pair in decoded[row.name]]))
        made.append(Sampled(row, encoder_ms + decoder_ms,
                            np.array([100 * precision(c) for c in chosen]),
                            np.array([layers[c].sum() / frames[c].sum() for c in chosen])))
    return made
