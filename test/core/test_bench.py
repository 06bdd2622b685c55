"""tar-vis bench: three lines on the same weights and frames, their files side by side, the guard."""

import contextlib
import copy
import io
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny_model import picture, tiny_model

from tar_vis_core.benchmark import measurement
from tar_vis_core.benchmark import reference as reference_style
from tar_vis_core.benchmark.contenders import (
    FULL,
    REFERENCE,
    STAGES,
    TAR,
    costs,
    make_lines,
    operators,
    summary,
    take_turns,
)
from tar_vis_core.benchmark.machine import in_words, machine, power_draw
from tar_vis_core.benchmark.reference import ReferenceDecoder
from tar_vis_core.benchmark.report import TOLERANCE, fallen, ratios
from tar_vis_core.commands import bench
from tar_vis_core.commands.bench import parser
from tar_vis_core.commands.main import main
from tar_vis_core.flags import chosen
from tar_vis_core.models.deformable import sample_by_grid
from tar_vis_core.models.masked_decoder import MaskedDecoder
from tar_vis_core.models.packed_layers import packable
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import elapsed_ms, mark
from tar_vis_core.segmenter import VideoSegmenter

TOY = ['--untrained', '--frames', '3', '--warm-up', '1', '--size', '96x64', '--short-side', '64']


def decoded(line, image):
    segmenter = line.segmenter
    with torch.inference_mode(), line.style():
        frame = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        features = segmenter.model.encode(segmenter.model.normalize(frame))
        out = segmenter.model.decode(features)
        return {'features': features.mask_features, 'logits': out.logits, 'mask embeddings': out.mask_embeddings}


def test_costs_in_half_precision_are_those_of_float32():
    torch.manual_seed(0)
    model, images = tiny_model(decoder_layers=3), [picture(k, 64, 64) for k in range(2)]
    half, full = (costs(make_lines(own := copy.deepcopy(model), precision=p, fresh=True), own, images, 15)
                  for p in ('bfloat16', 'float32'))
    for name, line in full.items():
        assert half[name]['gflops'] == pytest.approx(line['gflops'])
        assert half[name]['attention'] and half[name]['deformable_attention'] == line['deformable_attention']


@pytest.mark.parametrize('changes', [{}, {'backbone': 'r50', 'separable': False}])
def test_reference_style_and_ours_agree(changes):
    lines = make_lines(tiny_model(**changes))
    expected, found = decoded(lines[REFERENCE], picture()), decoded(lines[FULL], picture())
    for name, value in expected.items():
        gap = (found[name] - value).abs() / max(1.0, value.abs().max().item())
        assert gap.max() < 1e-4, name


@pytest.mark.parametrize('routing', ['full', 'adaptive'])
def test_the_reference_style_gives_the_same_answers_by_other_operations(routing):
    model = tiny_model().eval()
    torch.nn.init.normal_(model.decoder.routers.weight2)        # they choose by what they see
    torch.nn.init.zeros_(model.decoder.routers.bias2)
    separate, einsums = [], []
    with torch.inference_mode():
        features = model.encode(model.normalize(torch.from_numpy(picture()).permute(2, 0, 1)[None].float()))
        previous = model.decode(features).queries.flip(1)
        ours = model.decode(features, previous, routing)
        with torch.profiler.profile() as fused:
            model.decode(features, previous, routing)
        published = reference_style.in_reference_style(model)
        with reference_style.unfused_attention(), torch.profiler.profile() as unfused:
            theirs = published.decode(features, previous, routing)
    assert theirs.trace.executed == ours.trace.executed
    assert (theirs.logits - ours.logits).abs().max() < 1e-3 and (theirs.queries - ours.queries).abs().max() < 1e-3
    for profiled in (fused, unfused):
        counts = {event.key: event.count for event in profiled.key_averages()}
        separate.append(counts.get('aten::_scaled_dot_product_attention_math', 0))
        einsums.append(counts.get('aten::einsum', 0))
    runs = sum(ours.trace.executed)
    assert separate[0] == 0 < 2 * runs <= separate[1] and einsums == [0, runs + 1]


