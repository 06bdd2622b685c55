"""The demo: what the recorder joins and writes, the pictures, and the whole command as a newcomer runs it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from node_process import nano_weights, picture
from replay_process import processes
from std_msgs.msg import Header

from tar_vis_core.instances import FrameResult, Instance, RoutingTrace, StageTimes, TrackStatus, encode_runs
from tar_vis_core.media.frames import open_frames, play
from tar_vis_core.media.recording import OverlayVideo
from tar_vis_ros.conversions.images import array_to_image
from tar_vis_ros.conversions.messages import encode_diagnostics, encode_instances
from tar_vis_ros.demo.command import main, node_arguments, parse, plan_source, summary_table
from tar_vis_ros.demo.pictures import contact_sheet, routing_picture
from tar_vis_ros.demo.recorder import AnsweredFrame, FrameSummary, FrameWriter, Recorder
from tar_vis_ros.process.domains import ClaimedDomain

PATIENCE_S = 300.0   # a deadline for what takes ten seconds on an idle machine
RESULTS = ('overlay.mp4', 'sheet.png', 'routing.png', 'instances.jsonl')


def result(index: int, height: int = 48, width: int = 64, reason: str = '') -> FrameResult:
    """A frame's answer with one instance, whose mask has a hole, and one lost track."""
    crop = np.ones((10, 20), bool)
    crop[3:5, 4:9] = False
    instances = [
        Instance(1, TrackStatus.TRACKED, index, 0, 'person', 0.87654, (5, 6, 20, 10), 190, encode_runs(crop)),
        Instance(2, TrackStatus.LOST, index, 1, 'cat', 0.5, (1, 1, 4, 4), 0, encode_runs(np.zeros((4, 4), bool)))]
    trace = RoutingTrace(tuple(layer == 0 or layer % 3 == index % 3 for layer in range(9)), np.zeros(9, np.float32))
    return FrameResult(height, width, index, 0, instances, trace, math.nan if index == 0 else 10.0 * index,
                       StageTimes(1, 2, 3, 4, 5, 15), reason)


def answered(index: int, height: int = 48, width: int = 64, reason: str = '') -> AnsweredFrame:
    image = np.full((height, width, 3), 5 * index, np.uint8)
    stamp = (100 + index // 8, index % 8 * 125_000_000)
    return AnsweredFrame(stamp, image, result(index, height, width, reason), 20.5, 0)


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    with open_frames(str(path)) as reader:
        return [frame.image for frame in play(reader)], reader.fps


def test_written_lines_hold_the_frames_as_they_were(tmp_path):
    writer = FrameWriter(tmp_path)
    for index in range(15):
        writer.add(answered(index))
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / 'instances.jsonl').read_text().splitlines()]
    assert [line['frame_index'] for line in lines] == list(range(15))
    stamps = [line['stamp']['sec'] + line['stamp']['nanosec'] * 1e-9 for line in lines]
    assert stamps == [100 + index / 8 for index in range(15)]
    assert lines[0]['frame_mse'] is None
    assert lines[3]['frame_mse'] == 30
    assert lines[4]['executed'] == list(result(4).routing.executed)
    person, cat = lines[7]['instances']
    assert (person['status'], cat['status']) == ('TRACKED', 'LOST')
    assert person['box'] == [5, 6, 20, 10]
    assert sum(person['runs']) == 200
    assert sum(person['runs'][1::2]) == person['area'] == 190
    pictures, fps = read_video(tmp_path / 'overlay.mp4')
    assert len(pictures) == 15
    assert fps == pytest.approx(8)
    assert {image.shape for image in pictures} == {(48, 64, 3)}


@pytest.mark.parametrize('count', [1, 2, 30])
def test_pictures_of_short_and_long_runs(tmp_path, count):
    writer = FrameWriter(tmp_path)
    for index in range(count):
        writer.add(answered(index, reason='stamp went back by 2.300 s' if index in (0, 25) else ''))
    writer.close()
    contact_sheet(writer.video.path, writer.frames, tmp_path / 'sheet.png', 'a run')
    routing_picture(writer.frames, tmp_path / 'routing.png', 'a run')
    for name in ('sheet.png', 'routing.png'):
        image = cv2.imread(str(tmp_path / name))
        assert image is not None
        assert image.std() > 5      # something is drawn


