"""``tar-vis weights get`` against a server on this machine that fails on purpose."""

import hashlib
import http.server
import io
import json
import threading
from dataclasses import replace

import pytest
import torch
from weights_cases import add_tiny_presets, official_names

from tar_vis_core.commands.main import main
from tar_vis_core.errors import WeightsError
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.weights import download as module
from tar_vis_core.weights import manifest
from tar_vis_core.weights.download import download
from tar_vis_core.weights.loading import load_model

CONTENT = bytes(range(256)) * 9000   # some blocks of a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's ``content``; its ``faults`` are taken one a request."""

    def do_GET(self):
        content = self.server.content
        fault = self.server.faults.pop(0) if self.server.faults else None
        self.server.asked.append(self.headers.get('Range'))
        if isinstance(fault, int):
            return self.send_error(fault)
        start = 0
        if self.headers.get('Range') and fault != 'no ranges':
            start = int(self.headers['Range'].removeprefix('bytes=').removesuffix('-'))
            if start >= len(content):
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{len(content)}')
                self.send_header('Content-Length', '0')
                return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:start + 1_200_000] if fault == 'cut' else content[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, 'PAUSE_S', 0)
    for name in ('http_proxy', 'HTTP_PROXY'):
        monkeypatch.delenv(name, raising=False)
    made = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    made.faults, made.asked, made.content = [], [], CONTENT
    made.url = f'http://127.0.0.1:{made.server_port}/some/file.pth'
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_file_arrives_whole(server, tmp_path):
    path = tmp_path / 'new' / 'file.pth'
    assert download(server.url, path, SHA256) == SHA256
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ['file.pth']


def test_a_cut_transfer_goes_on_where_it_ended(server, tmp_path):
    server.faults = ['cut', 503]
    assert download(server.url, tmp_path / 'file.pth') == SHA256
    assert server.asked == [None, 'bytes=1200000-', 'bytes=1200000-']


def test_a_later_call_goes_on_where_the_last_ended(server, tmp_path):
    (tmp_path / 'file.pth.part').write_bytes(CONTENT[:1000])
    assert download(server.url, tmp_path / 'file.pth') == SHA256
    assert server.asked == ['bytes=1000-']
    (tmp_path / 'again.pth.part').write_bytes(CONTENT)   # all of it is there
    assert download(server.url, tmp_path / 'again.pth') == SHA256


def test_a_part_that_is_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / 'file.pth.part').write_bytes(CONTENT + b'more')
    assert download(server.url, tmp_path / 'file.pth') == SHA256
    assert server.asked == [f'bytes={len(CONTENT) + 4}-', None]


def test_a_server_that_knows_no_ranges_sends_all_again(server, tmp_path):
    (tmp_path / 'file.pth.part').write_bytes(b'x' * 1000)
    server.faults = ['no ranges']
    assert download(server.url, tmp_path / 'file.pth') == SHA256


def test_another_content_than_expected_is_not_kept(server, tmp_path):
    with pytest.raises(WeightsError, match=f'has sha256 {SHA256}, expected 00'):
        download(server.url, tmp_path / 'file.pth', '00')
    assert list(tmp_path.iterdir()) == []


def test_a_dead_link_is_not_tried_again(server, tmp_path):
    server.faults = [404] * 9
    with pytest.raises(WeightsError, match='the server says 404') as error:
        download(server.url, tmp_path / 'file.pth')
    assert len(server.asked) == 1 and f'put it at {tmp_path / "file.pth"}' in str(error.value)


def test_without_network_it_says_where_to_put_the_file(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(WeightsError, match='could not be fetched in 4 tries') as error:
        download(server.url, tmp_path / 'file.pth')
    assert f'put it at {tmp_path / "file.pth"}' in str(error.value) and '\n' not in str(error.value)


def test_a_server_that_never_gets_better_ends_and_keeps_what_came(server, tmp_path):
    server.faults = ['cut'] + [500] * 9
    with pytest.raises(WeightsError, match=r'4 tries \(Internal Server Error'):
        download(server.url, tmp_path / 'file.pth')
    assert len(server.asked) == 4
    assert (tmp_path / 'file.pth.part').read_bytes() == CONTENT[:1_200_000]


@pytest.fixture
def listed(server, monkeypatch, tmp_path):
    """A manifest with one file of that server."""
    monkeypatch.setattr(manifest, 'FOLDER', tmp_path)
    monkeypatch.setenv('TAR_VIS_WEIGHTS', str(tmp_path / 'cache'))
    (tmp_path / 'manifest.json').write_text(json.dumps({'weights': [
        {'name': 'one', 'preset': 'minvis_r50', 'class_set': 'ovis', 'licence': 'CC-BY-NC-SA-4.0', 'source': 'a test',
         'url': server.url},
        {'name': 'two', 'preset': 'dvispp_r50', 'class_set': 'ovis', 'licence': 'see origin',
         'source': 'some folder'}]}))
    return tmp_path / 'cache' / 'file.pth'


def test_get_shows_the_licence_and_waits_for_a_yes(listed, server, capsys):
    assert main(['weights', 'get', 'one']) == 1
    shown = capsys.readouterr()
    assert 'CC-BY-NC-SA-4.0 (no commercial use)' in shown.out and '--accept-licence' in shown.err
    assert server.asked == [] and not listed.exists()
    assert main(['weights', 'get', 'one', '--accept-licence']) == 0
    shown = capsys.readouterr().out
    assert SHA256 in shown and f'tar-vis weights convert {listed} -o {listed.with_suffix(".safetensors")}' in shown
    assert listed.read_bytes() == CONTENT
    assert main(['weights', 'list']) == 0
    assert 'fetched' in capsys.readouterr().out


def test_get_takes_another_folder_and_leaves_a_file_that_is_there(listed, server, tmp_path, capsys):
    (tmp_path / 'file.pth').write_bytes(b'kept')
    assert main(['weights', 'get', 'one', '--accept-licence', '--to', str(tmp_path)]) == 0
    assert 'is there already' in capsys.readouterr().out and server.asked == []
    assert (tmp_path / 'file.pth').read_bytes() == b'kept'


def test_get_may_convert_at_once(listed, server, monkeypatch, tmp_path):
    tiny = replace(add_tiny_presets(monkeypatch), class_set='ovis', class_names=(), classes=0)
    model, buffer = VideoInstanceModel(replace(tiny, routing=False)), io.BytesIO()
    torch.save({'model': official_names(model)}, buffer)
    server.content = buffer.getvalue()
    text = (tmp_path / 'manifest.json').read_text().replace('minvis_r50', 'tiny')
    (tmp_path / 'manifest.json').write_text(text)
    assert main(['weights', 'get', 'one', '--accept-licence', '--convert']) == 0
    loaded = load_model('tiny', listed.with_suffix('.safetensors'))
    assert loaded.config.class_set == 'ovis'
    assert torch.equal(loaded.decoder.query_feat, model.decoder.query_feat)


@pytest.mark.parametrize(('answer', 'code'), [('yes', 0), ('no', 1), ('', 1)])
def test_a_person_may_answer(answer, code, listed, server, monkeypatch):
    monkeypatch.setattr('sys.stdin.isatty', lambda: True, raising=False)
    monkeypatch.setattr('builtins.input', lambda _: answer)
    assert main(['weights', 'get', 'one']) == code
    assert listed.exists() == (code == 0)


def test_what_has_no_link_is_fetched_by_hand(listed, server, capsys):
    assert main(['weights', 'get', 'two']) == 1
    error = capsys.readouterr().err
    assert 'by hand (some folder)' in error and 'tar-vis weights convert' in error and error.count('\n') == 1
