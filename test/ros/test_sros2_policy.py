"""The access control file allows what the running node does on the graph, and no more."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('tar_vis_core.segmenter')
from node_process import Client, NodeProcess, nano_weights
from rclpy.node import NodeNameNonExistentError

from tar_vis_ros.conversions import detections

POLICY = Path(__file__).parents[2] / 'config' / 'sros2_policy.xml'


def allowed(kind: str, right: str) -> set[str]:
    """Full names of the topics or services that the policy allows the node."""
    profile = ElementTree.parse(POLICY).getroot().find("enclaves/enclave[@path='/tar_vis']/profiles/profile")
    assert (profile.get('ns'), profile.get('node')) == ('/', 'tar_vis')
    names = [item.text for block in profile.findall(kind) if block.get(right) == 'ALLOW' for item in block]
    assert len(names) == len(set(names))
    return {name.replace('~', '/tar_vis') if name[0] in '~/' else f'/{name}' for name in names}


def test_the_policy_is_the_nodes_own_list(tmp_path):
    process = NodeProcess(tmp_path, 'tar_vis', '--ros-args', '-p', 'use_sim_time:=true', weights=nano_weights(tmp_path)
                          or "''", input_short_side=64, threads=1, autostart='true')
    client = Client(process)
    try:
        process.wait_for_line('waiting for images')

        def seen(what: str) -> set[str]:
            try:
                names = getattr(client.node, f'get_{what}_names_and_types_by_node')('tar_vis', '/')
            except NodeNameNonExistentError:    # its process answers before the graph knows it
                return set()
            # the tests give the image topic another name
            return {'/image' if name == '/tar_vis/image' else name for name, _ in names}

        standard = {'/tar_vis/detections', '/tar_vis/label_info'}
        publishes = allowed('topics', 'publish')
        assert standard < publishes
        expected = publishes if detections.available else publishes - standard
        client.until(lambda: len(seen('publisher')) >= len(expected) and '/image' in seen('subscriber'), 'the graph')
        assert seen('publisher') == expected
        assert seen('subscriber') == allowed('topics', 'subscribe') - {'/image/compressed'}
        assert seen('service') == allowed('services', 'reply')
        assert not seen('client') and not allowed('services', 'request')
    finally:
        client.close()
        assert process.end() == 0
