"""FrameResult to ROS messages and back."""

from __future__ import annotations

from array import array

import numpy as np
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header

from tar_vis_core.instances import FrameResult, Instance, RoutingTrace, StageTimes, TrackStatus
from tar_vis_ros.conversions.stamps import stamp_of, stamp_text
from tar_vis_ros.msg import InstanceMask, InstanceMaskArray, SkipDiagnostics


def encode_instances(result: FrameResult, header: Header) -> InstanceMaskArray:
    """Return the instances of a frame as a message with the image's header."""
    return InstanceMaskArray(
        header=header, height=result.height, width=result.width, frame_index=result.frame_index,
        track_epoch=result.track_epoch, instances=[_encode_instance(instance) for instance in result.instances])


def _encode_instance(instance: Instance) -> InstanceMask:
    x, y, width, height = instance.box
    return InstanceMask(
        track_id=instance.track_id, status=int(instance.status), age=instance.age,
        class_id=instance.class_id, class_name=instance.class_name, score=float(instance.score),
        roi=RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height), area=instance.area,
        runs=_typed('I', instance.runs, np.uint32))


def encode_diagnostics(result: FrameResult, header: Header, latency_ms: float, frames_dropped: int) -> SkipDiagnostics:
    """Return how a frame was computed, as a message with the image's header."""
    times = result.times
    return SkipDiagnostics(
        header=header, frame_index=result.frame_index, track_epoch=result.track_epoch,
        executed=[bool(ran) for ran in result.routing.executed],
        execute_probability=_typed('f', result.routing.execute_probability, np.float32),
        encoder_reused=bool(result.encoder_reused), frame_mse=float(result.frame_mse),
        preprocess_ms=float(times.preprocess), encoder_ms=float(times.encoder), decoder_ms=float(times.decoder),
        masks_ms=float(times.masks), tracker_ms=float(times.tracker),
        total_ms=float(times.total), latency_ms=float(latency_ms), frames_dropped=frames_dropped,
        state_reset=bool(result.reset_reason), reset_reason=result.reset_reason)


def decode_instance(message: InstanceMask, image_height: int, image_width: int) -> Instance:
    """Return one instance of an InstanceMaskArray of ``image_height`` x ``image_width`` pixels.

    Raise ValueError if the roi leaves the image, the runs do not fill the roi, or the status is unknown.
    """
    roi, name = message.roi, f'instance with track id {message.track_id}'
    if roi.x_offset + roi.width > image_width or roi.y_offset + roi.height > image_height:
        raise ValueError(f'{name}: roi {roi.width}x{roi.height} at ({roi.x_offset}, {roi.y_offset}) leaves the image '
                         f'of {image_width}x{image_height} pixels')
    runs = np.array(message.runs, np.uint32)
    if int(runs.sum(dtype=np.int64)) != roi.width * roi.height:
        raise ValueError(f'{name}: runs add up to {int(runs.sum(dtype=np.int64))} pixels, expected '
                         f'{roi.width} x {roi.height} = {roi.width * roi.height}')
    if message.status not in list(TrackStatus):
        raise ValueError(f'{name}: status {message.status}, expected 0 (NEW), 1 (TRACKED) or 2 (LOST)')
    return Instance(
        track_id=message.track_id, status=TrackStatus(message.status), age=message.age, class_id=message.class_id,
        class_name=message.class_name, score=message.score,
        box=(roi.x_offset, roi.y_offset, roi.width, roi.height), area=message.area, runs=runs)


def decode_instances(message: InstanceMaskArray) -> list[Instance]:
    """Return all instances of a message, in its order. Raise ValueError as :func:`decode_instance` does."""
    return [decode_instance(instance, message.height, message.width) for instance in message.instances]


def decode_result(instances: InstanceMaskArray, diagnostics: SkipDiagnostics) -> FrameResult:
    """Return the result of the frame that both messages describe.

    Raise ValueError if their headers differ, and as :func:`decode_instance` does.
    """
    if instances.header != diagnostics.header:
        raise ValueError(f'the messages are of different images: stamps '
                         f'{stamp_text(stamp_of(instances))} and {stamp_text(stamp_of(diagnostics))}')
    return FrameResult(
        height=instances.height, width=instances.width, frame_index=instances.frame_index,
        track_epoch=instances.track_epoch, instances=decode_instances(instances),
        routing=RoutingTrace(executed=tuple(diagnostics.executed),
                             execute_probability=np.array(diagnostics.execute_probability, np.float32)),
        frame_mse=diagnostics.frame_mse,
        times=StageTimes(preprocess=diagnostics.preprocess_ms, encoder=diagnostics.encoder_ms,
                         decoder=diagnostics.decoder_ms, masks=diagnostics.masks_ms,
                         tracker=diagnostics.tracker_ms, total=diagnostics.total_ms),
        reset_reason=diagnostics.reset_reason, encoder_reused=diagnostics.encoder_reused)


def _typed(code: str, values: np.ndarray, dtype: type) -> array:
    """Return an ``array`` of the message field's own type, which rclpy accepts without checking each item."""
    typed = array(code)
    typed.frombytes(np.ascontiguousarray(values, dtype).tobytes())
    return typed
