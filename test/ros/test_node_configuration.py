"""A configure that cannot be done says why in one line, and the node can be configured again."""

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('tar_vis_core.segmenter')
from diagnostic_msgs.msg import DiagnosticStatus
from node_process import Client, NodeProcess, nano_weights, picture


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('configured')


@pytest.fixture(scope='module')
def good(folder):
    """Parameters that work."""
    return {'model': 'nano', 'backbone': '', 'adapter': '', 'tracker': 'auto', 'weights': nano_weights(folder),
            'device': 'cpu', 'input_short_side': 64, 'class_filter': [''], 'moving_classes': [''], 'fixed_layers': 3,
            'threads': 1}


@pytest.fixture(scope='module')
def client(folder, good):
    """A client of one unconfigured node, which each test leaves unconfigured."""
    process = NodeProcess(folder, 'configured_node')
    client = Client(process)
    try:
        assert client.set(**good) == ''
        yield client
    finally:
        client.close()
        assert process.end() == 0


def configure_fails(client: Client) -> str:
    """Asks for a configure that is refused; gives the one line that the node says about it."""
    said = client.process.output
    assert not client.transition('configure')
    assert client.state == 'unconfigured'
    lines = [line for line in client.process.output[len(said):].splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert '[ERROR]' in lines[0] and 'cannot configure: ' in lines[0]
    return lines[0]


def truncated(folder, good) -> str:
    from pathlib import Path

    from tar_vis_core.weights.manifest import packaged_weights
    whole = Path(good['weights'] or packaged_weights('nano')).read_bytes()
    path = folder / 'truncated.safetensors'
    path.write_bytes(whole[:len(whole) // 2])
    return str(path)


def foreign(folder, good) -> str:
    import torch
    from safetensors.torch import save_file
    path = folder / 'foreign.safetensors'
    save_file({'something.weight': torch.zeros(3)}, path)
    return str(path)


@pytest.mark.parametrize(('name', 'value', 'words'), [
    ('weights', '/no/such/file.safetensors', ['/no/such/file.safetensors', 'not found']),
    ('weights', truncated, ['truncated.safetensors', 'damaged']),
    ('weights', foreign, ['foreign.safetensors', 'missing', 'unexpected']),
    ('device', 'cuda:77', ["'cuda:77' is not there", 'cpu']),
    ('moving_classes', ['persn'], ['moving_classes', "'persn'", "did you mean 'person'?"]),
    ('class_filter', ['persn'], ["'persn'", "did you mean 'person'?"]),
    ('model', 'minvis', []),          # the weights are nano's, or none are packaged
    ('backbone', 'swin_l', ["no model 'nano' on backbone 'swin_l'", 'minvis: r50, swin_l', 'dvispp: r50']),
    ('tracker', 'referring', ["'referring'", 'DVIS++']),
    ('adapter', foreign, ['foreign.safetensors']),
])
def test_what_is_wrong_is_said_in_one_line_and_can_be_put_right(client, folder, good, name, value, words):
    value = value(folder, good) if callable(value) else value
    assert client.set(**{name: value}) == ''
    try:
        line = configure_fails(client)
        for word in words:
            assert word in line
        client.status_where(lambda values: values['last error'] in line, 'error in /diagnostics')
        assert client.status.level == DiagnosticStatus.ERROR and client.values['state'] == 'unconfigured'
    finally:
        assert client.set(**{name: good[name]}) == ''
    assert client.transition('configure'), client.process.output
    assert client.transition('cleanup')


def test_a_parameter_set_while_inactive_holds_from_the_next_configure(client, good):
    assert client.transition('configure') and client.transition('activate')
    assert client.ask(client.image(picture())).height == 120
    assert client.set(model='minvis') != ''
    assert client.transition('deactivate')
    assert client.set(model='minvis') == ''
    try:
        assert client.transition('activate'), 'the model that is loaded stays'
        client.ask(client.image(picture()))
        assert client.transition('deactivate') and client.transition('cleanup')
        assert configure_fails(client)
    finally:
        assert client.set(model='nano') == ''


def test_transitions_of_an_unconfigured_node(client):
    for label in ('activate', 'deactivate', 'cleanup'):
        assert not client.transition(label)
        assert client.state == 'unconfigured'
