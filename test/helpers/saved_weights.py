"""A model's weights as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from tar_vis_core.weights.loading import save_tensors


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
    """Write a model's state as safetensors, floating point as ``dtype``."""
    state = {name: value.to(dtype) if value.is_floating_point() else value
             for name, value in model.state_dict().items()}
    save_tensors(state, path, metadata)
