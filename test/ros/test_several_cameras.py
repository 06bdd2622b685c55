"""One node, one model, several cameras: each has its own tracks, topics, reset and counters, and all get their turn."""

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('tar_vis_core.segmenter')
from diagnostic_msgs.msg import DiagnosticStatus
from node_process import Client, NodeProcess, nano_weights, picture
from std_srvs.srv import Trigger

from tar_vis_ros.node.cameras import camera_topics
from tar_vis_ros.process.parameters import ParameterError


@pytest.fixture(scope='module')
def cameras(tmp_path_factory):
    """Clients of the cameras of one active node."""
    folder = tmp_path_factory.mktemp('cameras')
    process = NodeProcess(folder, 'many', weights=nano_weights(folder) or "''", input_short_side=64, threads=1,
                          score_threshold=0.0, max_instances=3, image_topics="['/front/image_raw', '/rear/image_raw']")
    clients = [Client(process, name) for name in ('front', 'rear')]
    try:
        assert clients[0].transition('configure') and clients[0].transition('activate'), process.output
        yield clients
    finally:
        for client in clients:
            client.close()
        assert process.end() == 0


def test_each_camera_has_tracks_of_its_own(cameras):
    front, rear = cameras
    first = [camera.ask(camera.image(picture())) for camera in cameras]
    for _ in range(3):
        later = front.ask(front.image(picture()))
    assert later.frame_index == first[0].frame_index + 3
    assert rear.ask(rear.image(picture())).frame_index == first[1].frame_index + 1
    assert rear.ask(rear.image(picture(96, 128))).reset_reason.startswith('image size changed')
    assert not front.ask(front.image(picture())).reset_reason


def test_one_camera_is_reset_or_all(cameras):
    front, rear = cameras
    epochs = [camera.ask(camera.image(picture())).track_epoch for camera in cameras]
    assert front.call(Trigger, 'front/reset', Trigger.Request()).success
    assert 'requested' in front.ask(front.image(picture())).reset_reason
    assert not rear.ask(rear.image(picture())).reset_reason
    assert front.call(Trigger, 'reset', Trigger.Request()).success
    after = [camera.ask(camera.image(picture())) for camera in cameras]
    assert [result.track_epoch for result in after] == [epochs[0] + 2, epochs[1] + 1]


def test_a_camera_that_floods_does_not_starve_the_other(cameras):
    front, rear = cameras
    for camera in cameras:
        camera.ask(camera.image(picture()))
        camera.diagnostics.clear()
        camera.sent = 0
    asked = 5
    for _ in range(asked):
        for _ in range(10):      # ten of the one against one of the other, without a pause
            front.send(front.image(picture(240, 320), step_s=0.01))
        rear.ask(rear.image(picture()))
    assert len(rear.diagnostics) == asked and not any(d.frames_dropped for d in rear.diagnostics.values())
    front.ask(front.image(picture(240, 320)))
    answered, dropped = len(front.diagnostics), sum(d.frames_dropped for d in front.diagnostics.values())
    assert dropped > 0 and answered + dropped == front.sent, 'drops are counted for their camera'


def test_diagnostics_have_a_status_for_each_camera(cameras):
    front = cameras[0]
    front.ask(front.image(picture()))
    for camera in cameras:
        values = camera.status_where(lambda v: v['state'] == 'active', 'status')
        assert values['image topic'] == f'/{camera.camera}/image_raw'
    front.until(lambda: front.status.level == DiagnosticStatus.WARN, 'warning of silence')
    assert 'no image on /front/image_raw' in front.status.message


def test_a_topic_twice_or_a_bad_one_is_refused_at_configure(cameras):
    front = cameras[0]
    assert front.transition('deactivate') and front.transition('cleanup')
    for topics, words in ((['/a/b', '/a/b'], "has '/a/b' twice"), (['/a b/c'], 'image_topics')):
        said = front.process.output
        assert front.set(image_topics=topics) == ''
        assert not front.transition('configure')
        assert any(words in line for line in front.process.lines('cannot configure', said))
    assert front.set(image_topics=['/front/image_raw', '/rear/image_raw']) == ''
    assert front.transition('configure') and front.transition('activate')
    front.ask(front.image(picture()))


@pytest.mark.parametrize(('topics', 'names'), [
    ((), ['']),
    (('/front/image_raw', '/rear/image_raw'), ['front', 'rear']),
    (('camera',), ['camera']),
    (('/robot/left/image', '~/right'), ['robot_left', 'right']),
    (('/a/image_raw', '/a/image_rect'), ['a_image_raw', 'a_image_rect']),
    (('/a/b_c/image', '/a_b/c/image', '/a/b/c_image'), ['a_b_c_image', 'a_b_c_image_2', 'a_b_c_image_3']),
    (('/a/b/c', '/a_b/c', '/x/a_b_c_2', '/a/b_c'), ['a_b_c', 'a_b_c_2', 'x_a_b_c_2', 'a_b_c_3']),
])
def test_names_come_from_the_topics(topics, names):
    assert list(camera_topics(topics)) == names


def test_two_names_of_one_topic_are_one_camera_twice():
    with pytest.raises(ParameterError, match="has 'front/image' twice"):
        camera_topics(('front/image', '/robot/front/image'), lambda topic: f'/robot/{topic}'.replace('/robot//', '/'))


@pytest.mark.parametrize('topics', [('/a', '/a'), ('/a//b',), ('9a',), ('/a b',), ('',)])
def test_what_is_no_topic_is_refused(topics):
    with pytest.raises(ParameterError, match='image_topics'):
        camera_topics(topics)
