"""Cameras faster than the model, for a while: every image is accounted for, answers do not fall behind, memory stays.

TAR_VIS_SOAK_S=1200 makes it twenty minutes.
"""

import contextlib
import json
import os
import time

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('tar_vis_core.segmenter')
import itertools

from node_process import Client, NodeProcess, nano_weights, picture, resident_mb
from replay_process import Command, environment, processes, report_of
from sensor_msgs.msg import Image

from tar_vis_ros.bags.maker import BagOptions, write_images

SECONDS = float(os.environ.get('TAR_VIS_SOAK_S', '20'))
RATE_HZ = 40        # of pictures of 640x480
REPLAY_HZ = 60      # the player takes less of the processor than a client that looks at every answer
# Each minute the node gives back what only some frames needed; before that a step's largest block may once come to lie
# behind all others (runtime/allocator.py), some 20 MB. One image kept for each answer would be a quarter.
GROWTH = 0.02 if SECONDS >= 120 else 0.08
STEADY_GROWTH = 0.004       # from one tenth of the time to the next: what leaks does so in most of them


def does_not_grow(tenths: list[float]) -> bool:
    """Whether memory, as means of parts of the time, neither rises steadily nor far above what the first ones held."""
    return max(tenths) < (1 + GROWTH) * min(tenths[:2]) and np.median(np.diff(tenths)) < STEADY_GROWTH * tenths[0]


def test_a_camera_that_is_too_fast(tmp_path):
    process = NodeProcess(tmp_path, 'soaked', weights=nano_weights(tmp_path) or "''")
    client = Client(process)
    pictures = [picture(480, 640, shift) for shift in range(0, 64, 4)]
    try:
        assert client.transition('configure') and client.transition('activate'), process.output
        for pixels in pictures:      # a first round, in which memory is taken
            client.ask(client.image(pixels))
        client.diagnostics.clear()
        client.instances.clear()
        client.sent, memory, answered, dropped, waited = 0, [], 0, 0, []

        def collect() -> None:
            nonlocal answered, dropped
            for message in client.diagnostics.values():
                answered, dropped = answered + 1, dropped + message.frames_dropped
                waited.append(message.latency_ms - message.total_ms)
                assert not message.state_reset
            client.diagnostics.clear()
            client.instances.clear()

        began = time.monotonic()
        while time.monotonic() < began + SECONDS:
            client.images.publish(client.image(pictures[client.sent % len(pictures)], step_s=1 / RATE_HZ))
            client.sent += 1
            due = began + client.sent / RATE_HZ
            while time.monotonic() < due:
                client._executor.spin_once(timeout_sec=max(0.0, due - time.monotonic()))
            if client.sent % RATE_HZ == 0:
                memory.append(process.resident_mb)
                collect()
        client.spin(1)
        client.ask(client.image(pictures[0], step_s=1 / RATE_HZ))      # also tells of what was dropped before it
        collect()
        tenths = [np.mean(part) for part in np.array_split(memory, 10)]
        print(f'\n{client.sent} sent, {answered} answered, {dropped} dropped; latency above the step, ms: median '
              f'{np.median(waited):.1f}, p95 {np.percentile(waited, 95):.1f}; memory, MB, mean of each tenth of the '
              f'time: {" ".join(f"{mean:.1f}" for mean in tenths)}, most {max(memory):.1f}')
        assert answered + dropped == client.sent, 'every image is answered or counted'
        assert dropped > 0
        quarter = len(waited) // 4
        assert np.median(waited[-quarter:]) < 2 * np.median(waited[:quarter]) + 50, 'answers do not fall behind'
        # one image kept for each answer would be a third more in 20 s
        assert does_not_grow(tenths), 'ten minutes: no growth after the first'
    finally:
        client.close()
        process.end()


