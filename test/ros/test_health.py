"""/diagnostics says how the node fares, and the log is not flooded by one fault that repeats."""

import pytest

pytest.importorskip('diagnostic_msgs.msg')
from diagnostic_msgs.msg import DiagnosticStatus

from tar_vis_ros.node.health import RECENT_S, WINDOW_FRAMES, WINDOW_S, Health


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    health = Health(clock)
    health.activated()
    return health


def status(health, state='active', **more):
    got = health.status('tar_vis: front', state, '/camera/image', 'cpu', **more)
    return got, {pair.key: pair.value for pair in got.values}


def test_rate_latency_and_layers_are_of_the_last_seconds(health, clock):
    for latency in range(100):      # ten frames a second
        health.image_arrived()
        health.frame_done(float(latency), 2 + latency % 3)
        health.dropped(1)
        clock.now += 0.1
    got, values = status(health)
    assert got.level == DiagnosticStatus.OK and got.name == 'tar_vis: front' and got.hardware_id == 'cpu'
    assert float(values['frames per second']) == pytest.approx(9.9, abs=0.2)
    assert float(values['latency p50 (ms)']) == pytest.approx(49.5, abs=1)
    assert float(values['latency p95 (ms)']) == pytest.approx(94.5, abs=1)
    assert float(values['executed layers (mean)']) == pytest.approx(3, abs=0.1)
    assert values['frames processed'] == values['frames dropped'] == '100'
    clock.now += WINDOW_S
    _, values = status(health)
    assert values['frames per second'] == '0.00' and values['latency p50 (ms)'] == 'unknown'


def test_memory_is_bounded(health):
    for _ in range(3 * WINDOW_FRAMES):
        health.frame_done(1.0, 9)
    assert len(health._frames) == WINDOW_FRAMES
    assert status(health)[1]['frames processed'] == str(3 * WINDOW_FRAMES)


def test_a_repeated_fault_is_logged_once_in_a_while_and_counted(health, clock):
    assert health.fault('step', 'step of 3 bytes') == 'step of 3 bytes'
    assert [health.fault('step', f'step of {n} bytes') for n in range(9)] == [None] * 9
    assert health.fault('data', 'too short') == 'too short', 'another kind has its own line'
    clock.now += RECENT_S
    assert health.fault('step', 'step of 4 bytes') == 'step of 4 bytes (and 9 more of this kind before)'
    assert status(health)[1]['images refused'] == '12'


def test_a_fault_colours_the_status_for_a_while(health, clock):
    health.image_arrived()
    health.fault('step', 'step of 3 bytes')
    got, values = status(health)
    assert got.level == DiagnosticStatus.WARN and got.message == values['last error'] == 'step of 3 bytes'
    health.fault('RuntimeError', 'frame failed', DiagnosticStatus.ERROR)
    assert status(health)[0].level == DiagnosticStatus.ERROR
    clock.now += RECENT_S
    health.image_arrived()
    got, values = status(health)
    assert got.level == DiagnosticStatus.OK and values['last error'] == 'frame failed'


def test_silence_is_a_warning_only_while_active(health, clock):
    clock.now += RECENT_S + 2
    got, _ = status(health)
    assert got.level == DiagnosticStatus.WARN and got.message == 'no image on /camera/image for 7 s'
    assert status(health, 'inactive')[0].level == DiagnosticStatus.OK
    assert status(health, timeout_s=RECENT_S + 3)[0].level == DiagnosticStatus.OK, 'within the timeout'
    health.activated()
    assert status(health)[0].level == DiagnosticStatus.OK


def test_a_refused_configure_is_an_error(health):
    got, values = status(health, 'unconfigured', blocked='cannot configure: no file')
    assert got.level == DiagnosticStatus.ERROR and got.message == values['last error'] == 'cannot configure: no file'


def test_what_is_wrong_right_now_is_a_warning_while_active(health):
    got, _ = status(health, problems=['two publishers', 'no GPU'])
    assert got.level == DiagnosticStatus.WARN and got.message == 'two publishers; no GPU'
    assert status(health, 'inactive', problems=['two publishers'])[0].level == DiagnosticStatus.OK
    assert status(health)[0].level == DiagnosticStatus.OK
