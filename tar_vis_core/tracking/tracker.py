"""What every tracker does: the decoder's output of the next frames in, the same objects in the same slots out."""

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
from tar_vis_core.tracking.memory_bank import MemoryBankTracker


class Tracker(Protocol):
    """Stateless: all that lives between calls is the memory, of a type of its own, None before the first frame.

    One call with T frames gives what T calls with one frame each give.
    """

    def track(self, frames: DecoderOutput, mask_features: Tensor, memory: Any) -> tuple[Tracked, Any]:
        """``frames`` are T consecutive frames of one stream, ``mask_features (T, D, h, w)`` at stride 4."""


class MatchingTracker:
    """MinVIS (Huang et al. 2022): each slot continues in the query nearest to its last embedding."""

    def track(self, frames: DecoderOutput, mask_features: Tensor, memory: Tensor | None) -> tuple[Tracked, Tensor]:
        """``memory (Q, E)`` are the last frame's embeddings in slot order; the first frame keeps its order."""
        rows = []
        for embeddings in frames.embeddings.float():
            slots = np.arange(len(embeddings))
            if memory is not None:
                indices = match_embeddings(memory, embeddings)
                slots[indices.cpu().numpy()] = np.arange(len(embeddings))
                embeddings = embeddings[indices]
            memory = embeddings
            rows.append(slots)
        return Tracked(frames.logits, frames.mask_embeddings, None, frames.embeddings, np.stack(rows)), memory


def make_tracker(name: str, model: VideoInstanceModel) -> Tracker:
    """Return the tracker of that name for a model. Raise ValueError if there is none, or if the model lacks a part."""
    if name not in TRACKERS:
        raise ValueError(unknown_name('tracker', name, ('auto', *TRACKERS)))
    if name in ('motion', 'matching'):
        return MatchingTracker()
    needs = 'the tracker network of DVIS++' if name == 'referring' else 'the re-identification head of CTVIS or DVIS++'
    if (model.tracker is None) if name == 'referring' else not model.config.reid:
        raise ValueError(f'tracker is {name!r}, which needs {needs}, and these weights have none; expected auto, '
                         'motion or matching')
    return model.tracker if name == 'referring' else MemoryBankTracker(model.config.match_threshold)