def test_reference_style_is_fused_on_a_gpu(monkeypatch):
    """As published implementations are there, so that no ratio flatters ours."""
    monkeypatch.setattr(kernels, 'samples_on_gpu', lambda *_: True)
    assert reference_style.sampler(torch.device('cuda:0'), 32) == 'Triton kernel, fused as published ones'
    assert reference_style.sampler(torch.device('cpu'), 32) == 'grid_sample, as published'
    line, asked = make_lines(tiny_model())[REFERENCE], []
    expected = decoded(line, picture())
    monkeypatch.setattr(reference_style, 'fused', lambda *_: True)
    monkeypatch.setattr(kernels, 'sample_on_gpu', lambda *args: asked.append(args) or sample_by_grid(*args))
    found = decoded(line, picture())
    assert asked and 'Triton' in operators(line, picture())['deformable_attention']
    for name, value in expected.items():
        assert ((found[name] - value).abs() / max(1.0, value.abs().max().item())).max() < 1e-4, name


def test_lines_report_the_same_instances():
    lines = make_lines(tiny_model())
    lines = {name: replace(line, options=replace(line.options, score_threshold=0.1)) for name, line in lines.items()}
    measured = take_turns(lines, [picture(k) for k in range(4)], 15, 1)
    reference, ours = ([m.result for m in measured[name]] for name in (REFERENCE, FULL))
    assert all(r.instances for r in reference)
    for a, b in zip(reference, ours, strict=True):
        assert [(i.track_id, i.class_id, i.box) for i in a.instances] == \
            [(i.track_id, i.class_id, i.box) for i in b.instances]


def test_lines_take_turns_with_a_state_each_and_the_first_rotates(monkeypatch):
    lines, order = make_lines(tiny_model()), []
    names = {id(line): name for name, line in lines.items()}
    step = type(lines[FULL]).step

    def noted(line, image, state, stamp_s):
        order.append((names[id(line)], state.frame_index))
        return step(line, image, state, stamp_s)

    monkeypatch.setattr(type(lines[FULL]), 'step', noted)
    measured = take_turns(lines, [picture(k) for k in range(4)], 15, 1)
    assert [name for name, _ in order[:9]] == [REFERENCE, FULL, TAR, FULL, TAR, REFERENCE, TAR, REFERENCE, FULL]
    assert [index for _, index in order] == [k for k in range(4) for _ in range(3)]
    for frames in measured.values():
        assert [m.result.frame_index for m in frames] == [1, 2, 3]
        for m in frames:
            assert list(m.times) == [*STAGES, 'total'] and min(m.times.values()) > 0
            assert sum(m.times[stage] for stage in STAGES) < m.times['total']


def test_fresh_routers_are_set_to_a_stated_number_of_layers():
    lines = make_lines(tiny_model(), fresh=True)
    assert 'SET, not learned, to 4 layers' in lines[TAR].routing
    found = {name: summary(m) for name, m in take_turns(lines, [picture(k) for k in range(13)], 15, 1).items()}
    assert found[TAR]['executed_layers'] == 4 and found[TAR]['executed_by_stride'] == {'32': 2, '16': 1, '8': 1}
    assert found[FULL]['executed_layers'] == found[REFERENCE]['executed_layers'] == 9
    assert found[FULL]['fps'] == pytest.approx(1e3 / found[FULL]['median_ms']['total'])
    assert list(make_lines(tiny_model(routing=False), fresh=True)) == [REFERENCE, FULL]


def test_costs_name_what_computes_and_follow_skipped_layers():
    model = tiny_model()
    found = costs(make_lines(model, fresh=True), model, [picture(k) for k in range(3)], 15)
    decoder = {name: line['gflops']['decoder'] for name, line in found.items()}
    assert decoder[REFERENCE] > decoder[FULL] > decoder[TAR] > 0
    assert found[REFERENCE]['gflops']['backbone'] == found[TAR]['gflops']['backbone'] > 0
    assert (found[REFERENCE]['attention'], found[REFERENCE]['deformable_attention']) == (
        'separate products', 'grid_sample, as published')
    compiled = kernels.attends(8) and packable()
    assert ('compiled kernel' if compiled else 'scaled_dot_product') in found[FULL]['attention']
    assert found[FULL]['deformable_attention'] == ('compiled kernel' if kernels.compiled() else 'embedding_bag')


def test_the_baseline_decodes_pixels_in_float32_under_mixed_precision():
    lines = make_lines(tiny_model(), precision='bfloat16')
    seen = {}
    for name in (REFERENCE, FULL):
        decoder = lines[name].segmenter.model.pixel_decoder
        decoder.register_forward_hook(lambda _, inputs, out, name=name: seen.update({name: out[0].dtype}))
        lines[name].step(picture(), lines[name].segmenter.new_state(), 0.0)
    assert seen == {REFERENCE: torch.float32, FULL: torch.bfloat16}


