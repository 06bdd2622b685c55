"""A traced model is right, or there is an error: results of compiled kernels never become constants of a graph."""

import warnings

import pytest
import torch
from tiny_model import tiny_model

from tar_vis_core.models.packed import inference_form
from tar_vis_core.models.video_model import Features, VideoInstanceModel
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.kernels import maps, rows

needs_kernels = pytest.mark.skipif(kernels.compiled() is None, reason='the kernels are not built')


class Encoder(torch.nn.Module):
    def __init__(self, model: VideoInstanceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made: Features = self.model.encode(images)
        return made.mask_features, *made.levels


def images(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(seed)) * 255


def traced(encoder: torch.nn.Module) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')     # of shapes that become constants, as they may
        return torch.jit.trace(encoder, images(0), check_trace=False)


@needs_kernels
@pytest.mark.parametrize(('form', 'words'), [
    (lambda model: model, 'the graph would hold its result as a constant'),
    (lambda model: inference_form(model, torch.device('cpu')), None),     # torch refuses its packed weights, too
], ids=['plain', 'inference'])
def test_a_graph_with_kernels_is_refused(form, words):
    encoder = Encoder(form(tiny_model().eval()))
    with torch.no_grad(), pytest.raises(RuntimeError, match=words):
        traced(encoder)


@needs_kernels
@pytest.mark.parametrize('call', [
    lambda x: kernels.group_norm(x, 2, torch.ones(4), torch.zeros(4), 1e-5),
    lambda x: kernels.attention(*[x.flatten(2).transpose(1, 2).repeat(1, 1, 8)] * 3, 2, None),
    lambda x: kernels.sample_deformable(x.flatten(2).transpose(1, 2), torch.zeros(1, 5, 2, 1, 3, 2),
                                        torch.zeros(1, 5, 2, 1, 3), torch.rand(5, 2), ((6, 8),)),
    lambda x: maps.convolve(x.repeat(1, 4, 1, 1), maps.Convolution(
        16, (torch.ones(3, 3, 16), torch.ones(16), 1.0), ())),
    lambda x: maps.enlarge(x.repeat(1, 4, 1, 1), (12, 16)),
    lambda x: maps.normalized(x.to(torch.uint8), torch.zeros(4), torch.ones(4), (8, 8)),
    lambda x: rows.layer_norm(x.repeat(1, 1, 1, 2), torch.nn.LayerNorm(16))[0],
    lambda x: rows.attended_cells(torch.ones(1, 2, 16), x.repeat(1, 1, 1, 2))],
    ids=['group norm', 'attention', 'deformable', 'convolution', 'samples', 'input', 'layer norm', 'cells'])
def test_every_kernel_refuses(call):
    x = torch.rand(1, 4, 6, 8)
    with torch.no_grad():
        assert call(x).isfinite().all()
        with pytest.raises(RuntimeError, match='cannot be traced'):
            torch.jit.trace(call, x, check_trace=False)


def test_what_the_error_says_gives_a_graph_that_is_right():
    encoder = Encoder(tiny_model().eval())
    made = traced(encoder)
    with torch.no_grad():
        for ours, theirs in zip(encoder(images(1)), made(images(1)), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
