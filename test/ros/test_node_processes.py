"""The active node on a real graph: this process publishes images and calls services, the node is another process."""

from array import array

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('tar_vis_core.segmenter')
from diagnostic_msgs.msg import DiagnosticStatus
from node_process import Client, NodeProcess, key, nano_weights, picture
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from tar_vis_core.instances import TrackStatus
from tar_vis_core.media.overlay import Trails, draw_overlay
from tar_vis_core.models.presets import PRESETS
from tar_vis_ros.conversions.images import image_to_array, image_to_rgb
from tar_vis_ros.conversions.label_images import IMAGES, Moving

LAYERS = PRESETS['nano'].decoder_layers


@pytest.fixture(scope='module')
def client(tmp_path_factory):
    """A client of one active node, shared by all tests here: each leaves it active, with the parameters it found."""
    folder = tmp_path_factory.mktemp('node')
    process = NodeProcess(folder, 'active_node', weights=nano_weights(folder) or "''", input_short_side=96,
                          score_threshold=0.0, max_instances=5, threads=1)
    client = Client(process)
    try:
        assert client.transition('configure') and client.transition('activate'), process.output
        yield client
    finally:
        client.close()
        process.end()


def test_answers_carry_the_images_header_and_size(client):
    image = client.image(picture())
    result = client.ask(image)
    stamp = key(image.header.stamp)
    assert client.instances[stamp].header == client.diagnostics[stamp].header == image.header
    assert (result.height, result.width) == (120, 160)
    assert len(result.routing.executed) == len(result.routing.execute_probability) == LAYERS
    assert result.routing.executed[0]
    assert 0 < result.times.total <= client.diagnostics[stamp].latency_ms
    assert result.instances, 'a threshold of 0 reports something'
    for instance in result.instances:
        assert instance.mask(result.height, result.width).sum() == instance.area
        assert instance.class_name and instance.status in list(TrackStatus)
    following = client.ask(client.image(picture(shift=2)))
    assert following.frame_index == result.frame_index + 1 and following.track_epoch == result.track_epoch


@pytest.mark.parametrize(('encoding', 'channels'), [('bgr8', [2, 1, 0]), ('rgba8', [0, 1, 2, 0]), ('mono8', [1])])
def test_other_encodings_and_padded_rows_are_answered(client, encoding, channels):
    pixels = np.ascontiguousarray(picture()[..., channels])
    image = client.image(pixels if len(channels) > 1 else pixels[..., 0], encoding)
    rows = np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)
    image.step += 7
    image.data = array('B', np.pad(rows, ((0, 0), (0, 7))).tobytes())
    result = client.ask(image)
    assert (result.height, result.width) == (120, 160)


def broken(image: Image, what: str) -> Image:
    if what == 'encoding':
        image.encoding = '32FC3'
    elif what == 'step':
        image.step = 3 * image.width - 1
    elif what == 'data':
        image.data = image.data[:-1]
    else:
        image.width = 0
    return image


@pytest.mark.parametrize(('what', 'words'), [
    ('encoding', "image encoding '32FC3' is not supported"),
    ('step', 'image step of 479 bytes is shorter than a row'),
    ('data', 'image data of 57599 bytes is too short'),
    ('size', 'image of 0x120 pixels'),
])
def test_a_bad_image_costs_one_line_and_nothing_else(client, what, words):
    before = client.ask(client.image(picture()))
    said = client.process.output
    refused = int(client.status_where(lambda v: True, 'status')['images refused'])
    for expected in (1, 2, 3):
        bad = client.image(picture())
        client.send(broken(bad, what))
        client.status_where(lambda v, n=refused + expected: int(v['images refused']) == n, 'refused image counted')
        assert key(bad.header.stamp) not in client.instances
    assert client.status.level == DiagnosticStatus.WARN and words in client.status.message
    assert words in client.values['last error']
    after = client.ask(client.image(picture()))
    assert (after.track_epoch, after.frame_index) == (before.track_epoch, before.frame_index + 1)
    assert not after.reset_reason
    lines = client.process.lines('image refused', said)
    assert len(lines) == 1 and words in lines[0] and '[ERROR]' in lines[0]


def test_the_reset_service_raises_the_epoch(client):
    before = client.ask(client.image(picture()))
    answer = client.call(Trigger, 'reset', Trigger.Request())
    assert answer.success and answer.message
    after = client.ask(client.image(picture()))
    assert (after.track_epoch, after.frame_index) == (before.track_epoch + 1, 0)
    assert 'requested' in after.reset_reason
    assert all(i.status == TrackStatus.NEW for i in after.instances)
    assert not client.ask(client.image(picture())).reset_reason


def test_another_image_size_starts_anew_and_masks_have_it(client):
    before = client.ask(client.image(picture()))
    said = client.process.output
    after = client.ask(client.image(picture(96, 128)))
    assert (after.height, after.width) == (96, 128)
    assert (after.track_epoch, after.frame_index) == (before.track_epoch + 1, 0)
    assert after.reset_reason == 'image size changed from 160x120 to 128x96'
    assert all(i.mask(96, 128).sum() == i.area for i in after.instances)
    assert not client.ask(client.image(picture(96, 128))).reset_reason
    assert len(client.process.lines(after.reset_reason, said)) == 1
    assert client.ask(client.image(picture())).reset_reason


