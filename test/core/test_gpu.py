"""What is done on a GPU gives what a CPU gives: graphs, the Triton kernel, half precision. Skipped where there is none.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from played_models import assert_equal, recordings, spread_routers, steps_of_many_sizes
from tiny_model import picture, tiny_model

from tar_vis_core.benchmark.contenders import FULL, REFERENCE, TAR
from tar_vis_core.commands.main import main
from tar_vis_core.models import deformable
from tar_vis_core.models.cuda_graphs import MOST
from tar_vis_core.models.packed import inference_form
from tar_vis_core.models.video_model import build_model
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'),
              pytest.mark.filterwarnings('error::RuntimeWarning')]      # nothing falls back
GPU = torch.device('cuda:0')
WIDE = dict(dim=64, heads=2, encoder_heads=2)       # heads of 32 channels, which the Triton kernel can do
OFFICIAL = dict(class_names=('one', 'two'))
MODELS = {
    'nano': lambda: tiny_model(**WIDE), 'official': lambda: tiny_model(**WIDE, **OFFICIAL),
    'memory bank': lambda: tiny_model(**WIDE, **OFFICIAL, reid=True, tracker='memory_bank'),
    **{tracker: lambda tracker=tracker: tiny_model(**WIDE, **OFFICIAL, reid=True, tracker_layers=2, tracker_ffn=16,
                                                   tracker=tracker)
       for tracker in ('referring', 'referring_2023', 'dynamic_anchors')}}


@pytest.fixture(autouse=True)
def no_short_cuts():
    """Products in full float32, as on a CPU."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


def segmenters(make, precision='float32', **options):
    """The plain model on the CPU, live on the GPU, and in the GPU's own form."""
    torch.manual_seed(2)
    model = make().eval()
    spread_routers(model)
    options = SegmenterOptions(**{'score_threshold': 0.05, 'max_instances': 50, 'refresh_frames': 4, **options})
    dtype = getattr(torch, precision)
    return [VideoSegmenter.from_model(one, device, precision if device == 'cuda:0' else 'float32', options)
            for one, device in ((model, 'cpu'), (copy.deepcopy(model), 'cuda:0'),
                                (inference_form(copy.deepcopy(model), GPU, dtype), 'cuda:0'))]


@pytest.mark.parametrize('name', MODELS)
def test_streams_are_answered_as_on_a_cpu(name):
    on_cpu, live, played = segmenters(MODELS[name])
    states = {one: (one.new_state(), one.new_state()) for one in (on_cpu, live, played)}
    gaps, alike, seen = [], [], 0
    for frame in range(6):
        for camera, size in enumerate([(96, 128), (60, 132)]):
            image = picture(10 * camera + frame, *size)
            expected, plainly, found = (one.step(image, states[one][camera]) for one in (on_cpu, live, played))
            for other in (plainly, found):
                alike.append(other.routing.executed == expected.routing.executed and [
                    i.track_id for i in other.instances] == [i.track_id for i in expected.instances])
                if alike[-1]:
                    for a, b in zip(other.instances, expected.instances, strict=True):
                        gaps += [abs(a.score - b.score), abs(a.area - b.area) / 1e3]
            seen += len(found.instances)
    # a logit that is zero but for rounding may turn a bit of a mask, and with it what follows
    assert seen > 10 and np.mean(alike) > 0.8 and np.median(gaps) < 1e-4


@torch.inference_mode()
def test_official_sizes_in_float32_and_in_half_precision():
    torch.manual_seed(2)
    model = build_model('minvis_r50').eval()
    plain = copy.deepcopy(model).to(GPU)
    pixels = torch.from_numpy(picture(1, 360, 640)).to(GPU)

    def passed(one):
        features = one.encode(one.prepare(pixels, 360))
        out = one.decode(features)
        return features.mask_features.float(), out.logits.float()

    expected = passed(plain)
    for dtype, limit in ((torch.float32, 1e-3), (torch.float16, 0.05), (torch.bfloat16, 0.3)):
        fast = inference_form(copy.deepcopy(model), GPU, dtype)
        with torch.autocast('cuda', dtype=dtype, enabled=dtype != torch.float32):
            for _ in range(2):
                for found, value in zip(passed(fast), expected, strict=True):
                    assert ((found - value).abs() / value.abs().max()).median() < limit


