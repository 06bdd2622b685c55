"""The node with the image encoder in ONNX Runtime: chosen by name, compiled at configure, and never left silently."""

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('onnxruntime')
from node_process import NodeProcess, client_of, nano_weights, picture

from tar_vis_core.options import SegmenterOptions
from tar_vis_core.segmenter import VideoSegmenter


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('engine')


@pytest.fixture(scope='module')
def weights(folder):
    return nano_weights(folder)


@pytest.fixture(scope='module')
def client(folder, weights):
    process = NodeProcess(folder, 'engine_node', device='cpu', threads=1, engine='onnxruntime', input_short_side=96,
                          score_threshold=0.05, warm_up_sizes="['160x120']", weights=f"'{weights}'")
    with client_of(process) as client:
        yield client


def test_it_answers_as_the_library_with_pytorch_does(client, weights):
    assert client.transition('configure'), client.process.output
    assert 'onnxruntime' in client.process.mapped_files
    assert client.transition('activate')
    images = [picture(shift=2 * step) for step in range(3)]
    got = [client.ask(client.image(image)) for image in images]
    assert 'compiling the encoder' not in client.process.output, 'that was at configure'
    segmenter = VideoSegmenter(weights=weights or None, device='cpu', precision='float32', threads=1,
                               options=SegmenterOptions(input_short_side=96, score_threshold=0.05))
    state = segmenter.new_state()
    for image, answer in zip(images, got, strict=True):
        expected = segmenter.step(image, state)
        assert [i.class_name for i in answer.instances] == [i.class_name for i in expected.instances]
        assert np.allclose([i.score for i in answer.instances], [i.score for i in expected.instances], atol=1e-3)
    other = client.ask(client.image(picture(120, 240)))
    assert (other.height, other.width) == (120, 240)
    assert client.process.lines('compiling the encoder for images of 240x120')
    assert client.transition('deactivate') and client.transition('cleanup')


def test_what_cannot_be_is_one_line_and_the_node_goes_on(client):
    for values, words in (({'precision': 'float16'}, 'has no float16'),
                          ({'model': 'onnx', 'weights': 'x.onnx'}, 'engine is of our own networks')):
        before = {'precision': 'float32', 'model': 'nano', 'weights': ''}
        assert client.set(**{**before, **values}) == ''
        said = client.process.output
        assert not client.transition('configure')
        (line,) = [line for line in client.process.output[len(said):].splitlines() if line.strip()]
        assert 'cannot configure: ' in line and words in line
        assert client.set(**before) == ''
    assert "parameter 'engine' is 'onnxrun'" in client.set(engine='onnxrun')