def test_stamps_that_go_back_start_anew(client):
    before = client.ask(client.image(picture()))
    said = client.process.output
    after = client.ask(client.image(picture(), step_s=-2.3))
    assert after.track_epoch == before.track_epoch + 1
    assert after.reset_reason == 'stamp went back by 2.300 s'
    assert len(client.process.lines('stamp went back', said)) == 1
    assert not client.ask(client.image(picture())).reset_reason


def test_a_gap_of_stamps_starts_anew(client):
    before = client.ask(client.image(picture()))
    assert client.ask(client.image(picture(), step_s=1.9)).track_epoch == before.track_epoch
    assert client.ask(client.image(picture(), step_s=3.1)).reset_reason == 'gap of 3.100 s'


def test_pictures_are_published_only_while_somebody_listens(client):
    def published() -> dict[str, str]:
        values = client.status_where(lambda v: True, 'status')
        return {key: value for key, value in values.items() if key.endswith(' published')}

    client.ask(client.image(picture()))
    before = published()
    assert len(before) == len(IMAGES) + 1
    got: dict[str, dict] = {name: {} for name in (*IMAGES, 'overlay')}
    client.ask(client.image(picture()))
    assert published() == before
    subscriptions = [client.node.create_subscription(
        Image, f'/{client.process.name}/{topic}', client._take(store), 5) for topic, store in got.items()]
    client.until(lambda: all(s.get_publisher_count() == 1 for s in subscriptions), 'publishers of the pictures')
    trails = Trails()           # of the pictures that were drawn
    for attempt in range(20):   # the node learns of the subscribers a moment later
        image = client.image(picture(shift=attempt))
        result = client.ask(image)
        for _ in range(20):     # a busy machine needs its time for all of them
            client.spin(0.1)
            if all(key(image.header.stamp) in store for store in got.values()):
                break
        if key(image.header.stamp) in got['overlay']:
            paths = trails.follow(result)
        if all(key(image.header.stamp) in store for store in got.values()):
            break
    stamp = key(image.header.stamp)
    pictures = {name: store[stamp] for name, store in got.items()}
    assert all(picture.header == image.header for picture in pictures.values())
    overlay = pictures.pop('overlay')
    assert overlay.encoding == 'rgb8'
    for name, message in pictures.items():
        encoding, pixels = IMAGES[name]
        assert message.encoding == encoding
        np.testing.assert_array_equal(image_to_array(message), pixels(result, Moving(margin_px=8)), name)
    expected = draw_overlay(image_to_rgb(image), result.instances, trails=paths).astype(int)
    assert np.abs(image_to_rgb(overlay).astype(int) - expected).max() <= 1   # the score went by float32
    for subscription in subscriptions:
        client.node.destroy_subscription(subscription)
    for _ in range(20):
        last = published()
        client.ask(client.image(picture()))
        if published() == last:
            return
    raise AssertionError('pictures are still published without a subscriber')


def test_parameters_take_effect_on_the_next_frame(client):
    try:
        assert client.set(routing='full') == ''
        assert client.ask(client.image(picture())).routing.executed == (True,) * LAYERS
        assert client.set(routing='fixed', fixed_layers=1) == ''
        assert client.ask(client.image(picture())).routing.executed_layers == 1
        assert client.set(max_instances=1, class_filter=['person']) == ''
        visible = [i for i in client.ask(client.image(picture())).instances if i.status != TrackStatus.LOST]
        assert len(visible) <= 1 and {i.class_name for i in visible} <= {'person'}
        assert client.set(skip_bias=1) == '', 'a whole number is a number'
    finally:
        assert client.set(routing='adaptive', fixed_layers=3, max_instances=5, class_filter=[''], skip_bias=0.0) == ''


@pytest.mark.parametrize(('values', 'words'), [
    ({'device': 'cuda:3'}, ["'device' needs a configure", 'deactivate']),
    ({'input_short_side': 128}, ["'input_short_side' needs a configure"]),
    ({'routing': 'adaptve'}, ["'adaptve'", "did you mean 'adaptive'?", 'adaptive, full, fixed']),
    ({'score_threshold': float('nan')}, ['nan', 'from 0 to 1']),
    ({'score_threshold': 'high'}, ["'high'", 'from 0 to 1']),
    ({'fixed_layers': 10}, ['10', 'from 1 to 9']),
    ({'class_filter': ['persn']}, ["'persn'", "did you mean 'person'?"]),
    ({'routing': 'full', 'max_instances': 0}, ["'max_instances' is 0"]),
    ({'moving_classes': ['persn']}, ['moving_classes', "'persn'", "did you mean 'person'?"]),
    ({'moving_margin_px': -1}, ["'moving_margin_px' is -1"]),
    ({'score_treshold': 0.5}, ["did you mean 'score_threshold'?"]),
    ({'autostart': True}, ['read-only']),
])
def test_wrong_parameters_are_refused_with_a_reason(client, values, words):
    assert client.set(routing='fixed', fixed_layers=1) == ''
    try:
        reason = client.set(**values)
        assert reason and '\n' not in reason
        for word in words:
            assert word in reason
        assert client.ask(client.image(picture())).routing.executed_layers == 1, 'what stood stands'
    finally:
        assert client.set(routing='adaptive', fixed_layers=3) == ''