def test_overlay_video_takes_odd_and_changing_sizes(tmp_path):
    video = OverlayVideo(tmp_path / 'overlay.mp4')
    for index, size in enumerate([(47, 63)] * 14 + [(90, 40)] * 3):
        video.add(index / 10, np.full((*size, 3), 200, np.uint8))
    video.close()
    pictures, fps = read_video(tmp_path / 'overlay.mp4')
    assert len(pictures) == 17
    assert fps == pytest.approx(10)
    assert pictures[-1][:, 0].max() < 60        # a tall picture stands on black
    assert pictures[-1][20, 30].min() > 150


def test_recorder_joins_by_stamp_in_whatever_order_messages_come():
    context = rclpy.Context()
    rclpy.init(context=context)
    frames = []
    recorder = Recorder(frames.append, context=context)
    headers = [Header(stamp=Time(sec=7, nanosec=n)) for n in range(4)]
    images = [array_to_image(np.full((48, 64, 3), n, np.uint8), 'rgb8', header) for n, header in enumerate(headers)]
    instances = [encode_instances(result(n), header) for n, header in enumerate(headers)]
    diagnostics = [encode_diagnostics(result(n), header, 3.0, n) for n, header in enumerate(headers)]
    take_image, take_instances, take_diagnostics = (
        next(s for s in recorder.subscriptions if s.topic_name.endswith(end)).callback
        for end in ('/image', '/instances', '/skip_diagnostics'))
    take_image(images[0])
    take_instances(instances[0])
    assert not frames
    take_diagnostics(diagnostics[0])
    take_image(images[1])
    take_diagnostics(diagnostics[2])
    take_instances(instances[2])
    assert not recorder.complete
    take_image(images[2])           # the answer came before the image; image 1 was passed over
    assert recorder.complete
    take_image(images[3])
    assert not recorder.complete
    assert [frame.stamp for frame in frames] == [(7, 0), (7, 2)]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 2]
    assert [frame.dropped for frame in frames] == [0, 2]
    recorder.destroy_node()
    context.try_shutdown()


def test_plans_pace_files_and_not_live_sources(tmp_path):
    photographs = plan_source(parse([]))
    assert photographs.total == 240
    assert '--follow' in photographs.arguments
    live = plan_source(parse(['--live', '--frames', '30']))
    assert live.total == 30
    assert '--follow' not in live.arguments
    wide = tmp_path / 'wide.png'
    cv2.imwrite(str(wide), np.zeros((100, 1500, 3), np.uint8))
    plan = plan_source(parse(['--video', str(wide)]))
    assert plan.arguments[plan.arguments.index('--width') + 1] == '1280'
    assert '--width' not in photographs.arguments


@pytest.mark.parametrize('given, expected', [
    ([], ['encoder_reuse:=4.0']),
    (['routing:=full'], ['encoder_reuse:=4.0', 'routing:=full']),
    (['encoder_reuse:=0.0'], ['encoder_reuse:=0.0']),
    (['model:=onnx', 'weights:=/a.onnx'], ['model:=onnx', 'weights:=/a.onnx']),      # it has no encoder of ours
])
def test_masks_are_taken_over_at_rest_unless_told_otherwise(given, expected):
    options = parse([word for setting in given for word in ('-p', setting)])
    assert node_arguments(options)[1:] == [word for setting in expected for word in ('-p', setting)]


@pytest.mark.parametrize('arguments, expected', [
    (['--video', 'absent.mp4'], 'absent.mp4: no such file or folder'),
    (['--camera', '987'], 'there is no camera /dev/video987'),
])
def test_a_missing_source_is_one_line_before_anything_starts(arguments, expected, capsys, tmp_path):
    assert main([*arguments, '--out', str(tmp_path / 'demo')]) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1


def test_the_table_counts_each_track_once_by_its_commonest_class():
    def frame(*tracks, epoch=0, latency=100.0, layers=3):
        executed = tuple(n < layers for n in range(9))
        return FrameSummary(0.0, 0, epoch, executed, layers == 0, 1.0, latency, 50.0, 1, '', tracks)
    frames = [frame((1, 'cat'), (2, 'person')), frame((1, 'dog'), (2, 'person')), frame((1, 'dog'), layers=6),
              frame((1, 'person'), epoch=1, latency=300.0)]
    table = dict(summary_table(9, frames, 'adaptive'))
    assert table['frames sent'] == '9'
    assert table['frames processed'] == '4'
    assert table['frames dropped'].startswith('5  (4 replaced')
    assert table['tracks'] == '3  (2 person, 1 dog)'
    assert table['executed layers, mean'].startswith('3.75 of 9')
    assert dict(summary_table(1, [frame(layers=0), frame()], 'auto'))['frames at rest'].startswith('1 ')
    assert table['latency'] == 'p50 100 ms, p95 270 ms'


