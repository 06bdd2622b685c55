"""A user's own ONNX file behind the real node: ids, parameters, diagnostics, label images, replay, and refusals."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
from node_process import NodeProcess, client_of
from onnx_files import colour_model, picture
from PIL import Image as Picture
from replay_process import Command, answers, environment, report_of
from sensor_msgs.msg import Image

from tar_vis_ros.bags.command import main as make_bag


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('foreign')


@pytest.fixture(scope='module')
def model(folder) -> Path:
    return colour_model(folder / 'colours.onnx')


@pytest.fixture(scope='module')
def client(folder, model):
    """A client of one unconfigured node, which each test leaves unconfigured."""
    process = NodeProcess(folder, 'foreign_node', model='onnx', weights=model, threads=1)
    with client_of(process) as client:
        yield client


def shown(step: int) -> np.ndarray:
    return picture(120, 180, red=(10 + 8 * step, 20, 40, 60), blue=(130 - 6 * step, 70, 30, 40))


def test_objects_are_followed_and_parameters_hold(client):
    assert client.transition('configure'), client.process.output
    assert 'onnx is ready on cpu' in client.process.output
    assert client.transition('activate')
    labels = []
    client.node.create_subscription(Image, '/foreign_node/label_image', labels.append, 10)
    results = [client.ask(client.image(shown(step))) for step in range(5)]
    for result in results:
        assert (result.height, result.width) == (120, 180) and result.reset_reason == ''
        assert result.routing.executed == ()
        for one in result.instances:
            truth = (shown(result.frame_index) == ((255, 0, 0) if one.class_id == 0 else (0, 0, 255))).all(-1)
            mask = one.mask(120, 180)
            assert (mask & truth).sum() / (mask | truth).sum() > 0.75
    ids = [{i.class_name: i.track_id for i in result.instances} for result in results]
    assert ids[0].keys() == {'red thing', 'blue thing'} and all(frame == ids[0] for frame in ids)
    client.until(lambda: labels, 'label image')
    assert labels[0].encoding == 'mono16' and set(np.unique(np.frombuffer(labels[0].data, np.uint16))) <= {0, 1, 2}
    assert client.status_where(lambda values: values.get('latency p95 (ms)', '').strip('-'), 'latency in /diagnostics')
    assert client.set(class_filter=['blue thing']) == ''
    assert [i.class_name for i in client.ask(client.image(shown(5))).instances] == ['blue thing']
    assert "did you mean 'red thing'" in client.set(class_filter=['red ting'])
    assert 'no decoder layers' in client.set(routing='adaptive')
    assert client.set(class_filter=['']) == ''
    assert client.transition('deactivate') and client.transition('cleanup')


def test_what_does_not_fit_is_refused_in_one_line_and_the_node_goes_on(client, folder, model):
    (folder / 'cut.onnx').write_bytes(model.read_bytes()[:-100])
    (folder / 'our_seat.py').write_text('def make():\n    raise OSError("no camera here")\n')
    for values, words in (
            ({'weights': str(folder / 'cut.onnx')}, 'cannot load it'),
            ({'weights': str(colour_model(folder / 'bare.onnx', metadata={}))}, 'name no classes'),
            ({'weights': ''}, 'the model onnx needs weights: an ONNX file'),
            ({'routing': 'adaptive'}, 'no decoder layers'),
            ({'backbone': 'r50'}, "there is no model 'onnx' on backbone 'r50'"),
            ({'precision': 'bfloat16'}, 'precision is of our own networks'),
            ({'model': 'python', 'weights': 'no_such_module:make'}, 'ModuleNotFoundError')):
        usual = {'model': 'onnx', 'weights': str(model), 'routing': 'auto', 'backbone': '', 'precision': 'float32'}
        assert client.set(**{**usual, **values}) == ''
        said = client.process.output
        assert not client.transition('configure')
        (line,) = [line for line in client.process.output[len(said):].splitlines() if line.strip()]
        assert 'cannot configure: ' in line and words in line
        assert client.set(**usual) == ''
    assert client.transition('configure') and client.transition('cleanup')


def test_a_bag_is_replayed_and_its_answers_are_the_same_twice(folder, model):
    (folder / 'frames').mkdir()
    for step in range(6):
        Picture.fromarray(shown(step)).save(folder / f'frames/{step}.png')
    assert make_bag(['from-video', str(folder / 'frames'), str(folder / 'bag'), '--fps', '10']) == 0
    words = ['-p', 'model:=onnx', '-p', f'weights:={model}', '-p', 'threads:=1']
    for name in ('once', 'twice'):
        code, out, error = Command(environment(folder), folder / 'bag', '--out', folder / name, *words).wait()
        assert code == 0 and '6 published, 6 answered, 0 dropped' in out, out + error
    assert [i.class_name for i in answers(folder / 'once/bag')[-1].instances].count('red thing') == 1
    assert report_of(folder / 'once')['bags'][0]['figures']['layers'] == 0
    code, out, error = Command(environment(folder), folder / 'bag', '--out', folder / 'again', '--check',
                               folder / 'twice/report.json', *words).wait()
    assert code == 0, out + error
