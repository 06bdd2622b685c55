"""What goes into the messages comes out again, after CDR serialisation too; broken messages are refused."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy')
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header

from tar_vis_core.instances import FrameResult, Instance, RoutingTrace, StageTimes, TrackStatus, encode_runs
from tar_vis_ros.conversions.messages import decode_instances, decode_result, encode_diagnostics, encode_instances
from tar_vis_ros.msg import InstanceMask, InstanceMaskArray, SkipDiagnostics

HEIGHT, WIDTH = 48, 64
HEADER = Header(stamp=Time(sec=12, nanosec=345_678_901), frame_id='camera_optical')


def instance(mask: np.ndarray, track_id: int = 1, score: float = 0.5, status=TrackStatus.TRACKED) -> Instance:
    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    w, h = int(xs.max()) + 1 - x, int(ys.max()) + 1 - y
    return Instance(track_id=track_id, status=status, age=3, class_id=2, class_name='dog', score=score,
                    box=(x, y, w, h), area=int(mask.sum()), runs=encode_runs(mask[y:y + h, x:x + w]))


def lost(track_id: int) -> Instance:
    return Instance(track_id=track_id, status=TrackStatus.LOST, age=9, class_id=0, class_name='person', score=0.25,
                    box=(50, 40, 14, 8), area=0, runs=np.array([14 * 8], np.uint32))


def frame(instances, reset_reason='') -> FrameResult:
    probability = np.array([np.nan, 0.75, 0.125], np.float32)
    return FrameResult(height=HEIGHT, width=WIDTH, frame_index=7, track_epoch=2, instances=instances,
                       routing=RoutingTrace((True, True, False), probability), frame_mse=float('nan'),
                       times=StageTimes(1.0, 2.0, 3.0, 4.0, 5.0, 15.0), reset_reason=reset_reason,
                       encoder_reused=bool(reset_reason))     # so that both values come


def random_masks(count: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    masks = [random.random((HEIGHT, WIDTH)) < share for share in np.linspace(0.01, 1.0, count)]
    return [mask for mask in masks if mask.any()]


def over_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


def test_masks_survive_serialisation():
    masks = random_masks(8)
    sent = [instance(mask, track_id=n, score=n / 10) for n, mask in enumerate(masks, 1)]
    got = decode_instances(over_the_wire(encode_instances(frame(sent), HEADER)))
    assert [g.track_id for g in got] == [s.track_id for s in sent]
    for g, mask in zip(got, masks, strict=True):
        np.testing.assert_array_equal(g.mask(HEIGHT, WIDTH), mask)
        assert g.area == mask.sum()


def test_the_recipe_in_the_message_comment_decodes():
    mask = random_masks(4)[2]
    message = over_the_wire(encode_instances(frame([instance(mask)]), HEADER))
    roi, runs = message.instances[0].roi, message.instances[0].runs
    values = np.arange(len(runs)) % 2 == 1
    decoded = np.zeros((message.height, message.width), bool)
    rows, cols = slice(roi.y_offset, roi.y_offset + roi.height), slice(roi.x_offset, roi.x_offset + roi.width)
    decoded[rows, cols] = np.repeat(values, runs).reshape(roi.height, roi.width)
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize('reason', ['', 'stamp went back by 2.300 s'])
def test_a_result_survives_as_a_pair_of_messages(reason):
    sent = frame([instance(random_masks(3)[0], status=TrackStatus.NEW), lost(5)], reason)
    array_message = over_the_wire(encode_instances(sent, HEADER))
    diagnostics = over_the_wire(encode_diagnostics(sent, HEADER, latency_ms=42.5, frames_dropped=3))
    assert array_message.header == diagnostics.header == HEADER
    assert diagnostics.latency_ms == 42.5 and diagnostics.frames_dropped == 3
    assert diagnostics.state_reset == bool(reason)
    got = decode_result(array_message, diagnostics)
    assert np.isnan(got.frame_mse)
    np.testing.assert_array_equal(got.routing.execute_probability, sent.routing.execute_probability)
    same = ('height', 'width', 'frame_index', 'track_epoch', 'times', 'reset_reason', 'encoder_reused')
    assert all(getattr(got, name) == getattr(sent, name) for name in same)
    assert got.routing.executed == sent.routing.executed
    for g, s in zip(got.instances, sent.instances, strict=True):
        np.testing.assert_array_equal(g.runs, s.runs)
        assert replace(g, runs=None) == replace(s, runs=None)


def test_statuses_are_those_of_the_message():
    assert {status.name: status.value for status in TrackStatus} == {
        name: getattr(InstanceMask, name) for name in ('NEW', 'TRACKED', 'LOST')}


def test_messages_of_different_images_are_not_paired():
    result = frame([])
    other = Header(stamp=Time(sec=13), frame_id=HEADER.frame_id)
    with pytest.raises(ValueError, match=r'12\.345678901 and 13\.000000000'):
        decode_result(encode_instances(result, HEADER), encode_diagnostics(result, other, 0.0, 0))


def broken(**changes) -> InstanceMaskArray:
    message = encode_instances(frame([instance(random_masks(3)[1], track_id=8)]), HEADER)
    for name, value in changes.items():
        target = message.instances[0].roi if name in ('x_offset', 'y_offset') else message.instances[0]
        setattr(target, name, value)
    return message


@pytest.mark.parametrize(('changes', 'words'), [
    ({'runs': [3, 4]}, 'runs add up to 7'),
    ({'runs': []}, 'runs add up to 0'),
    ({'runs': [4_294_967_295, 4_294_967_295, 2]}, 'runs add up to 8589934592'),
    ({'x_offset': 60}, 'leaves the image of 64x48'),
    ({'y_offset': 4_294_967_295}, 'leaves the image'),
    ({'status': 7}, 'status 7'),
])
def test_broken_masks_are_refused(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        decode_instances(broken(**changes))
    assert 'track id 8' in str(error.value)


def test_probabilities_keep_nan_and_length():
    message = over_the_wire(encode_diagnostics(frame([]), HEADER, 0.0, 0))
    assert isinstance(message, SkipDiagnostics)
    np.testing.assert_array_equal(message.execute_probability, np.array([np.nan, 0.75, 0.125], np.float32))
    assert list(message.executed) == [True, True, False]
