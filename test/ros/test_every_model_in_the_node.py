"""Every model of the package, configured by name in a real node, answers images; untrained, for the mechanics."""

import math
import os

import pytest
import torch

pytest.importorskip('rclpy')
from node_process import NodeProcess, client_of, picture
from saved_weights import save_weights

from tar_vis_core.models.presets import PRESETS
from tar_vis_core.models.video_model import build_model
from tar_vis_core.weights.loading import split_adapter

# as large as others that are here, with trackers that small ones have as well; TAR_VIS_LARGE=1 runs them, too
LARGE = () if os.environ.get('TAR_VIS_LARGE') else ('dvis_swin_l', 'dvis_daq_swin_l', 'dvis_daq_vit_adapter_l')
OFFICIAL = [name for name, config in PRESETS.items() if config.family not in ('nano') and name not in LARGE]


@pytest.fixture(scope='module')
def client(tmp_path_factory):
    """A client of one node, which each test leaves unconfigured."""
    process = NodeProcess(tmp_path_factory.mktemp('every_model'), 'every_model_node', device='cpu', threads=1)
    with client_of(process) as client:
        yield client


@pytest.mark.parametrize('preset', OFFICIAL)
def test_it_answers_images(client, preset, tmp_path):
    config, path = PRESETS[preset], tmp_path / f'{preset}.safetensors'
    torch.manual_seed(5)
    save_weights(build_model(preset, routing=False), path, {'kind': 'model', 'preset': preset}, torch.float16)
    # small input: what is tested does not depend on the size; no least score: an untrained model is sure of nothing
    assert client.set(model=config.family, backbone=config.backbone, weights=str(path), input_short_side=96,
                      score_threshold=0.0, max_instances=5, reset_gap_s=0.0) == ''
    assert client.transition('configure'), client.process.output
    assert f'{preset} is ready on cpu' in client.process.output
    path.unlink()   # a gigabyte
    assert client.transition('activate')
    results = [client.ask(client.image(picture(shift=2 * step))) for step in range(4)]
    assert client.transition('deactivate') and client.transition('cleanup')
    for result in results:
        assert (result.height, result.width) == (120, 160) and result.reset_reason == ''
        # official weights hold no routers: auto is full
        assert result.routing.executed == (True,) * 9 and all(map(math.isnan, result.routing.execute_probability))
        assert 0 < len([i for i in result.instances if i.area]) <= 5
        assert {i.class_name for i in result.instances} <= set(config.class_names)
    assert [r.frame_index for r in results] == sorted(r.frame_index for r in results)
    for result in results:
        assert len({i.track_id for i in result.instances}) == len(result.instances)


def test_an_adapter_brings_routing_to_weights_without_it(client, tmp_path):
    files = [tmp_path / name for name in ('full', 'base', 'adapter')]
    torch.manual_seed(6)
    save_weights(build_model('dvispp_r50'), files[0], {'kind': 'model', 'preset': 'dvispp_r50'}, torch.float16)
    split_adapter(*files)
    assert client.set(model='dvispp', backbone='r50', weights=str(files[1]), adapter=str(files[2]),
                      input_short_side=96, score_threshold=0.0, refresh_frames=0, skip_bias=0.0) == ''
    assert client.transition('configure'), client.process.output
    assert client.transition('activate')
    first, second = (client.ask(client.image(picture(shift=step))) for step in range(2))
    assert first.routing.executed == (True,) * 9 and all(map(math.isnan, first.routing.execute_probability))
    assert not any(map(math.isnan, second.routing.execute_probability[1:])), 'the routers were asked'
    assert client.set(skip_bias=100.0) == ''
    assert client.ask(client.image(picture(shift=3))).routing.executed == (True,) + (False,) * 8
    assert client.transition('deactivate') and client.transition('cleanup')
    # on other weights it is refused
    other = tmp_path / 'other'
    save_weights(build_model('dvispp_r50', routing=False), other, {'kind': 'model', 'preset': 'dvispp_r50'})
    assert client.set(weights=str(other)) == ''
    assert not client.transition('configure')
    assert 'adapter' in client.process.lines('cannot configure')[-1]
    assert client.set(adapter='', weights='', model='nano', backbone='') == ''
