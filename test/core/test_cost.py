"""Parameters, operations, times and memory by part."""

import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tiny_model import picture, tiny_model, tiny_segmenter
from torch.nn.attention import SDPBackend, sdpa_kernel

from tar_vis_core.benchmark.cost import STAGES, counter, gflops_by_stage, metered, parameters_by_part
from tar_vis_core.commands.main import main
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter


def counted(call) -> int:
    with torch.inference_mode(), counter() as flops:
        call()
    return flops.get_total_flops()


def test_a_linear_layer_and_a_convolution_are_counted_exactly():
    assert counted(lambda: F.linear(torch.ones(5, 7), torch.ones(11, 7), torch.ones(11))) == 2 * 5 * 7 * 11
    assert counted(lambda: F.conv2d(torch.ones(2, 6, 9, 8), torch.ones(4, 3, 3, 3), stride=2, padding=1, groups=2)
                   ) == 2 * (2 * 4 * 5 * 4) * (3 * 3 * 3)


@pytest.mark.parametrize('mask', [None, torch.ones(5, 6, dtype=torch.bool), torch.zeros(5, 6)])
@pytest.mark.parametrize('backend', [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_is_counted_exactly_whatever_kernel_computes_it(mask, backend):
    query, key = torch.ones(2, 3, 5, 8), torch.ones(2, 3, 6, 8)
    with sdpa_kernel(backend):
        operations = counted(lambda: F.scaled_dot_product_attention(query, key, key, attn_mask=mask))
    assert operations == 2 * (2 * 3 * 5 * 6 * 8) * 2


@pytest.mark.parametrize('changes', [{}, {'routing': False}, {
    'reid': True, 'tracker_layers': 2, 'tracker_ffn': 16, 'tracker': 'referring'}, {
    'tracker_layers': 2, 'tracker_ffn': 16, 'tracker': 'dynamic_anchors'}])
def test_parameters_by_part_sum_to_the_total(changes):
    model = tiny_model(**changes)
    counts = parameters_by_part(model)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts['backbone'] == sum(p.numel() for p in model.backbone.parameters())
    assert (counts['tracker'] > 0) == ('tracker_layers' in changes)
    assert (counts['routing'] > 0) == changes.get('routing', True)


def test_every_stage_of_a_step_is_metered_once_and_left_as_it_was():
    segmenter = tiny_segmenter()
    with metered(segmenter, itertools.count().__next__) as spent:
        segmenter.step(picture(), segmenter.new_state())
    # the clock of this test counts its readings
    assert list(spent) == list(STAGES) and [after - before for (before, after), in spent.values()] == [1] * 4
    model = segmenter.model
    assert not any('forward' in vars(part) for part in (model.backbone, model.pixel_decoder, model.decoder))
    assert 'track' not in vars(segmenter.tracker)


def test_operations_by_stage():
    segmenter, images = tiny_segmenter(), [picture(k) for k in range(3)]
    by_hand = []
    for conv in segmenter.model.backbone.convolutions():
        conv.register_forward_hook(lambda layer, _, out: by_hand.append(2 * out.numel() * layer.weight[0].numel()))
    costs = {}
    for routing, options in {'full': {}, 'fixed': {'fixed_layers': 2}, 'adaptive': {'skip_bias': 100}}.items():
        segmenter.options = SegmenterOptions(routing=routing, **options)
        by_hand.clear()
        costs[routing] = gflops_by_stage(segmenter, images, 15)
        assert costs[routing]['backbone'] * 1e9 == pytest.approx(sum(by_hand) / len(images))
        assert costs[routing]['pixel_decoder'] == costs['full']['pixel_decoder'] > 0
    # adaptive executes the warm-up layer alone, of the cheapest level, and asks all routers
    assert costs['fixed']['decoder'] < costs['full']['decoder'] > costs['adaptive']['decoder'] > 0


def test_a_referring_tracker_costs_operations():
    model = tiny_model(reid=True, tracker_layers=2, tracker_ffn=16, tracker='referring')
    segmenter = VideoSegmenter.from_model(model, 'cpu', options=SegmenterOptions(routing='full'))
    once = gflops_by_stage(segmenter, [picture(k) for k in range(2)], 15)['tracker']
    queries, wide = model.config.queries, 2 * model.config.dim
    assert once * 1e9 > 2 * queries * wide * wide * 2 * 8   # eight square projections in each of two layers
    # each frame after the first costs the same
    assert gflops_by_stage(segmenter, [picture(k) for k in range(4)], 15)['tracker'] == pytest.approx(once)


def test_peak_memory_rises_by_what_a_fresh_process_takes():
    code = ('import torch; from tar_vis_core.benchmark.cost import memory\n'
            'place = torch.device("cpu"); before, _ = memory(place); torch.ones(50_000_000)\n'
            'now, most = memory(place); print(most - before, now - before)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    most, now = map(int, done.stdout.split())
    assert now < 100e6 < 190e6 < most < 300e6


@pytest.mark.parametrize(('words', 'said'), [
    (['--weights', 'some.safetensors'], '--untrained excludes --weights'), (['--warm-up', '0'], '--warm-up is 0'),
    (['--preset', 'minvis_r5'], "did you mean 'minvis_r50'"), (['--device', 'cuda:7'], 'cuda:7')])
def test_what_is_wrong_is_one_line(words, said, capsys):
    assert main(['bench', '--untrained', '--frames', '2', '--warm-up', '1', '--size', '96x64', *words]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1] and error[-1].startswith('tar-vis bench: ')
