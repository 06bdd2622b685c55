"""The image encoder in ONNX Runtime and OpenVINO gives PyTorch's features, or an error; nobody else pays for it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from saved_weights import save_weights
from tiny_model import tiny_model

onnxruntime = pytest.importorskip('onnxruntime')

from tar_vis_core.commands import export  # noqa: E402
from tar_vis_core.commands.main import main  # noqa: E402
from tar_vis_core.engines.encoder_engine import EncoderEngine, EngineError  # noqa: E402
from tar_vis_core.engines.encoder_graph import INPUT, EncoderGraph  # noqa: E402
from tar_vis_core.engines.static_graph import gap  # noqa: E402
from tar_vis_core.errors import DeviceError  # noqa: E402
from tar_vis_core.foreign.foreign_segmenter import open_segmenter  # noqa: E402
from tar_vis_core.media.frames import open_frames, play  # noqa: E402
from tar_vis_core.models.packed import inference_form  # noqa: E402
from tar_vis_core.models.video_model import build_model  # noqa: E402
from tar_vis_core.options import SegmenterOptions  # noqa: E402
from tar_vis_core.runtime import onnx_sessions  # noqa: E402
from tar_vis_core.segmenter import VideoSegmenter  # noqa: E402

SMALL = SegmenterOptions(input_short_side=128, score_threshold=0.3)


ENGINES = 'onnxruntime', pytest.param('openvino', marks=pytest.mark.skipif(
    not onnx_sessions.find_spec('openvino'), reason='OpenVINO is not installed'))


def models():
    """One with a detector's maps, one with deformable attention over pixels."""
    torch.manual_seed(2)
    return {'detector': build_model('nano').eval(), 'deformable': tiny_model().eval()}


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('kind', ['detector', 'deformable'])
def test_features_are_those_of_pytorch_at_every_size(engine, kind):
    plain = models()[kind]
    made = EncoderEngine(plain, engine, torch.device('cpu'), torch.float32, 1)
    ours = inference_form(models()[kind], torch.device('cpu'))
    for count, size in enumerate(((96, 128), (64, 160), (96, 128))):
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected, got = ours.encode(images), made.encode(images)
            # a detector's maps too, before choices between cells that are nearly equal
            plain, raw = made.graph(images), made._compiled[size](images.numpy())
        assert gap((expected.mask_features, *expected.levels), (got.mask_features, *got.levels)) < 1e-4
        assert len(raw) == len(made.graph.outputs) and gap(plain, [torch.from_numpy(output) for output in raw]) < 1e-4
        assert (got.proposals is None) == (kind == 'deformable')
        assert not got.proposals or got.proposals.boxes.shape == expected.proposals.boxes.shape
    assert made.made == 2


def answers(segmenter: VideoSegmenter, frames: int = 4) -> list:
    state, given = segmenter.new_state(), []
    with open_frames('photographs') as reader:
        for frame in play(reader, limit=frames, width=320):
            given.append(segmenter.step(frame.image, state, frame.position_s))
    return given


@pytest.mark.parametrize('engine', ENGINES)
def test_a_segmenter_answers_as_with_pytorch(engine):
    pytest.importorskip('skimage')
    plain = answers(VideoSegmenter(precision='float32', options=SMALL, threads=1))
    theirs = answers(VideoSegmenter(options=SMALL, threads=1, engine=engine))
    assert any(result.instances for result in plain)
    for ours, other in zip(plain, theirs, strict=True):
        assert [(i.track_id, i.class_name, i.status) for i in ours.instances] == [
            (i.track_id, i.class_name, i.status) for i in other.instances]
        for a, b in zip(ours.instances, other.instances, strict=True):
            size = ours.height, ours.width
            if a.area:
                assert (a.mask(*size) & b.mask(*size)).sum() / (a.mask(*size) | b.mask(*size)).sum() > 0.98


def test_graphs_are_compiled_at_warm_up_and_for_a_size_that_is_new():
    segmenter = VideoSegmenter(options=SMALL, engine='onnxruntime', threads=1)
    assert segmenter.needs_recording(120, 160) and segmenter.recordings == 0
    segmenter.warm_up(120, 160)
    assert not segmenter.needs_recording(120, 160) and segmenter.recordings == 1
    state = segmenter.new_state()
    segmenter.step(np.zeros((120, 160, 3), np.uint8), state)
    assert segmenter.recordings == 1
    segmenter.step(np.zeros((120, 320, 3), np.uint8), state)
    assert segmenter.recordings == 2