def test_two_cameras_that_are_too_fast(tmp_path):
    """Nothing begins anew that the cameras did not break, though the model leaves out most images; somebody looks."""
    rates_hz = {'front': 40, 'rear': 25}
    process = NodeProcess(tmp_path, 'soaked_twice', weights=nano_weights(tmp_path) or "''", reset_gap_s=0.3,
                          image_topics="['/front/image_raw', '/rear/image_raw']")
    clients = {name: Client(process, name) for name in rates_hz}
    pictures = [picture(480, 640, shift) for shift in range(0, 64, 4)]
    answered, dropped, waited, memory, looked = dict.fromkeys(rates_hz, 0), dict.fromkeys(rates_hz, 0), [], [], []
    try:
        front = clients['front']
        assert front.transition('configure') and front.transition('activate'), process.output
        front.node.create_subscription(Image, '/soaked_twice/front/overlay', lambda m: looked.append(m.height), 1)
        for client in clients.values():
            for pixels in pictures:      # a first round, in which memory is taken
                client.ask(client.image(pixels, step_s=0.025))
            client.diagnostics.clear()
            client.sent = 0

        def collect(name: str) -> None:
            for message in clients[name].diagnostics.values():
                answered[name], dropped[name] = answered[name] + 1, dropped[name] + message.frames_dropped
                waited.append(message.latency_ms - message.total_ms)
                assert not message.state_reset, f'{name}: {message.reset_reason}'
            clients[name].diagnostics.clear()
            clients[name].instances.clear()

        began = time.monotonic()
        while (now := time.monotonic()) < began + SECONDS:
            for name, client in clients.items():
                if now >= began + client.sent / rates_hz[name]:
                    client.images.publish(client.image(pictures[client.sent % 16], step_s=1 / rates_hz[name]))
                    client.sent += 1
                client._executor.spin_once(timeout_sec=0.002)
                if client.sent % rates_hz[name] == 0:
                    collect(name)
            if len(memory) < now - began:
                memory.append(process.resident_mb)
        for name, client in clients.items():
            client.spin(1)
            client.ask(client.image(pictures[0], step_s=1 / rates_hz[name]))      # tells of what was dropped before it
            collect(name)
        tenths = [np.mean(part) for part in np.array_split(memory, 10)]
        print(f'\n{ {name: client.sent for name, client in clients.items()} } sent, {answered} answered, {dropped} '
              f'dropped, {len(looked)} overlays seen; latency above the step, ms: median {np.median(waited):.1f}, p95 '
              f'{np.percentile(waited, 95):.1f}; memory, MB, mean of each tenth of the time: '
              f'{" ".join(f"{mean:.1f}" for mean in tenths)}, most {max(memory):.1f}')
        for name, client in clients.items():
            assert answered[name] + dropped[name] == client.sent and dropped[name] > 0, name
        assert looked
        assert does_not_grow(tenths[1:]), 'no growth after the first tenths'
    finally:
        for client in clients.values():
            client.close()
        process.end()


def test_a_replayed_bag_that_is_too_fast(tmp_path):
    """tar-vis-replay in real time: what it reports, image by image, and the memory of the node that it has started."""
    files = [tmp_path / f'{number:02d}.jpg' for number in range(16)]
    for number, file in enumerate(files):
        assert cv2.imwrite(str(file), picture(480, 640, 4 * number)[..., ::-1])
    rate = 2
    sent = write_images(tmp_path / 'bag', (files[i % len(files)] for i in range(round(SECONDS * REPLAY_HZ))),
                        BagOptions(compressed=True, fps=REPLAY_HZ / rate))
    mark = f'score_threshold:=0.3{os.getpid()}'
    command = Command(environment(tmp_path), tmp_path / 'bag', '--mode', 'realtime', '--rate', rate, '--out',
                      tmp_path / 'out', '-p', f"weights:={nano_weights(tmp_path) or ''!r}", '-p', mark)
    node, player = [], []
    while command.running:
        time.sleep(1)
        for module, memory in (('tar_vis_ros.node', node), ('tar_vis_ros.replay.worker', player)):
            with contextlib.suppress(OSError):      # it has just ended
                memory += [resident_mb(pid) for pid, said in processes(mark).items() if f' -m {module} ' in said]
    code, out, error = command.wait()
    assert code == 0, out + error
    figures = report_of(tmp_path / 'out')['total']
    images = json.loads((tmp_path / 'out/bag/frames.json').read_text())['frames']
    answered = [image for image in images if image['round_trip_ms'] is not None]
    waited = [image['latency_ms'] - image['step_ms'] for image in answered]
    node = node[-round(SECONDS):]       # it has been configured by then
    tenths = [np.mean(part) for part in np.array_split(node, 10)]
    print(f'\n{out}latency above the step, ms: median {np.median(waited):.1f}, p95 {np.percentile(waited, 95):.1f}; '
          f'memory of the node, MB, mean of each tenth of the time: {" ".join(f"{mean:.1f}" for mean in tenths)}, '
          f'most {max(node):.1f}; of the player, at first, in the middle, at last: '
          f'{player[0]:.1f} {player[len(player) // 2]:.1f} {player[-1]:.1f}')

    assert figures['images'] == sent == figures['answered'] + figures['dropped'] and figures['dropped'] > 0
    for before, after in itertools.pairwise(answered):
        assert after['index'] - before['index'] - 1 == after['dropped'], 'what the node counts is what is missing'
        assert not after['reset_reason']
    assert answered[-1]['index'] == sent - 1, 'the newest is never dropped'
    quarter = len(waited) // 4
    assert np.median(waited[-quarter:]) < 2 * np.median(waited[:quarter]) + 50, 'answers do not fall behind'
    assert does_not_grow(tenths[1:]), 'ten minutes: no growth after the first'