@torch.inference_mode()
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_the_triton_kernel_equals_grid_sample(dtype):
    pytest.importorskip('triton')
    generator = torch.Generator(GPU).manual_seed(0)
    shapes, heads, width = ((15, 27), (30, 54), (60, 108)), 8, 32
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(2, cells, heads * width, generator=generator, device=GPU, dtype=dtype)
    offsets = 4 * torch.randn(2, cells, heads, 3, 4, 2, generator=generator, device=GPU)
    logits = torch.randn(offsets.shape[:-1], generator=generator, device=GPU, dtype=dtype)
    reference = torch.rand(cells, 2, generator=generator, device=GPU)
    found, expected = (deformable.SAMPLERS[name](value, offsets, logits, reference, shapes).float()
                       for name in ('Triton kernel', 'grid_sample'))
    assert (found - expected).abs().max() < {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]


def test_two_cameras_and_a_still_one_do_not_write_over_each_other():
    _, live, played = segmenters(MODELS['official'], encoder_reuse=5.0)
    states = {one: [one.new_state() for _ in range(2)] for one in (live, played)}
    reused = 0
    for frame in range(5):
        for camera in range(2):
            image = picture(camera * (1 + frame))
            expected, found = (one.step(image, states[one][camera]) for one in (live, played))
            assert found.encoder_reused == expected.encoder_reused
            assert [i.track_id for i in found.instances] == [i.track_id for i in expected.instances]
            reused += found.encoder_reused
    assert reused == 4


def test_memory_does_not_grow_with_time_or_with_sizes_and_older_graphs_outlive_younger_ones():
    _, live, played = segmenters(MODELS['official'])
    alike, held, taken = [], [], []
    for _ in range(3):
        for expected, found in steps_of_many_sizes(live, played, range(96, 96 + 8 * (MOST + 2), 8), turns=1):
            alike.append([i.track_id for i in expected.instances] == [i.track_id for i in found.instances])
            held.append(recordings(played.model))
        torch.cuda.synchronize()
        taken.append(torch.cuda.memory_reserved())
    assert played.recordings > 2 * held[-1], 'graphs have gone'
    assert held[-1] == max(held) and taken[-1] <= 1.1 * taken[0]
    assert np.mean(alike) > 0.9


def test_warming_up_leaves_nothing_to_record():
    *_, played = segmenters(MODELS['official'])
    played.warm_up(96, 128)
    state, before = played.new_state(), recordings(played.model)
    results = [played.step(picture(k), state) for k in range(8)]
    assert recordings(played.model) == before > 10
    again = played.new_state()
    for k, result in enumerate(results):
        assert_equal(played.step(picture(k), again), result)


def test_the_benchmark_runs(tmp_path, capsys):
    figures = tmp_path / 'figures.json'
    assert main(['bench', '--preset', 'minvis_r50', '--untrained', '--device', 'cuda:0', '--precision', 'float16',
                 '--size', '320x180', '--short-side', '180', '--frames', '6', '--warm-up', '2', '--json',
                 str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert list(found['lines']) == [REFERENCE, FULL, TAR] and found['machine']['gpu']
    assert 'Triton' in found['lines'][FULL]['deformable_attention'] or 'grid' in found['lines'][FULL][
        'deformable_attention']
    assert min(found['peak_memory_gb'].values()) > 0 and min(found['device_memory_gb'].values()) > 0
    assert found['remarks'] == [] and found['machine']['float32'] == 'convolutions IEEE, products IEEE'
    capsys.readouterr()
