"""Other people's models in the segmenter's place: their masks, our ids, and clear words for files that do not fit."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from building import ROOT

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from onnx_files import NAMES, WHOLE, colour_model, picture  # noqa: E402

from tar_vis_core.commands import run  # noqa: E402
from tar_vis_core.errors import DeviceError, TarVisError, WeightsError  # noqa: E402
from tar_vis_core.foreign.foreign_segmenter import ForeignSegmenter, open_segmenter  # noqa: E402
from tar_vis_core.foreign.found import Found, check_found  # noqa: E402
from tar_vis_core.foreign.onnx_detector import Letterbox, OnnxDetector  # noqa: E402
from tar_vis_core.instances import TrackStatus  # noqa: E402
from tar_vis_core.options import SegmenterOptions  # noqa: E402


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize('selected', [False, True])
@pytest.mark.parametrize('size', [(64, 96), (120, 90), (200, 500), (33, 47)])
def test_masks_lie_on_the_source_image_whatever_its_size(tmp_path, selected, size):
    height, width = size
    model = colour_model(tmp_path / 'm.onnx', selected=selected)
    red = width // 4, height // 3, width // 3, height // 2
    image = picture(*size, red)
    (found,) = OnnxDetector(model).detect(image, 0.5)
    truth = (image == (255, 0, 0)).all(-1)
    mask = np.zeros(size, bool)
    x, y, w, h = found.box
    mask[y:y + h, x:x + w] = found.mask
    assert found.class_id == 0 and found.score > 0.9
    # a cell of the prototypes is so many source pixels; the mask is right to half of one on each side
    cell = 4 / min(64 / height, 96 / width)
    inner, outer = (truth_grown(truth, margin) for margin in (-cell / 2 - 1, cell / 2 + 1))
    assert (mask | ~inner).all() and (outer | ~mask).all()


def truth_grown(mask, margin):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    out = np.zeros_like(mask)
    m = int(np.ceil(abs(margin))) * (1 if margin > 0 else -1)
    out[max(0, rows[0] - m):max(0, rows[-1] + 1 + m), max(0, columns[0] - m):max(0, columns[-1] + 1 + m)] = True
    return out


@pytest.mark.parametrize('selected', [False, True])
def test_a_mask_ends_at_its_box(tmp_path, selected):
    model = colour_model(tmp_path / 'm.onnx', selected=selected, boxes=[(0, 0, 0.5, 0.75), WHOLE])
    (found,) = OnnxDetector(model).detect(picture(64, 96, red=(0, 0, 96, 64)), 0.5)
    assert found.box == (0, 0, 48, 48) and found.mask.all()


@pytest.mark.parametrize('selected', [False, True])
@pytest.mark.parametrize('source', [(128, 192), (96, 64), (64, 200)])
def test_the_letterbox_is_in_the_middle(source, selected):
    height, width = source
    letterbox = Letterbox.of(source, (64, 96))
    filled = letterbox.filled(np.full((*source, 3), 200, np.uint8), (64, 96))
    content = (filled == 200).all(-1)
    rows, columns = np.flatnonzero(content.any(1)), np.flatnonzero(content.any(0))
    assert abs(rows[0] - (63 - rows[-1])) <= 1 and abs(columns[0] - (95 - columns[-1])) <= 1
    assert rows[-1] - rows[0] == 63 or columns[-1] - columns[0] == 95       # it fills one direction
    assert (len(columns) / len(rows)) == pytest.approx(width / height, rel=0.05)
    assert (filled[~content] == 114).all()


def test_neighbours_that_repeat_an_object_are_one(tmp_path):
    model = colour_model(tmp_path / 'm.onnx', repeats=5)
    found = OnnxDetector(model).detect(picture(64, 96, red=(8, 8, 24, 24), blue=(60, 20, 24, 32)), 0.3)
    assert sorted(one.class_id for one in found) == [0, 1]


def test_half_precision_and_an_open_size_give_the_same(tmp_path):
    image = picture(80, 80, red=(16, 24, 32, 24))
    usual, half, free = (OnnxDetector(colour_model(tmp_path / f'{name}.onnx', **changes)).detect(image, 0.5)[0]
                         for name, changes in (('usual', {}), ('half', {'half': True}), ('free', {'free': True})))
    assert usual.box == free.box and (usual.mask == free.mask).all() and usual.score == free.score
    assert half.box == usual.box and iou(half.mask, usual.mask) > 0.95 and half.score == pytest.approx(
        usual.score, abs=0.01)


def test_a_layout_that_fits_both_ways_is_told_by_the_metadata(tmp_path):
    # (1, 8, 8): 4 + 2 classes + 2 coefficients by 8 anchors, or 8 objects of 6 + 2 numbers
    both = {'task': 'segment', 'names': str(NAMES)}
    image = picture(64, 96, red=(8, 8, 24, 24))
    raw = colour_model(tmp_path / 'raw.onnx', repeats=4, metadata=both)
    assert [one.class_id for one in OnnxDetector(raw).detect(image, 0.5)] == [0]
    assert OnnxDetector(colour_model(tmp_path / 'x.onnx', repeats=4, metadata={**both, 'end2end': 'True'}))._selected


@pytest.mark.parametrize('selected', [False, True])
def test_ids_follow_what_moves_and_classes_keep_apart(tmp_path, selected):
    segmenter = open_segmenter('onnx', colour_model(tmp_path / 'm.onnx', selected=selected))
    state, seen = segmenter.new_state(), []
    for step in range(8):
        image = picture(120, 180, red=(10 + 8 * step, 20, 40, 60), blue=(130 - 6 * step, 70, 30, 40))
        result = segmenter.step(image, state, step / 10)
        seen.append({i.class_name: (i.track_id, i.status) for i in result.instances})
        for one in result.instances:
            truth = (image == ((255, 0, 0) if one.class_id == 0 else (0, 0, 255))).all(-1)
            assert iou(one.mask(120, 180), truth) > 0.75
            assert one.area == one.mask(120, 180).sum()
    assert all(frame.keys() == set(NAMES.values()) for frame in seen)
    assert {name: len({frame[name][0] for frame in seen}) for name in NAMES.values()} == dict.fromkeys(
        NAMES.values(), 1)
    assert [frame['red thing'][1] for frame in seen] == [TrackStatus.NEW] + [TrackStatus.TRACKED] * 7
    gone = segmenter.step(picture(120, 180), state, 0.8)
    assert {i.status for i in gone.instances} == {TrackStatus.LOST}
    assert gone.routing.executed == () and gone.routing.executed_layers == 0 and not gone.routing.routed


def test_the_segmenters_options_hold(tmp_path):
    file = colour_model(tmp_path / 'm.onnx')
    image = picture(64, 96, red=(8, 8, 24, 24), blue=(60, 20, 24, 32))

    def classes(**options):
        segmenter = open_segmenter('onnx', file, options=SegmenterOptions(**options))
        return [i.class_name for i in segmenter.step(image, segmenter.new_state()).instances]

    assert sorted(classes()) == sorted(NAMES.values())
    assert classes(class_filter=('blue thing',)) == ['blue thing']
    assert len(classes(max_instances=1)) == 1
    assert classes(score_threshold=1.0) == []
    with pytest.raises(ValueError, match=r"unknown class 'red'.*did you mean 'red thing'"):
        classes(class_filter=('red',))


@pytest.mark.parametrize('options, words', [
    ({'routing': 'adaptive'}, "routing is 'adaptive'.*no decoder layers.*expected 'auto'"),
    ({'routing': 'fixed'}, "routing is 'fixed'.*expected 'auto'"),
    ({'latency_budget_ms': 30}, 'latency_budget_ms is 30.*foreign'),
    ({'encoder_reuse': 4}, 'encoder_reuse is 4.*foreign'),
    ({'input_short_side': 320}, 'input_short_side is 320.*foreign')])
def test_what_a_foreign_model_cannot_do_is_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        open_segmenter('onnx', colour_model(tmp_path / 'm.onnx'), options=SegmenterOptions(**options))


@pytest.mark.parametrize('changes, words', [
    ({'adapter': 'a.safetensors'}, 'adapter is of our own'), ({'precision': 'float16'}, 'precision is of our own'),
    ({'tracker': 'matching'}, 'tracker is of our own'), ({'weights': None}, 'needs weights: an ONNX file')])
def test_what_is_of_our_own_networks_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        open_segmenter('onnx', **{'weights': colour_model(tmp_path / 'm.onnx'), **changes})
    with pytest.raises(DeviceError, match='onnxruntime-gpu'):
        open_segmenter('onnx', colour_model(tmp_path / 'm.onnx'), device='cuda:0')


def wrong_files(folder: Path):
    good = colour_model(folder / 'good.onnx')
    (folder / 'cut.onnx').write_bytes(good.read_bytes()[:-200])
    (folder / 'text.onnx').write_text('this is no model')
    (folder / 'empty.onnx').write_bytes(b'')
    names = {'names': str(NAMES)}
    detect = onnx.load(good)
    del detect.graph.output[1]
    detect.metadata_props.add(key='x', value='y')
    onnx.save(detect, folder / 'detect.onnx')
    two = onnx.load(good)
    two.graph.input.append(onnx.helper.make_tensor_value_info('more', 1, [1]))
    onnx.save(two, folder / 'two.onnx')
    rigid = onnx.load(colour_model(folder / 'rigid.onnx', free=True, metadata={**names, 'imgsz': '48'}))
    rigid.graph.node[0].input[0] = 'same'
    rigid.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 3, 64, 96]), 'shape'))
    rigid.graph.node.insert(0, onnx.helper.make_node('Reshape', ['images', 'shape'], ['same']))
    onnx.save(rigid, folder / 'rigid.onnx')
    return [
        (folder / 'none.onnx', 'there is no such file'),
        (folder / 'cut.onnx', 'ONNX Runtime .* cannot load it'),
        (folder / 'text.onnx', 'ONNX Runtime .* cannot load it'),
        (folder / 'empty.onnx', 'ONNX Runtime .* cannot load it'),
        (folder / 'detect.onnx', r'outputs output0.*task is \'segment\'.*two outputs'),
        (folder / 'two.onnx', 'it has the inputs images .*more'),
        (colour_model(folder / 'opset.onnx', opset=99), 'cannot load it.*[Oo]pset'),
        (colour_model(folder / 'no_metadata.onnx', metadata={}), "metadata name no classes.*'names'"),
        (colour_model(folder / 'code.onnx', metadata={'names': '__import__("os").getcwd()'}), 'name no classes'),
        (colour_model(folder / 'gaps.onnx', metadata={'names': "{0: 'a', 2: 'b'}"}), 'name no classes'),
        (colour_model(folder / 'three.onnx', metadata={'names': "{0: 'a', 1: 'b', 2: 'c'}"}),
         r'outputs are \(1, 8, 2\), \(1, 2, 16, 24\) with 3 classes'),
        (colour_model(folder / 'open.onnx', free=True, metadata=names), 'no size and its metadata no imgsz'),
        (colour_model(folder / 'open2.onnx', free=True, metadata={**names, 'imgsz': '[64, 10**9]'}), 'no imgsz'),
        (colour_model(folder / 'huge.onnx', free=True, metadata={**names, 'imgsz': '[64, 100000]'}), '100000x64'),
        (colour_model(folder / 'tiny.onnx', free=True, metadata={**names, 'imgsz': '0'}), 'input is 0x0'),
        (folder / 'rigid.onnx', 'fails on a picture of 48x48'),
    ]


def test_a_file_that_does_not_fit_is_told_in_one_line(tmp_path):
    for path, words in wrong_files(tmp_path):
        with pytest.raises(WeightsError, match=words) as told:
            open_segmenter('onnx', path)
        assert '\n' not in str(told.value) and str(path) in str(told.value)


def test_numbers_that_are_none_reset_the_stream_and_the_next_frame_is_well(tmp_path):
    segmenter = open_segmenter('onnx', colour_model(tmp_path / 'm.onnx', gain=float('inf')))
    state = segmenter.new_state()
    image = picture(64, 96, red=(8, 8, 24, 24))
    image[:4, :4] = 0, 0, 0
    assert segmenter.step(image, state).instances == []       # 0 times infinity
    assert 'not finite' in segmenter.step(image, state).reset_reason


DETECTOR = '''
import numpy as np
from tar_vis_core.foreign.found import Found

class Bright:
    class_names = ['bright', 'dark']

    def detect(self, image, min_score):
        mask = image.min(-1) > 200
        return [Found(0, 0.9, (0, 0, *mask.shape[::-1]), mask), Found(1, 0.1, (0, 0, 1, 1), np.ones((1, 1), bool))]

def broken():
    raise RuntimeError('no weights here')

nothing = dict
'''


def test_the_class_of_the_page_works(tmp_path, monkeypatch):
    (code,) = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/reference/your_own_model.md').read_text(), re.DOTALL)
    (tmp_path / 'bright.py').write_text(code)
    monkeypatch.chdir(tmp_path)
    segmenter = open_segmenter('python', 'bright:Bright')
    image = np.zeros((90, 120, 3), np.uint8)
    image[20:60, 10:50] = image[70:80, 90:110] = 255
    assert sorted(i.box for i in segmenter.step(image, segmenter.new_state()).instances) == [
        (10, 20, 40, 40), (90, 70, 20, 10)]


def test_a_class_of_ones_own_takes_the_seat(tmp_path, monkeypatch):
    (tmp_path / 'my_seg.py').write_text(DETECTOR)
    monkeypatch.chdir(tmp_path)
    segmenter = open_segmenter('python', 'my_seg:Bright')
    state, ids = segmenter.new_state(), set()
    for step in range(5):
        image = np.zeros((90, 120, 3), np.uint8)
        image[20:60, 10 + 5 * step:50 + 5 * step] = 255
        (one,) = segmenter.step(image, state, step / 10).instances
        assert one.class_name == 'bright' and one.box == (10 + 5 * step, 20, 40, 40) and one.area == 1600
        ids.add(one.track_id)
    assert len(ids) == 1
    for entry, words in (('my_seg', 'expected module:factory'), ('my_seg:Nobody', 'AttributeError'),
                         ('no_such_module:x', 'ModuleNotFoundError'), ('my_seg:broken', 'no weights here'),
                         ('my_seg:nothing', 'made a dict.*class_names')):
        with pytest.raises(WeightsError, match=words):
            open_segmenter('python', entry)


@pytest.mark.parametrize('found, words', [
    (Found(0, 0.5, (0, 0, 4, 4), np.ones((4, 4), np.uint8)), 'expected bool'),
    (Found(0, 0.5, (0, 0, 4, 5), np.ones((4, 4), bool)), r'expected bool \(5, 4\)'),
    (Found(0, 0.5, (8, 0, 4, 4), np.ones((4, 4), bool)), 'image of 10x10'),
    (Found(2, 0.5, (0, 0, 4, 4), np.ones((4, 4), bool)), 'class 2 and has 2 names'),
    (Found(0, float('nan'), (0, 0, 4, 4), np.ones((4, 4), bool)), 'score nan')])
def test_what_a_class_gives_is_checked(found, words):
    with pytest.raises(ValueError, match=words):
        check_found(found, 2, 10, 10)


class Fixed:
    """A detector that gives what it is told."""

    class_names = ('thing',)

    def __init__(self, *found):
        self.found = found

    def detect(self, image, min_score):
        return self.found


def test_an_object_smaller_than_a_cell_and_one_that_is_there_twice(tmp_path):
    image = np.zeros((900, 1200, 3), np.uint8)
    speck = Found(0, 0.9, (7, 8, 2, 2), np.ones((2, 2), bool))
    box = Found(0, 0.9, (100, 100, 200, 200), np.ones((200, 200), bool))
    again = Found(0, 0.8, (105, 100, 200, 200), np.ones((200, 200), bool))
    empty = Found(0, 0.8, (500, 500, 20, 20), np.zeros((20, 20), bool))
    segmenter = ForeignSegmenter(Fixed(speck, box, again, empty))
    result = segmenter.step(image, segmenter.new_state())
    assert sorted(i.box for i in result.instances) == [(7, 8, 2, 2), (100, 100, 200, 200)]
    assert not ForeignSegmenter(Fixed()).step(image, segmenter.new_state()).instances


def test_the_command_line_takes_it(tmp_path, capsys):
    file = colour_model(tmp_path / 'm.onnx')
    from PIL import Image

    (tmp_path / 'frames').mkdir()
    for step in range(3):
        Image.fromarray(picture(120, 180, red=(10 + 8 * step, 20, 40, 60))).save(tmp_path / f'frames/{step}.png')
    assert run.main([str(tmp_path / 'frames'), '--preset', 'onnx', '--weights', str(file), '--out', str(
        tmp_path / 'out')]) == 0
    assert '3 frames, 1 tracks, ' in capsys.readouterr().out
    assert (tmp_path / 'out/instances.jsonl').read_text().count('red thing') == 3


def test_onnx_runtime_is_loaded_only_when_asked_for_and_told_if_missing(tmp_path):
    code = ('import sys, tar_vis_core.segmenter, tar_vis_core.foreign.foreign_segmenter as f\n'
            'import tar_vis_core.commands.run\n'
            'assert "onnxruntime" not in sys.modules\n'
            'import importlib.util as u\n'
            'sys.modules["onnxruntime"] = None\n'
            'f.open_segmenter("onnx", sys.argv[1])\n')
    done = subprocess.run([sys.executable, '-c', code, str(colour_model(tmp_path / 'm.onnx'))], text=True,
                          capture_output=True)
    assert done.returncode and 'needs onnxruntime, which is not installed' in done.stderr
    assert 'pip install "tar-vis-ros[onnx]"' in done.stderr


def test_missing_is_a_kind_of_error_that_programs_know():
    assert issubclass(WeightsError, TarVisError)