def test_claimed_domains_are_valid_and_differ_until_they_are_released():
    claimed = [ClaimedDomain() for _ in range(60)]
    numbers = {one.number for one in claimed}
    assert len(numbers) == 60 and min(numbers) >= 1 and max(numbers) <= 101
    assert int(os.environ['ROS_DOMAIN_ID']) not in numbers, 'this process has claimed its own'
    for one in claimed:
        one.release()
    again = [ClaimedDomain() for _ in range(60)]
    assert numbers & {one.number for one in again}, 'of 101, two times 60'


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> list[str]:
    """Options that name weights: none where the package has them, else an untrained model's."""
    path = nano_weights(tmp_path_factory.mktemp('weights'))
    return ['-p', f'weights:={path}'] if path else []


@pytest.fixture
def demo(ros_env, tmp_path):
    """Starts ``tar-vis-demo`` on this test process's domain, on a small network input."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, '-m', 'tar_vis_ros.demo.command', '--out', str(tmp_path / 'demo'), '--domain-id',
             ros_env['ROS_DOMAIN_ID'], '-p', 'input_short_side:=96', '-p', f'score_threshold:={MARK}',
             '-p', 'threads:=1', *arguments],
            env=ros_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


MARK = '0.0123456'      # by this value a node that the tests started is known


def nodes_left() -> list[str]:
    return [command for command in processes(MARK).values() if 'tar_vis_ros.node' in command]


def test_a_video_goes_through_the_graph_and_leaves_its_pictures(demo, tmp_path, weights):
    video = tmp_path / 'clip.mp4'
    out = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*'mp4v'), 8.0, (160, 120))
    for index in range(14):
        out.write(cv2.cvtColor(picture(shift=2 * index), cv2.COLOR_RGB2BGR))
    out.release()
    process = demo('--video', str(video), '--frames', '12', *weights)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    for words in (('frames sent', '12'), ('frames processed', '12'), ('frames dropped', '0')):
        assert any(line.split()[:3] == [*words[0].split(), words[1]] for line in output.splitlines()), output
    for label in ('tracks', 'executed layers, mean', 'latency', *RESULTS):
        assert label in output
    folder = tmp_path / 'demo'
    assert {path.name for path in folder.iterdir()} == set(RESULTS)
    lines = [json.loads(line) for line in (folder / 'instances.jsonl').read_text().splitlines()]
    assert [line['frame_index'] for line in lines] == list(range(12))
    assert {line['track_epoch'] for line in lines} == {lines[0]['track_epoch']}
    assert {(line['height'], line['width']) for line in lines} == {(120, 160)}
    stamps = [line['stamp']['sec'] * 10**9 + line['stamp']['nanosec'] for line in lines]
    assert np.allclose(np.diff(stamps), 125_000_000, atol=2)     # the file's own time, whatever the machine's speed
    for line in lines:
        assert sum(line['executed']) == line['executed_layers']
        for instance in line['instances']:
            assert sum(instance['runs']) == instance['box'][2] * instance['box'][3]
    pictures, fps = read_video(folder / 'overlay.mp4')
    assert len(pictures) == 12
    assert fps == pytest.approx(8)
    assert not nodes_left()


def test_ctrl_c_keeps_what_is_there_and_leaves_no_process(demo, tmp_path, weights):
    process = demo(*weights)
    lines = tmp_path / 'demo' / 'instances.jsonl'
    deadline = time.monotonic() + PATIENCE_S
    half = lambda: next(lines.parent.glob('.instances.*.jsonl'), None)      # noqa: E731  (its name comes at the end)
    while not half() or len(half().read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, output
    assert 'Traceback' not in output
    assert {path.name for path in lines.parent.iterdir()} == set(RESULTS)
    assert len(read_video(lines.parent / 'overlay.mp4')[0]) == len(lines.read_text().splitlines()) < 240
    assert not nodes_left()


def test_a_node_that_cannot_configure_is_reported_with_its_last_words(demo, tmp_path):
    process = demo('-p', f'weights:={tmp_path / "absent.safetensors"}')
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert 'the node could not configure, it said:' in output
    assert 'absent.safetensors' in output
    assert 'Traceback' not in output
    assert not nodes_left()