def test_the_machine_is_described_without_its_name():
    found = machine(torch.device('cpu'))
    assert found['processor'] and found['cores'] == os.cpu_count() and found['torch'] == torch.__version__
    assert 'gpu' not in found and os.uname().nodename not in json.dumps(found)
    with_gpu = in_words(found | {'gpu': 'Some GPU', 'gpu_power_limit_w': 350.0})
    assert with_gpu.startswith('Some GPU (350 W), ') and found['processor'] in with_gpu


def test_the_power_of_a_gpu_is_watched_while_it_works(tmp_path, monkeypatch):
    """With a stand-in for nvidia-smi, which there is none of on most machines."""
    tool = tmp_path / 'nvidia-smi'
    tool.write_text('#!/bin/sh\ncase "$*" in *--id=GPU-7*power.draw*) ;; *) exit 1;; esac\n'
                    'while true; do echo 100.5; echo "[N/A]"; sleep 0.05; done\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setattr('tar_vis_core.benchmark.machine.smi_name', lambda _: 'GPU-7')
    with power_draw(torch.device('cuda:1')) as watts:
        time.sleep(0.3)
    assert len(watts) >= 2 and set(watts) == {100.5}
    with power_draw(torch.device('cpu')) as watts:
        pass
    assert watts == []


def test_time_passes_between_marks():
    first, second = mark(torch.device('cpu')), mark(torch.device('cpu'))
    assert 0 <= elapsed_ms(first, second) < 1e3 and elapsed_ms(1.0, 1.5) == 500


def made_up(*times, fps=None):
    """A file's figures: the lines take these milliseconds in all, half of it in the backbone."""
    lines = {name: {'fps': 1e3 / t, 'median_ms': dict.fromkeys(STAGES, 0.0) | {'backbone': t / 2, 'total': t}}
             for name, t in zip((REFERENCE, FULL, TAR), times)}
    return {'title': 'a toy', 'date': '2026-01-01', 'machine': {}, 'lines': lines,
            'configuration': asdict(chosen(parser().parse_args(TOY), measurement.BenchRun))}


def test_ratios_compare_a_line_with_the_one_before():
    assert ratios(made_up(80, 20, 10)) == {f'{FULL} over {REFERENCE}': 4, f'{TAR} over {FULL}': 2}
    assert ratios(made_up(80, 20)) == {f'{FULL} over {REFERENCE}': 4}


def test_the_guard_looks_at_ratios_alone():
    stored = made_up(80, 20, 10)
    assert fallen(stored, made_up(800, 200, 100), TOLERANCE) == []              # ten times as slow a machine
    assert fallen(stored, made_up(80, 24, 12), TOLERANCE) == []                 # 4 -> 3.33
    assert fallen(stored, made_up(80, 10, 5), TOLERANCE) == []                  # faster
    text, = fallen(stored, made_up(80, 26, 12.9), TOLERANCE)                    # 4 -> 3.08
    assert text.startswith(f'{FULL} over {REFERENCE}: 3.08') and 'stored 4.00: fallen by 23%, allowed 20%' in text
    assert [text.partition(':')[0] for text in fallen(stored, made_up(80, 20, 13), TOLERANCE)] == [f'{TAR} over {FULL}']
    assert len(fallen(stored, made_up(80, 24, 12), 0.1)) == 1
    with pytest.raises(ValueError, match='lost its routers'):
        fallen(stored, made_up(80, 20), TOLERANCE)


@pytest.fixture
def without_children(monkeypatch):
    monkeypatch.setattr(measurement, 'memory_and_power', lambda *_: {
        'peak_memory_gb': {REFERENCE: 0.2, FULL: 0.1}, 'power_w': {REFERENCE: 250.0, FULL: 125.0}})


@pytest.mark.parametrize(('times', 'code'), [((80, 20, 10), 0), ((80, 40, 10), 1)])
def test_the_guard_runs_the_configuration_of_the_file(times, code, tmp_path, monkeypatch, capsys):
    path, runs = tmp_path / 'stored.json', []
    path.write_text(json.dumps(made_up(80, 20, 10)))
    monkeypatch.setattr(bench, 'measure', lambda run: runs.append(run) or made_up(*times))
    monkeypatch.setattr(bench, 'print_figures', lambda _: None)
    assert main(['bench', '--guard', str(path)]) == code
    assert {name: getattr(runs[0], name) for name in ('untrained', 'frames', 'size', 'short_side')} == {
        'untrained': True, 'frames': 3, 'size': '96x64', 'short_side': 64}
    said = capsys.readouterr()
    assert f'{FULL} over {REFERENCE} {80 / times[1]:.2f}, stored 4.00' in said.out
    assert ('fallen' in said.err) == bool(code)


@pytest.mark.parametrize(('words', 'said'), [
    (['--preset', 'crowd'], '--guard takes --preset from'), (['--tolerance', '1'], '--tolerance is 1.0')])
def test_the_guard_takes_no_other_configuration(words, said, tmp_path, capsys):
    path = tmp_path / 'stored.json'
    path.write_text(json.dumps(made_up(80, 20, 10)))
    assert main(['bench', '--guard', str(path), *words]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize('text', [
    '[]', '{"routing": {}}', '{"lines": {}, "machine": 1, "configuration": 2}'])
def test_other_files_are_refused(text, tmp_path, capsys):
    path = tmp_path / 'other.json'
    path.write_text(text)
    assert main(['bench', '--guard', str(path)]) == 1
    assert 'holds no figures of this version of tar-vis bench' in capsys.readouterr().err


@pytest.fixture(scope='module')
def written(tmp_path_factory) -> tuple[str, Path]:
    """What the command says, and the figures that it writes, once; peak memory is that of fresh processes."""
    path, said = tmp_path_factory.mktemp('bench') / 'figures.json', io.StringIO()
    slower = mock.patch.object(VideoSegmenter, 'remarks', ('something falls back',))
    with contextlib.redirect_stdout(said), slower:
        assert main(['bench', *TOY, '--json', str(path)]) == 0
    return said.getvalue(), path


def test_the_command_writes_figures(written):
    """How fast it was is not looked at."""
    said, figures = written
    assert 'SET, not learned' in said and 'Freshly initialised' in said and 'Timed is the whole step' in said
    found = json.loads(figures.read_text())
    assert list(found['lines']) == [REFERENCE, FULL, TAR] and found['input'] == '96x64'
    assert found['configuration']['threads'] == torch.get_num_threads() and found['configuration']['device'] == 'cpu'
    for line in found['lines'].values():
        assert line['frames'] == 2 and line['p95_ms'].keys() == line['median_ms'].keys() == {*STAGES, 'total'}
        assert line['executed_layers'] == sum(line['executed_by_stride'].values())
    assert found['peak_memory_gb'].keys() == {REFERENCE, FULL} and min(found['peak_memory_gb'].values()) > 0.01
    assert found['device_memory_gb'] == {REFERENCE: None, FULL: None}, 'a CPU has none'
    assert found['remarks'] == ['something falls back']


def test_what_a_gpu_has_lent_to_all_is_read_from_the_card(monkeypatch):
    stand_ins = dict(pick_device=lambda _: torch.device('cuda:0'), inference_form=lambda model, *_: model,
                     memory=lambda _: (1, 4), POWER_S=0, power_draw=lambda _: contextlib.nullcontext([]))
    for name, value in stand_ins.items():
        monkeypatch.setattr(measurement, name, value)
    with mock.patch.multiple(torch.cuda, empty_cache=mock.DEFAULT, reset_peak_memory_stats=mock.DEFAULT,
                             mem_get_info=lambda device: (3, 5)):
        run = chosen(parser().parse_args([*TOY, '--device', 'cpu']), measurement.BenchRun)
        assert measurement.resources_taken(run, FULL, [picture(0, 64, 96)]) == (3, None, 2)


def test_the_guard_measures(written, tmp_path, capsys, without_children):
    stored = json.loads(written[1].read_text())
    for line, ms in zip(stored['lines'].values(), (1e9, 1.0, 1e-9)):      # ratios that can only fall from here
        line['median_ms']['total'] = ms
    hard = tmp_path / 'hard.json'
    hard.write_text(json.dumps(stored))
    assert main(['bench', '--guard', str(hard)]) == 1
    assert 'fallen' in capsys.readouterr().err


def test_the_plain_model_is_left_as_it_was():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    lines = make_lines(model)
    lines[REFERENCE].step(picture(), lines[REFERENCE].segmenter.new_state(), 0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model.decoder) is MaskedDecoder and type(lines[REFERENCE].segmenter.model.decoder) is ReferenceDecoder
    assert lines[REFERENCE].segmenter.model.decoder.query_feat is model.decoder.query_feat, 'the weights are shared'
