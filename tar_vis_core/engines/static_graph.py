"""A part of a model as a static graph, and as an ONNX file."""

from __future__ import annotations

import io
import warnings
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

OPSET = 17          # the first with layer normalization


class StaticGraph(nn.Module):
    """A module whose tensors have names, and sizes that follow from that of the network's input."""

    outputs: tuple[str, ...]

    @abstractmethod
    def inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """Return random tensors by name, for images of a size that is a multiple of 32."""

    def onnx(self, height: int, width: int) -> bytes:
        """Return the graph for images ``(1, 3, height, width)``, multiples of 32, as an ONNX file."""
        file = io.BytesIO()
        # With gradients PyTorch's operators take the place of compiled kernels, which no graph can hold.
        with (torch.inference_mode(False), torch.enable_grad(), torch.autocast('cpu', enabled=False),
              torch.random.fork_rng(devices=[]), warnings.catch_warnings()):
            warnings.simplefilter('ignore')     # of shapes that become constants, as they should
            inputs = self.inputs(height, width)
            torch.onnx.export(self, tuple(inputs.values()), file, input_names=list(inputs),
                              output_names=list(self.outputs), opset_version=OPSET, dynamo=False)
        return file.getvalue()


def gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the greatest difference of the outputs, each as a share of the greatest value of ours."""
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in zip(ours, theirs, strict=True))
