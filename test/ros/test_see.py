"""tar-vis see says what a node or a picture shows, as a document whose fields are those of its page."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
from itertools import count

import numpy as np
import pytest

pytest.importorskip('rclpy')
from building import ROOT
from geometry_msgs.msg import Point
from node_process import PATIENCE_S, nano_weights, wait_until
from test_client import Pair, masks
from test_messages import HEIGHT, WIDTH, instance, lost

from tar_vis_core.commands.main import main
from tar_vis_ros.msg import Instance3D, Instance3DArray
from tar_vis_ros.see.command import Rate, key
from tar_vis_ros.see.sight import SCHEMA, Seen, Sight, sight

SEE = [sys.executable, '-m', 'tar_vis_core.commands.main', 'see']


def box_at(x: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:20, x:x + 8] = True
    return mask


def test_who_is_where_since_when_and_how_sure():
    instances = [instance(box_at(0), 7, 0.9), instance(box_at(28), 8, 0.6), instance(box_at(56), 9, 0.5), lost(4)]
    made = sight(instances, HEIGHT, WIDTH, 3, interval_s=0.5, positions={8: (3.0, 0.0, 4.0)}).as_dict()
    assert json.loads(json.dumps(made)) and made['schema'] == SCHEMA and made['track_epoch'] == 3
    first, second, third, gone = made['objects']
    assert [one['where'] for one in (first, second, third)] == ['left', 'middle', 'right']
    assert (first['id'], first['score'], first['box'], first['age_frames'], first['since_s']) == (
        7, 0.9, (0, 10, 8, 10), 3, 1.5)
    assert first['area_share'] == pytest.approx(80 / (HEIGHT * WIDTH), abs=1e-4)
    assert (second['distance_m'], second['position_m']) == (5.0, (3.0, 0.0, 4.0)) and first['distance_m'] is None
    assert gone['status'] == 'lost' and gone['area_share'] == 0
    assert made['text'] == '3 dog: #7 on the left; #8 in the middle, 5.0 m away; #9 on the right'
    assert sight([lost(4)], HEIGHT, WIDTH, 3).text == 'nothing in sight'


def test_a_change_is_somebody_who_comes_goes_or_changes_side():
    def seen(*places: int, epoch: int = 1, score: float = 0.5) -> object:
        return key(sight([instance(box_at(x), n, score) for n, x in enumerate(places, 1)], HEIGHT, WIDTH, epoch))
    assert seen(0, 28) == seen(2, 30, score=0.9)
    assert len({str(seen(0, 28)), str(seen(0)), str(seen(0, 56)), str(seen(0, 28, epoch=2))}) == 4


def test_the_rate_is_that_of_answers_that_follow_each_other():
    rate = Rate()
    assert rate.add(1, 5, 10.0) is None and rate.add(1, 7, 10.4) == pytest.approx(0.2)
    assert rate.add(2, 0, 99.0) == pytest.approx(0.2), 'a new epoch is no gap'


def test_the_page_names_every_field():
    page = (ROOT / 'docs/reference/see.md').read_text()
    for heading, kind in (('| field | meaning |', Sight), ('| field of an object | meaning |', Seen)):
        rows = re.findall(r'^\| (`.*`) \|', page.partition(heading)[2].partition('\n\n')[0], re.MULTILINE)
        assert {name for row in rows for name in re.findall(r'`(\w+)`', row)} == {
            field.name for field in dataclasses.fields(kind)}
    shown = json.loads(re.search(r'```json\n(.*?)```', page, re.DOTALL)[1])
    assert set(shown) == {field.name for field in dataclasses.fields(Sight)}
    assert set(shown['objects'][0]) == {field.name for field in dataclasses.fields(Seen)}


def test_the_skill_is_in_the_format_and_names_what_there_is():
    skill = (ROOT / 'docs/skills/tar-vis/SKILL.md').read_text()
    head = re.match(r'---\nname: ([a-z-]{1,64})\ndescription: (.{1,1024})\n---\n', skill)
    assert head and head[1] == 'tar-vis'
    names = {field.name for kind in (Sight, Seen) for field in dataclasses.fields(kind)}
    values = {'left', 'lost', 'null'}
    assert set(re.findall(r'`([a-z_]+)`', skill)) <= names | values | {'error'}
    for command in re.findall(r'`tar-vis ([^`]*)`', skill):
        words = command.split()
        assert words[0] in ('see', 'doctor')
        help_text = subprocess.run([sys.executable, '-m', 'tar_vis_core.commands.main', words[0], '--help'],
                                   capture_output=True, text=True).stdout
        assert all(word in help_text for word in words if word.startswith('--'))


def test_a_picture_is_seen_without_ros(tmp_path, capsys):
    if nano_weights(tmp_path):
        pytest.skip('an untrained model sees nobody')
    code = "import sys; sys.modules['rclpy'] = None; from tar_vis_core.commands.main import main; " \
           "sys.exit(main(['see', 'photographs', '--json']))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=PATIENCE_S)
    line, = done.stdout.splitlines()
    assert done.returncode == 0 and [one['class_name'] for one in json.loads(line)['objects']] == ['person']
    assert main(['see', str(tmp_path / 'nothing.jpg'), '--json']) == 1
    assert 'nothing.jpg' in json.loads(capsys.readouterr().out)['error']


def test_a_silent_node_is_an_error_not_an_empty_room():
    done = subprocess.run([*SEE, '--json', '--namespace', 'nobody', '--timeout', '1'], capture_output=True, text=True,
                          timeout=PATIENCE_S)
    assert done.returncode == 1 and not done.stderr
    assert 'no answer on /nobody/instances for 1 s' in json.loads(done.stdout)['error']


def test_a_node_is_watched(tmp_path):
    """One watcher tells changes, the other each answer."""
    pair, watchers = Pair(), {}
    for name, more in (('changes', []), ('every', ['--every'])):
        with (tmp_path / name).open('w') as file:
            watchers[name] = subprocess.Popen(
                [*SEE, '--json', '--watch', '--namespace', 'tar_vis/front', '--timeout', '100', *more],
                stdout=file, stderr=subprocess.STDOUT)
    numbers = count()

    def send(*classes: str) -> None:
        message = masks(*classes)
        message.header.stamp, message.frame_index, message.track_epoch = (
            pair.node.get_clock().now().to_msg(), next(numbers), 5)
        pair.places.publish(Instance3DArray(header=message.header, track_epoch=5, instances=[
            Instance3D(track_id=1, class_name='person', position=Point(x=0.0, y=0.0, z=2.5))]))
        pair.masks.publish(message)

    def lines(name: str) -> list[dict]:
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    def heard(seconds: int, classes: list[str]) -> bool:
        """Whether both watchers told of these classes, the second one with the distance."""
        return len(lines('changes')) >= seconds and any(
            [one['class_name'] for one in line['objects']] == classes
            and (not classes or line['objects'][0]['distance_m'] == 2.5) for line in lines('every'))
    try:
        for number, classes in enumerate((['person'], ['person', 'dog'], []), 1):
            wait_until(lambda n=number, c=classes: heard(n, c), f'{classes}', turn=lambda c=classes: (
                send(*c), pair.spin_a_little()))
        person, both, nobody = lines('changes')
        assert person['text'].startswith('1 person: #1 on the left') and person['frame_id'] == 'camera_optical'
        assert [one['class_name'] for one in both['objects']] == ['person', 'dog']
        assert nobody['objects'] == [] and 0 <= nobody['age_s'] < PATIENCE_S
        assert lines('every')[-1]['text'] == 'nothing in sight' and len(lines('every')) > 3
        assert lines('every')[1]['objects'][0]['since_s'] is not None
    finally:
        for watcher in watchers.values():
            watcher.send_signal(signal.SIGINT)
        codes = [watcher.wait(PATIENCE_S) for watcher in watchers.values()]
        pair.close()
    assert codes == [0, 0]
