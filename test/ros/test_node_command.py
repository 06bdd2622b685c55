"""The command tar-vis-node: its help, its start with right and wrong arguments, and its end by a signal."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('tar_vis_core.segmenter')
from building import ROOT
from node_process import PATIENCE_S, Client, NodeProcess, nano_weights, picture, wait_until

from tar_vis_ros.conversions.images import ENCODINGS
from tar_vis_ros.node.settings import TABLE
from tar_vis_ros.node.usage import description


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-m', 'tar_vis_ros.node', *arguments], env=dict(os.environ), text=True,
                          capture_output=True, timeout=PATIENCE_S, check=False)


def test_help_tells_topics_services_and_parameters():
    done = run('--help')
    assert done.returncode == 0 and not done.stderr
    for word in (*TABLE.options, *ENCODINGS, 'image_topics', '~/front/instances', 'image/compressed'):
        assert word in done.stdout
    topics = dict(re.findall(r'^  (\S+) +(\w+/\w+)\b', done.stdout, re.MULTILINE))
    page = re.findall(r'^\| `(\S+)` \| `(\w+/\w+)` \|', (ROOT / 'docs/nodes/tar_vis.md').read_text(), re.MULTILINE)
    assert {name: kind for name, kind in page if 'CAMERA' not in name}.items() <= topics.items(), 'as on the page'


def test_help_tells_the_topics_that_the_node_has(tmp_path):
    told = dict(re.findall(r'^  (\S+) +(\w+/\w+)\b', description(), re.MULTILINE))
    process = NodeProcess(tmp_path, 'told_node', weights=nano_weights(tmp_path) or "''", input_short_side=64, threads=1)
    client = Client(process)
    try:
        assert client.transition('configure'), process.output
        has = {name.replace('/told_node/', '~/'): kind.replace('/msg', '') for name, (kind,) in
               client.node.get_publisher_names_and_types_by_node('told_node', '/')}
        told = {name: kind for name, kind in told.items() if name.startswith(('~/', '/')) and 'Trigger' not in kind
                and (name in has or not kind.startswith('vision_msgs/'))}
        assert told == {name: kind for name, kind in has.items()
                        if name not in ('/rosout', '/parameter_events', '~/transition_event')}
    finally:
        client.close()
        process.end()


def test_unknown_arguments_end_it_with_usage():
    done = run('--bogus')
    assert done.returncode == 2 and '--bogus' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('text', ['/**:\n  ros__parameters:\n    routing: [', None, 'score_threshold: 0.3'])
def test_a_parameter_file_that_is_none_ends_it_with_one_line(tmp_path, text):
    path = tmp_path / 'parameters.yaml'
    if text is not None:
        path.write_text(text)
    done = run('--ros-args', '--params-file', str(path))
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith('tar-vis-node: ')]
    assert len(lines) == 1 and str(path) in lines[0]


MISTAKES = """/**:
  ros__parameters:
    score_threshold: .nan
    max_instances: many
    routing: adaptve
    reset_gap_s: -1
    fixed_layers: 2.0
    skip_bias: 1
    class_filter: []
    score_treshold: 0.3
"""


def test_wrong_values_in_yaml_are_told_one_by_one_and_can_be_put_right(tmp_path):
    path = tmp_path / 'mistakes.yaml'
    path.write_text(MISTAKES)
    process = NodeProcess(tmp_path, 'misled_node', '--params-file', str(path), weights=nano_weights(tmp_path) or "''",
                          device='cpu', input_short_side=64, threads=1)
    client = Client(process)
    try:
        assert client.state == 'unconfigured'
        wrong = {'score_threshold': 'nan', 'max_instances': "'many'", 'routing': "'adaptve'", 'reset_gap_s': '-1',
                 'fixed_layers': '2.0'}
        for name, value in wrong.items():
            assert f"parameter '{name}' is {value}" in process.wait_for_line(f"parameter '{name}'")
        assert len(process.lines('[ERROR]')) == len(wrong)
        assert all('expected' in line for line in process.lines('[ERROR]'))
        assert "did you mean 'score_threshold'" in process.lines('[WARN]')[0] and len(process.lines('[WARN]')) == 1
        assert not client.transition('configure')
        refusal = process.lines('cannot configure')
        assert len(refusal) == 1 and all(name in refusal[0] for name in wrong)
        assert client.set(score_threshold=0.5, max_instances=4, routing='full', reset_gap_s=2.0) == ''
        assert not client.transition('configure'), 'one mistake is left'
        assert client.set(fixed_layers=2) == ''
        assert client.transition('configure'), process.output
        assert client.transition('inactive_shutdown')
        assert client.state == 'finalized'
        assert 'Traceback' not in process.output
    finally:
        client.close()
        assert process.end() == 0


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_active_node_quietly(tmp_path, number):
    process = NodeProcess(tmp_path, f'node_until_{number.name.lower()}', weights=nano_weights(tmp_path) or "''",
                          input_short_side=64, threads=1, autostart='true')
    client = Client(process)
    try:
        client.ask(client.image(picture()))
        for _ in range(5):
            client.send(client.image(picture()))    # it ends at work
        assert process.end(number) == 0
    finally:
        client.close()
        process.end()
    assert 'Traceback' not in process.output
    assert not process.lines('[ERROR]') and not process.lines('rror')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_is_loaded_ends_it_quietly(tmp_path, number):
    process = NodeProcess(tmp_path, f'{number.name.lower()}_node', weights=nano_weights(tmp_path) or "''",
                          autostart='true')
    wait_until(lambda: 'libtorch' in process.mapped_files, 'torch in the node', process)
    assert process.end(number) == 0
    assert not process.output, 'it does not wait for the model'


@pytest.mark.parametrize('module', ['tar_vis_ros.depth.node', 'tar_vis_ros.bags.command', 'tar_vis_ros.node'])
def test_ctrl_c_while_a_program_is_loading_is_quiet(module):
    process = subprocess.Popen([sys.executable, '-m', module, '--help'], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    maps = Path(f'/proc/{process.pid}/maps')
    while process.poll() is None and not re.search(r'numpy|rclpy', maps.read_text()):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert error == '' and process.returncode in (130, 0), (out, error)


def test_two_signals_at_once_end_a_program_quietly(ros_env):
    """A program that loads for long looks at signals late, and launch has sent the next one meanwhile."""
    code = """
import os, signal, sys
from tar_vis_ros.process.run import SIGNALS, run_node
def parse(arguments):
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    print('not reached')
sys.exit(run_node('program', parse, None, ['program']))
"""
    done = subprocess.run([sys.executable, '-c', code], env=ros_env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.parametrize('where', ['a callback whose caller makes another error of it', 'a destructor'])
def test_an_interrupt_that_is_not_handed_on_ends_a_node_quietly(ros_env, where):
    """ROS's C++ hands on an error of its own, and what is raised in a destructor is printed and forgotten."""
    code = f"""
import os, signal, sys
import rclpy.node
from tar_vis_ros.process.run import run_node
class InDestructor:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
class Node(rclpy.node.Node):
    def on_timer(self):
        if {where == 'a destructor'}:
            InDestructor()
            return
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError('Unable to convert call argument') from None
    def finish(self):
        print('finished')
def make(_):
    node = Node('interrupted')
    node.create_timer(0.01, node.on_timer)
    return node
sys.unraisablehook = lambda _: None
sys.exit(run_node('program', lambda arguments: None, make, ['program']))
"""
    done = subprocess.run([sys.executable, '-c', code], env=ros_env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, 'finished\n', '')


def test_an_interrupt_that_went_through_exec_is_no_failure():
    code = ('import sys; from tar_vis_ros.process.run import run_node; '
            'sys.exit(run_node("program", lambda arguments: exec("raise KeyboardInterrupt"), None, ["program"]))')
    assert subprocess.run([sys.executable, '-c', code], env=dict(os.environ), check=False).returncode == 0


def test_autostart_that_fails_leaves_the_node_up(tmp_path):
    process = NodeProcess(tmp_path, 'unlucky_node', weights='/no/such/file', autostart='true', input_short_side=64,
                          threads=1)
    client = Client(process)
    try:
        process.wait_for_line('cannot configure')
        assert client.state == 'unconfigured'
        assert client.set(weights=nano_weights(tmp_path)) == ''
        assert client.transition('configure')
    finally:
        client.close()
        assert process.end() == 0


def test_security_that_the_wheels_do_not_have_is_one_line(tmp_path):
    (tmp_path / 'enclaves').mkdir()
    env = dict(os.environ, ROS_SECURITY_ENABLE='true', ROS_SECURITY_STRATEGY='Enforce',
               ROS_SECURITY_KEYSTORE=str(tmp_path))
    done = subprocess.run([sys.executable, '-m', 'tar_vis_ros.depth.node'], env=env, text=True, capture_output=True,
                          timeout=PATIENCE_S, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith('[INFO]')]
    if 'no security' not in done.stderr:
        pytest.skip(f'the DDS of this ROS has security, or says something else: {done.stderr[-300:]}')
    assert done.returncode == 2 and len(said) == 1 and said[0].startswith('tar-vis-depth: ROS_SECURITY_ENABLE is set')