def test_an_engine_that_computes_something_else_is_an_error_on_the_first_frame():
    segmenter = VideoSegmenter(options=SMALL, engine='onnxruntime', threads=1)
    segmenter.warm_up(120, 160)
    (size, right), = segmenter._engine._compiled.items()
    segmenter._engine._compiled[size] = lambda images: [1.01 * output for output in right(images)]
    image = np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8)
    state = segmenter.new_state()
    for _ in range(2):      # it stays one
        with pytest.raises(EngineError, match=r'differ by 0\.01 of their range.*use engine torch'):
            segmenter.step(image, state)
    segmenter._engine._compiled[size] = lambda images: [np.nan * output for output in right(images)]
    with pytest.raises(EngineError, match='differ by nan'):
        segmenter.step(image, state)
    segmenter._engine._compiled[size] = right
    segmenter.step(image, state)


def test_bfloat16_of_openvino_is_near():
    pytest.importorskip('openvino')
    segmenter = VideoSegmenter(options=SMALL, engine='openvino', precision='bfloat16', threads=1)
    assert any(result.instances for result in answers(segmenter, 2))


@pytest.mark.parametrize('words, asked', [
    ("engine is 'onnx', expected torch, onnxruntime", {'engine': 'onnx'}),
    ('no bfloat16; expected float32', {'engine': 'onnxruntime', 'precision': 'bfloat16'}),
    ('no float16; expected float32 or bfloat16', {'engine': 'openvino', 'precision': 'float16'})])
def test_what_an_engine_cannot_do_is_refused(words, asked):
    with pytest.raises((EngineError, ValueError), match=words):
        VideoSegmenter(**asked)


def test_a_place_that_openvino_does_not_have_is_told():
    pytest.importorskip('openvino')
    with pytest.raises(DeviceError, match="engine 'openvino:NOSUCH': OpenVINO has CPU"):
        VideoSegmenter(engine='openvino:NOSUCH')


def test_a_foreign_model_has_no_engine():
    with pytest.raises(ValueError, match='engine is of our own networks'):
        open_segmenter('onnx', 'some.onnx', engine='openvino')


def test_runtimes_are_loaded_only_when_asked_for_and_told_if_missing():
    code = ('import sys, numpy as np\n'
            'from tar_vis_core import VideoSegmenter\n'
            's = VideoSegmenter(threads=1)\n'
            's.step(np.zeros((60, 80, 3), np.uint8), s.new_state())\n'
            'assert not {"onnxruntime", "openvino", "onnx"} & set(sys.modules)\n'
            'sys.modules["openvino"] = None\n'
            'VideoSegmenter(engine="openvino")\n')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode and 'engine openvino needs openvino, which is not installed' in done.stderr
    assert 'pip install "tar-vis-ros[openvino]"' in done.stderr