def test_every_image_is_answered_or_counted_as_dropped(client):
    client.ask(client.image(picture(480, 640)))
    client.diagnostics.clear()
    client.sent = 0
    images = [client.image(picture(480, 640), step_s=0.001) for _ in range(40)]
    for image in images[:-1]:
        client.send(image)
    client.ask(images[-1])
    answered, dropped = len(client.diagnostics), sum(d.frames_dropped for d in client.diagnostics.values())
    assert dropped > 0 and answered + dropped == client.sent
    client.ask(client.image(picture()))


@pytest.mark.parametrize('label', ['configure', 'activate', 'cleanup'])
def test_an_impossible_transition_leaves_the_node_alive(client, label):
    said = client.process.output
    assert not client.transition(label)
    assert client.state == 'active'
    assert client.process.wait_for_line(f"transition '{label}' is not possible while active", said)
    client.ask(client.image(picture()))


def test_an_inactive_node_says_nothing_and_keeps_its_tracks(client):
    before = client.ask(client.image(picture()))
    assert client.transition('deactivate') and client.state == 'inactive'
    client.until(lambda: client.images.get_subscription_count() == 0, 'end of the subscription')
    unheard = client.image(picture())
    client.images.publish(unheard)
    assert client.set(input_short_side=64) == '', 'while inactive it may be set for the next configure'
    assert client.set(input_short_side=96) == ''
    client.spin(0.3)
    assert key(unheard.header.stamp) not in client.instances
    assert client.transition('activate')
    after = client.ask(client.image(picture()))
    assert (after.track_epoch, after.frame_index) == (before.track_epoch, before.frame_index + 1)


def test_transitions_back_to_back(client):
    for _ in range(5):
        assert client.transition('deactivate') and client.transition('activate')
    for _ in range(2):
        assert client.transition('deactivate') and client.transition('cleanup')
        assert client.state == 'unconfigured'
        assert not client.call(Trigger, 'reset', Trigger.Request()).success
        assert client.transition('configure') and client.transition('activate')
    assert client.ask(client.image(picture())).frame_index == 0


def test_diagnostics_tell_how_it_goes(client):
    for shift in range(3):
        client.ask(client.image(picture(shift=shift)))
    values = client.status_where(lambda v: v['latency p95 (ms)'] != 'unknown', 'latency in /diagnostics')
    assert values['state'] == 'active' and values['image topic'] == f'/{client.process.name}/image'
    assert client.status.hardware_id == 'cpu' or client.status.hardware_id.startswith('cuda')
    assert 0 < float(values['latency p50 (ms)']) <= float(values['latency p95 (ms)'])
    assert 1 <= float(values['executed layers (mean)']) <= LAYERS
    assert int(values['frames processed']) >= 3


def test_silence_on_the_image_topic_is_told(client):
    client.until(lambda: client.status is not None and 'no image on' in client.status.message, 'warning of silence')
    assert client.status.level == DiagnosticStatus.WARN and f'/{client.process.name}/image' in client.status.message


def test_a_still_picture_spares_the_image_encoder_where_that_is_asked_for(client):
    try:
        assert not [client.ask(client.image(picture())) for _ in range(2)][-1].encoder_reused, 'off by default'
        assert client.set(encoder_reuse=4.0) == ''
        first, again = (client.ask(client.image(picture())) for _ in range(2))
        moved = client.ask(client.image(picture(shift=40)))
        assert (first.encoder_reused, again.encoder_reused, moved.encoder_reused) == (False, True, False)
    finally:
        assert client.set(encoder_reuse=0.0) == ''


def test_a_latency_budget_skips_what_it_can_and_says_when_that_is_not_enough(client):
    try:
        # a bias with which every layer runs, whatever the picture
        assert client.set(latency_budget_ms=1e-3, routing='adaptive', refresh_frames=0, skip_bias=-5.0) == ''
        first = client.ask(client.image(picture()))
        for shift in range(150):
            last = client.ask(client.image(picture(shift=shift % 5)))
            if client.status and 'latency budget' in client.status.message:
                break
        client.until(lambda: 'latency budget of 0.001 ms cannot be met' in client.status.message, 'the report')
        assert last.routing.executed_layers == 1 < first.routing.executed_layers, 'only the warm-up layer is left'
        assert client.set(latency_budget_ms=0) == ''
        assert client.ask(client.image(picture())).routing.executed_layers > 1
        client.until(lambda: 'latency budget' not in client.status.message, 'the end of the report')
    finally:
        assert client.set(latency_budget_ms=0.0, refresh_frames=10, skip_bias=0.0) == ''
