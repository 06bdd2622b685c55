"""Bags: what is written is read by anybody, bags of files hold their pictures and truth, bad ones are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
from building import ROOT
from PIL import Image as Image_
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String
from test_messages import HEADER, frame, instance, random_masks
from tiny_model import picture
from video_files import write_videos

from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.media.frames import TimedImage
from tar_vis_ros.bags import command as bag_command
from tar_vis_ros.bags.command import main
from tar_vis_ros.bags.maker import BagOptions, truth_path, write_images
from tar_vis_ros.bags.reader import BagError, ImageBag, header_stamp_ns, read_topics
from tar_vis_ros.bags.writer import BagWriter, known_types, message_definition, type_name
from tar_vis_ros.conversions.images import to_rgb
from tar_vis_ros.conversions.messages import decode_instances, encode_instances
from tar_vis_ros.msg import InstanceMask, InstanceMaskArray, SkipDiagnostics

STORAGES = ('mcap', 'sqlite3')
SUFFIX = {'mcap': '.mcap', 'sqlite3': '.db3'}


def pictures(bag: ImageBag) -> list[np.ndarray]:
    kind = CompressedImage if bag.compressed else Image
    return [to_rgb(deserialize_message(image.cdr, kind)) for image in bag.images()]


@pytest.mark.parametrize('storage', STORAGES)
@pytest.mark.parametrize('compressed', [False, True])
def test_pictures_come_back_with_their_stamps(tmp_path, storage, compressed):
    made = [picture(seed) for seed in range(4)]
    options = BagOptions(storage=storage, compressed=compressed, fps=3.0, start_s=7.5)
    assert write_images(tmp_path / 'bag', made, options) == 4
    with ImageBag(tmp_path / 'bag') as bag:
        assert (bag.name, bag.count, bag.compressed, bag.storage) == ('bag', 4, compressed, storage)
        assert bag.topic == '/camera/image_raw' + '/compressed' * compressed
        stamps = [(image.index, image.stamp_ns, image.recorded_ns) for image in bag.images()]
        assert stamps == [(i, 7_500_000_000 + ns, 7_500_000_000 + ns)
                          for i, ns in enumerate((0, 333_333_333, 666_666_667, 1_000_000_000))]
        difference = np.abs(np.subtract(pictures(bag), made, dtype=np.int16))
    assert difference.max() == 0 if not compressed else difference.mean() < 12
    file, = (tmp_path / 'bag').glob(f'*{SUFFIX[storage]}')      # without its metadata, too
    with ImageBag(file) as bag:
        assert (bag.count, bag.storage, len(pictures(bag))) == (4, storage, 4)


@pytest.mark.parametrize('storage', STORAGES)
def test_our_messages_are_read_by_who_does_not_know_them(tmp_path, storage):
    sent = encode_instances(frame([instance(mask) for mask in random_masks(3)]), HEADER)
    with BagWriter(tmp_path / 'bag', storage, {'/tar_vis/instances': InstanceMaskArray}) as bag:
        bag.write('/tar_vis/instances', 5, serialize_message(sent))
    with AnyReader([tmp_path / 'bag']) as reader:               # it has the definitions from the bag
        (connection, recorded_ns, cdr), = reader.messages()
        got = reader.deserialize(cdr, connection.msgtype)
    assert recorded_ns == 5
    assert [i.track_id for i in got.instances] == [i.track_id for i in sent.instances]
    assert all(np.array_equal(g.runs, s.runs) for g, s in zip(got.instances, sent.instances, strict=True))
    (topic, cdr), = read_topics(tmp_path / 'bag')
    assert topic == '/tar_vis/instances'
    assert len(decode_instances(deserialize_message(cdr, InstanceMaskArray))) == 3


def test_definitions_are_those_of_the_msg_files():
    from_files, ours = get_typestore(Stores.ROS2_JAZZY), known_types()
    for message in (InstanceMask, InstanceMaskArray, SkipDiagnostics):
        text = (ROOT / 'msg' / f'{message.__name__}.msg').read_text()
        from_files.register(get_types_from_msg(text, type_name(message)))
        assert ours.hash_rihs01(type_name(message)) == from_files.hash_rihs01(type_name(message))
    assert message_definition(Header.get_fields_and_field_types()) == 'builtin_interfaces/Time stamp\nstring frame_id'


def test_a_big_endian_stamp_is_read():
    cdr = bytes([0, 0, 0, 0]) + (12).to_bytes(4, 'big') + (345).to_bytes(4, 'big')
    assert header_stamp_ns(cdr) == 12_000_000_345
    assert header_stamp_ns(serialize_message(HEADER)) == 12_345_678_901


def test_what_was_written_before_an_error_can_be_read(tmp_path):
    def broken():
        yield picture(1)
        raise RuntimeError('no more')

    with pytest.raises(RuntimeError):
        write_images(tmp_path / 'bag', broken(), BagOptions())
    with ImageBag(tmp_path / 'bag') as bag:
        assert len(pictures(bag)) == 1


# Bags from files

def test_a_folder_of_pictures_becomes_a_bag(tmp_path, capsys):
    (tmp_path / 'pictures').mkdir()
    for seed in range(5):
        cv2.imwrite(str(tmp_path / 'pictures' / f'{seed}.png'), cv2.cvtColor(picture(seed), cv2.COLOR_RGB2BGR))
    out = tmp_path / 'bag'
    assert main(['from-video', str(tmp_path / 'pictures'), str(out), '--frames', '3', '--storage', 'sqlite3', '--topic',
                 'front/image', '--frame-id', 'front_optical', '--fps', '4', '--start-s', '100']) == 0
    assert '3 images on /front/image, 4 per second' in capsys.readouterr().out
    with ImageBag(out) as bag:
        assert np.array_equal(pictures(bag), [picture(seed) for seed in range(3)])
        headers = [deserialize_message(image.cdr, Image).header for image in bag.images()]
    assert {header.frame_id for header in headers} == {'front_optical'}
    assert [header.stamp.sec + header.stamp.nanosec * 1e-9 for header in headers] == [100, 100.25, 100.5]
    assert main(['from-video', str(tmp_path / 'pictures'), str(out)]) == 2
    assert 'exists already' in capsys.readouterr().err


def test_frames_are_stamped_with_their_own_times(tmp_path):
    times = [0, 1 / 30, .5, 2.75, 2.8]
    frames = [TimedImage(picture(n), n, time_s, time_s) for n, time_s in enumerate(times)]
    assert write_images(tmp_path / 'bag', frames, BagOptions(fps=10, start_s=7)) == 5
    with ImageBag(tmp_path / 'bag') as bag:
        stamps = [image.stamp_ns for image in bag.images()]
    assert stamps == [7_000_000_000 + round(1e9 * time_s) for time_s in times]


@pytest.mark.parametrize('compressed', [False, True])
def test_frames_labelled_upright_are_turned_in_the_bag(tmp_path, compressed):
    source = write_videos(tmp_path, videos=1, frames=2)
    path = load_ytvis(source)[0].paths[1]
    stored = Image_.open(path).rotate(90, expand=True)
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(path, exif=exif, quality=95)
    words = ['from-youtube-vis', str(source), str(tmp_path / 'bags')]
    assert main(words + ['--compressed'] * compressed) == 0
    with ImageBag(tmp_path / 'bags' / '00001') as bag:
        first, turned = pictures(bag)
    assert turned.shape == first.shape
    assert np.abs(turned.astype(int) - load_ytvis(source)[0].frame(1)).mean() < 3


@pytest.mark.parametrize('name', ['../there', '/absolute', 'a/b', '..'])
def test_a_video_whose_name_is_no_folders_name_is_refused(tmp_path, capsys, name):
    source = write_videos(tmp_path, videos=1, frames=2)
    source.write_text(json.dumps({**(content := json.loads(source.read_text())),
                                  'videos': [{**content['videos'][0], 'name': name}]}))
    assert main(['from-youtube-vis', str(source), str(tmp_path / 'bags')]) == 2
    assert 'is no name of a folder' in capsys.readouterr().err


def test_a_large_bag_is_announced_and_one_without_room_is_not_begun(tmp_path, capsys, monkeypatch):
    (tmp_path / 'pictures').mkdir()
    for seed in range(3):
        cv2.imwrite(str(tmp_path / 'pictures' / f'{seed}.png'), picture(seed))
    size = 3 * picture(0).nbytes
    monkeypatch.setattr(bag_command, 'LARGE', size - 1)
    assert main(['from-video', str(tmp_path / 'pictures'), str(tmp_path / 'bag')]) == 0
    assert 'GB: --compressed' in capsys.readouterr().err
    assert main(['from-video', str(tmp_path / 'pictures'), str(tmp_path / 'small'), '--compressed']) == 0
    assert not capsys.readouterr().err
    monkeypatch.setattr(bag_command.shutil, 'disk_usage', lambda _: SimpleNamespace(free=size - 1))
    assert main(['from-video', str(tmp_path / 'pictures'), str(tmp_path / 'full')]) == 2
    assert 'would take' in capsys.readouterr().err and not (tmp_path / 'full').exists()


@pytest.mark.parametrize('compressed', [False, True])
def test_labelled_videos_become_bags_with_truth_by_stamp(tmp_path, compressed):
    source = write_videos(tmp_path)
    before = load_ytvis(source)
    words = ['from-youtube-vis', str(source), str(tmp_path / 'bags'), '--videos', '00003', '00001', '--fps', '15']
    assert main(words + ['--compressed'] * compressed) == 0
    assert sorted(path.name for path in (tmp_path / 'bags').iterdir()) == [
        '00001', '00001.truth.json', '00003', '00003.truth.json']
    for record in (before[0], before[2]):
        path = tmp_path / 'bags' / record.name
        truth, = load_ytvis(truth_path(path), pictures=False)
        with ImageBag(path) as bag:
            assert np.array_equal(pictures(bag), list(record.frames()))     # JPEG files go in as they are
            assert list(truth.stamps_ns) == [image.stamp_ns for image in bag.images()]
        assert (truth.id, truth.name, truth.height) == (record.id, record.name, record.height)
        assert truth.tracks == record.tracks
    assert truth_path(tmp_path / 'street.v2') == tmp_path / 'street.v2.truth.json'
    assert truth_path(tmp_path / 'street.mcap') == tmp_path / 'street.truth.json'


@pytest.mark.parametrize(('words', 'said'), [
    (['from-video', 'nowhere.mp4', 'out'], 'no such file'),
    (['from-video', '{empty}', 'out'], 'no images in'),
    (['from-youtube-vis', 'nowhere.json', 'out'], 'no such file'),
    (['from-youtube-vis', '{json}', 'out', '--videos', '00009'], 'no video 00009 in it; it has 00001, 00002, 00003'),
])
def test_bad_sources_end_in_one_line(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    places = {'empty': tmp_path / 'empty', 'json': write_videos(tmp_path)}
    assert main([word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith('tar-vis-bag: ') and error.count('\n') == 1 and said in error


@pytest.mark.parametrize('words', [['from-video', 'a', 'b', '--quality', 'x'], ['from-video', 'a'], ['record']])
def test_a_wrong_command_line_is_refused(words):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2


# Bad bags

@pytest.fixture(scope='module')
def good(tmp_path_factory) -> Path:
    """A folder with a good bag of each storage."""
    folder = tmp_path_factory.mktemp('good')
    for storage in STORAGES:
        write_images(folder / storage, [picture(seed, 192, 288) for seed in range(12)], BagOptions(storage=storage))
    return folder


def spoiled(good: Path, folder: Path, how: str) -> Path:
    """A bag with something wrong."""
    path = folder / how
    if how in ('cut.mcap', 'cut.db3'):
        source, = good.rglob(f'*{path.suffix}')
        path.write_bytes(source.read_bytes()[:source.stat().st_size * 6 // 10])
    elif how in ('other.mcap', 'other.db3'):
        source, = good.rglob('*.db3' if path.suffix == '.mcap' else '*.mcap')
        shutil.copy(source, path)
    elif how == 'other_storage':
        shutil.copytree(good / 'sqlite3', path)
        metadata = path / 'metadata.yaml'
        metadata.write_text(metadata.read_text().replace('sqlite3\n', 'mcap\n'))
    elif how in ('empty.mcap', 'empty.db3', 'a.bag', 'a.txt'):
        path.write_bytes(b'')
    elif how == 'no_metadata':
        path.mkdir()
        shutil.copy(good / 'mcap/mcap.mcap', path)
    elif how == 'no_file':
        shutil.copytree(good / 'mcap', path)
        (path / 'mcap.mcap').unlink()
    elif how == 'nonsense':
        path.mkdir()
        (path / 'metadata.yaml').write_text('{')
    elif how == 'empty_folder':
        path.mkdir()
    elif how == 'no_message':
        with BagWriter(path, 'mcap', {'/image': Image}):
            pass
    elif how == 'no_images':
        with BagWriter(path, 'mcap', {'/chatter': String}) as bag:
            bag.write('/chatter', 1, serialize_message(String(data='hello')))
    elif how == 'unknown_type':
        types = get_typestore(Stores.ROS2_JAZZY)
        types.register(get_types_from_msg('int32 x', 'unheard_of/msg/Thing'))
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
            bag.write(bag.add_connection('/thing', 'unheard_of/msg/Thing', typestore=types), 1, bytes(8))
            bag.write(bag.add_connection('/image', 'sensor_msgs/msg/Image', typestore=types), 1,
                      serialize_message(Image()))
    elif how == 'two_cameras':
        with BagWriter(path, 'mcap', {'/front': Image, '/rear': Image}) as bag:
            for topic in ('/front', '/rear'):
                bag.write(topic, 1, serialize_message(Image()))
    return path


@pytest.mark.parametrize(('how', 'topic', 'said'), [
    ('empty.mcap', '', 'an empty file'), ('empty.db3', '', 'an empty file'),
    ('a.bag', '', 'rosbags-convert'), ('a.txt', '', 'not a rosbag2 bag'),
    ('no_file', '', r'its files are missing: metadata.yaml names mcap\.mcap'),
    ('nonsense', '', 'metadata.yaml cannot be read, and no data'),
    ('empty_folder', '', 'no metadata.yaml'), ('nowhere', '', 'no such bag'),
    ('no_message', '', 'it is empty: no message on /image'),
    ('no_images', '', r'no topic with images in it; it holds /chatter \(std_msgs/msg/String, 1 messages\)'),
    ('no_images', '/image', 'no topic /image in it; it holds /chatter'),
    ('no_images', 'chatter', 'chatter is of type std_msgs/msg/String; expected sensor_msgs/msg/Image or'),
    ('unknown_type', 'thing', 'thing is of type unheard_of/msg/Thing; expected sensor_msgs/msg/Image or'),
    ('two_cameras', '', r'2 topics with images in it \(/front: 1 images, /rear: 1 images\); choose one with --topic'),
])
def test_a_bad_bag_is_named_in_one_line(good, tmp_path, how, topic, said):
    path = spoiled(good, tmp_path, how)
    with pytest.raises(BagError, match=said) as error:
        ImageBag(path, topic).close()
    assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('how', ['other.mcap', 'other.db3', 'other_storage', 'no_metadata'])
def test_what_is_in_a_file_counts(good, tmp_path, how):
    """Not what its name or the metadata says."""
    with ImageBag(spoiled(good, tmp_path, how)) as bag:
        assert len(pictures(bag)) == bag.count == 12


def test_one_of_two_cameras_can_be_chosen(good, tmp_path):
    with ImageBag(spoiled(good, tmp_path, 'two_cameras'), 'rear') as bag:
        assert (bag.topic, bag.count) == ('/rear', 1)


def test_a_type_that_nobody_knows_is_passed_over(good, tmp_path):
    with ImageBag(spoiled(good, tmp_path, 'unknown_type')) as bag:
        assert (bag.topic, len(list(bag.images()))) == ('/image', 1)


def test_a_bag_that_is_damaged_further_on_gives_what_comes_before(good, tmp_path):
    path = damaged(good / 'mcap/mcap.mcap', tmp_path / 'damaged.mcap')
    got = []
    with ImageBag(path) as bag, pytest.raises(BagError, match='cannot be read'):
        for image in bag.images():
            got.append(image.index)
    assert got and got == list(range(len(got))) and len(got) < 12


def damaged(source: Path, target: Path) -> Path:
    """A copy of a file with nonsense in its later half, its end intact."""
    data = bytearray(source.read_bytes())
    middle = len(data) * 6 // 10
    data[middle:middle + 2**18] = b'\xff' * 2**18
    target.write_bytes(data)
    return target


def test_truth_with_a_wrong_number_of_stamps_is_refused(tmp_path):
    source = write_videos(tmp_path)
    content = json.loads(source.read_text())
    content['videos'][1]['stamps'] = [1, 2, 3, 4, 5, 5]
    source.write_text(json.dumps(content))
    with pytest.raises(Exception, match='video 2: 5 different stamps for 6 frames'):
        load_ytvis(source)


@pytest.mark.parametrize('topic', ['', '/', 'a b', '/a//b', '1a', '/ü', 'a-b/c'])
def test_a_topic_that_ros_does_not_take_is_refused_at_once(tmp_path, capsys, topic):
    assert main(['from-video', 'photographs', str(tmp_path / 'bag'), '--topic', topic]) == 2
    assert f'--topic is {topic!r}: ' in capsys.readouterr().err and not (tmp_path / 'bag').exists()


def test_a_rate_of_nothing_is_refused(tmp_path, capsys):
    assert main(['from-video', 'photographs', str(tmp_path / 'bag'), '--fps', '0']) == 2
    assert '--fps is 0.0, expected a number from 0.001 to 10000' in capsys.readouterr().err


def test_stamps_that_ros_does_not_have_are_refused(tmp_path, capsys):
    assert main(['from-video', 'photographs', str(tmp_path / 'bag'), '--frames', '15', '--start-s', '2147483647']) == 2
    assert 'image 11 would be later than stamps of ROS can be' in capsys.readouterr().err