def test_the_export_is_compared_and_written(tmp_path, capsys):
    out = tmp_path / 'encoder.onnx'
    assert main(['export', 'nano', '--size', '320x240', '--short-side', '96', '--out', str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count('ONNX Runtime differs from PyTorch') == 2
    assert '(1, 3, 96, 128)' in said and '(1, 3, 32, 64)' in said
    session = onnxruntime.InferenceSession(str(out))
    assert session.get_inputs()[0].name == INPUT and session.get_inputs()[0].shape == [1, 3, 96, 128]
    images = torch.randn(1, 3, 96, 128)
    expected = VideoSegmenter(precision='float32', threads=1).model.encode(images)
    got = dict(zip([o.name for o in session.get_outputs()], session.run(None, {INPUT: images.numpy()}), strict=True))
    assert gap((expected.mask_features, *expected.levels), [torch.from_numpy(got[name]) for name in (
        'mask_features', 'level_32', 'level_16', 'level_8')]) < 1e-4
    assert got['predictions_8'].shape == (1, 112, 12, 16)


def paper_model():
    """A tiny one with the paper's Synchronizer and Routers, whose answers depend on the queries."""
    model = tiny_model(synchronizer='attention', routers='separate').eval()
    torch.nn.init.normal_(model.decoder.routers.weight2)
    return model


def run_file(path, **given):
    """Outputs by name of a file in ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path))
    assert {node.name for node in session.get_inputs()} == set(given)
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


def test_files_of_all_parts_together_compute_what_the_model_does(tmp_path, monkeypatch, capsys):
    model = paper_model()
    monkeypatch.setattr(export, 'load_model', lambda *_: model)
    layers = len(model.decoder.layers)
    parts = [(part, 0) for part in ('encoder', 'heads', 'synchronizer', 'routers')] + [
        ('decoder_layer', i) for i in range(layers)]
    for part, layer in parts:
        assert main(['export', 'tiny', '--weights', 'a', '--part', part, '--layer', str(layer), '--size', '128x96',
                     '--short-side', '96', '--out', str(tmp_path / f'{part}_{layer}.onnx')]) == 0
    said = capsys.readouterr().out
    runtimes = 1 + (onnx_sessions.find_spec('openvino') is not None)
    assert said.count('differs from PyTorch') == 2 * runtimes * len(parts)
    assert said.count('ONNX Runtime differs') == 2 * len(parts)

    images, past = torch.randn(1, 3, 96, 128), torch.randn(1, model.config.queries, model.config.dim)
    maps = run_file(tmp_path / 'encoder_0.onnx', images=images.numpy())

    def layer(i, **queries):
        level = ('level_32', 'level_16', 'level_8')[i % 3]
        return run_file(tmp_path / f'decoder_layer_{i}.onnx', **queries, mask_features=maps['mask_features'],
                        **{level: maps[level]})['refined']
    queries = layer(0)
    queries = run_file(tmp_path / 'synchronizer_0.onnx', queries=queries, previous=past.numpy())['synchronized']
    chances = run_file(tmp_path / 'routers_0.onnx', queries=queries, previous=past.numpy())['execute_probability'][0]
    assert chances.std() > 0.01 and len(chances) == layers - 1
    for i in range(1, layers):
        queries = layer(i, queries=queries)
    got = run_file(tmp_path / 'heads_0.onnx', queries=queries, mask_features=maps['mask_features'])
    with torch.no_grad():
        features = model.encode(images)
        asked = []

        def all_layers(i):
            asked.append(i)
            return [1.0] * (layers - i)
        out = model.decoder(features.mask_features, features.levels, past, 'adaptive', gate=all_layers)
        first = model.decoder(features.mask_features, features.levels, routing='fixed', fixed_layers=1).queries
        synchronized = model.decoder.synchronizer(first, past)
        expected = model.decoder.execute_probability(synchronized, past, 1)
    assert asked and np.allclose(chances, expected, atol=1e-4)
    masks = torch.einsum('nqd,ndhw->nqhw', out.mask_embeddings, features.mask_features)
    assert gap((out.logits, masks, out.embeddings), [torch.from_numpy(got[name]) for name in (
        'class_logits', 'mask_logits', 'embeddings')]) < 1e-3


@pytest.mark.parametrize(('model', 'words', 'said'), [
    (lambda: build_model('nano'), ['--part', 'decoder_layer'], 'expected part encoder'),
    (lambda: tiny_model(synchronizer='bipartite'), ['--part', 'heads'], 'change their slots'),
    (lambda: tiny_model(synchronizer='attention', routers='seeing'), ['--part', 'routers'], 'no routers of the paper'),
    (lambda: tiny_model(synchronizer='none'), ['--part', 'synchronizer'], 'no synchronizer'),
    (lambda: tiny_model(synchronizer='attention', routing=False), ['--part', 'routers'], 'or an --adapter'),
    (paper_model, ['--part', 'decoder_layer', '--layer', '9'], '--layer is 9, expected 0 to'),
])
def test_a_part_that_a_model_does_not_have_is_refused(tmp_path, monkeypatch, capsys, model, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, 'load_model', lambda *_: model())
    assert main(['export', 'some', '--weights', 'a', '--size', '96x96', '--short-side', '96', *words]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1 and not list(tmp_path.iterdir())


def test_an_export_that_is_wrong_is_not_written(tmp_path, monkeypatch, capsys):
    forward = EncoderGraph.forward
    monkeypatch.setattr(EncoderGraph, 'forward', lambda self, x: tuple(
        y * (1.01 if torch.jit.is_tracing() else 1) for y in forward(self, x)))
    out = tmp_path / 'encoder.onnx'
    assert main(['export', 'nano', '--size', '96x96', '--short-side', '96', '--out', str(out)]) == 1
    assert 'computes something else than PyTorch' in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize('words, said', [
    (['--size', '640'], '--size is'), (['--out', 'no/such/folder/x.onnx'], 'create it first'),
    (['--weights', 'no.safetensors'], 'no.safetensors')])
def test_an_export_that_cannot_be_is_told_in_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(['export', 'nano', '--short-side', '64', *words]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1


def test_other_weights_are_exported(tmp_path):
    path = tmp_path / 'tiny.safetensors'
    torch.manual_seed(3)
    save_weights(build_model('crowd'), path, {'kind': 'model', 'preset': 'crowd'})
    assert main(['export', 'crowd', '--weights', str(path), '--size', '128x96', '--short-side', '96', '--out', str(
        tmp_path / 'crowd.onnx')]) == 0
    assert len(onnxruntime.InferenceSession(str(tmp_path / 'crowd.onnx')).get_outputs()) == 4


def test_threads_of_a_session_sleep(tmp_path, monkeypatch):
    seen = []
    session = onnxruntime.InferenceSession

    def spied(model, options, **more):
        seen.append(options.get_session_config_entry('session.intra_op.allow_spinning'))
        seen.append(options.intra_op_num_threads)
        return session(model, options, **more)
    monkeypatch.setattr(onnxruntime, 'InferenceSession', spied)
    EncoderEngine(tiny_model().eval(), 'onnxruntime', torch.device('cpu'), torch.float32, 3)._compile(
        EncoderGraph(tiny_model().eval()).onnx(64, 64))
    assert seen == ['0', 3]
