"""The interface of all trackers: the decoder's output of the next frames in, objects in constant slots out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from tar_vis_core.errors import unknown_name
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.presets import TRACKERS
from tar_vis_core.models.query_matching import match_embeddings
from tar_vis_core.models.tracked import Tracked
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.tracking.anchored_tracks import OTHER_RULES, RULES, AnchoredTracker
from tar_vis_core.tracking.memory_bank import MemoryBankTracker

# what trackers need of a model
NEEDS = {'referring': 'the tracker network of DVIS++', 'referring_2023': 'the tracker network of DVIS',
         'dynamic_anchors': 'the tracker network of DVIS-DAQ',
         'memory_bank': 'the re-identification head of CTVIS, DVIS++ or DVIS-DAQ'}


class Tracker(Protocol):
    """A tracker keeps nothing between calls but the memory, whose type is the tracker's; None before the first frame.

    One call with T frames returns the same as T calls with one frame each.
    """

    def track(self, frames: DecoderOutput, mask_features: Tensor, memory: Any) -> tuple[Tracked, Any]:
        """Track T consecutive ``frames`` of one stream, with ``mask_features (T, D, h, w)`` at stride 4."""


class MatchingTracker:
    """MinVIS (Huang et al. 2022): each slot continues in the query nearest to its last embedding."""

    def track(self, frames: DecoderOutput, mask_features: Tensor, memory: Tensor | None) -> tuple[Tracked, Tensor]:
        """Track; ``memory (Q, E)`` are the last frame's embeddings in slot order. The first frame keeps its order."""
        rows = []
        for embeddings in frames.embeddings.float():
            slots = np.arange(len(embeddings))
            if memory is not None:
                indices = match_embeddings(memory, embeddings)
                slots[indices.cpu().numpy()] = np.arange(len(embeddings))
                embeddings = embeddings[indices]
            memory = embeddings
            rows.append(slots)
        return Tracked(frames.logits, frames.mask_embeddings, None, frames.embeddings, np.stack(rows),
                       shapes=frames.shapes), memory


def make_tracker(name: str, model: VideoInstanceModel) -> Tracker:
    """Return the tracker of that name for a model. Raise ValueError if there is none, or if the model lacks a part."""
    if name not in TRACKERS:
        raise ValueError(unknown_name('tracker', name, ('auto', *TRACKERS)))
    if name in ('motion', 'matching'):
        return MatchingTracker()
    config = model.config
    there = config.reid if name == 'memory_bank' else model.tracker is not None and config.tracker == name
    if not there:
        raise ValueError(f'tracker is {name!r}, which needs {NEEDS[name]}, and these weights have none; expected auto, '
                         'motion or matching')
    if name == 'memory_bank':
        return MemoryBankTracker(config.match_threshold)
    if name == 'dynamic_anchors':
        return AnchoredTracker(model.tracker, model.decoder.query_feat, *RULES.get(config.class_set, OTHER_RULES))
    return model.tracker
