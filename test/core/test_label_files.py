"""Annotation files as tools and hands make them: read, left out and counted, or one line that names the entry."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH, edit, rle_of, write_coco
from label_files import FULL, load, refused, write_ytvis

from tar_vis_core.commands.main import main
from tar_vis_core.data.coco import load_coco
from tar_vis_core.data.inspection import describe, open_set
from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.errors import DataError

EMPTY = rle_of(np.zeros((HEIGHT, WIDTH), bool))


# degenerate labels

@pytest.mark.parametrize('empty', [
    [], [[]], [[5, 5]], [[5, 5, 9, 9]], [[], [7, 7, 8, 8]], [[3, 3, 3, 3, 3, 3]], [[-50, -50, -40, -50, -40, -40]],
    [[900, 5, 950, 5, 950, 60]], EMPTY, {'size': [HEIGHT, WIDTH], 'counts': [HEIGHT * WIDTH]}])
def test_an_empty_mask_is_left_out_and_told_with_its_id(tmp_path, caplog, empty):
    extra = [{'id': 700 + n, 'image_id': 2, 'category_id': 1, 'segmentation': empty} for n in range(2)]
    records = load_coco(write_coco(tmp_path, extra=tuple(extra)))
    assert [[a.id for a in record.annotations] for record in records] == [[1, 2], [3, 4], [5, 6]]
    assert [record.message for record in caplog.records] == [
        f'{tmp_path / "instances.json"}: 2 of 8 annotations left out: 2 with an empty mask (ids 700, 701)']


def test_an_empty_part_of_a_mask_costs_nothing_else(tmp_path, caplog):
    parts = [[10, 10, 40, 10, 40, 40], [5, 5], [], [60, 60, 60, 60]]
    extra = {'id': 700, 'image_id': 1, 'category_id': 1, 'segmentation': parts}
    kept = load_coco(write_coco(tmp_path, extra=(extra,)))[0].annotations[-1]
    assert kept.id == 700 and kept.area == pytest.approx(450, rel=.1) and not caplog.records


def test_an_empty_mask_in_a_frame_means_not_seen(tmp_path, caplog):
    path = edit(write_ytvis(tmp_path), lambda c: c['annotations'][1].update(segmentations=[EMPTY, FULL]))
    track = load_ytvis(path)[1].tracks[0]
    assert track.mask(0) is None and track.mask(1).any()
    assert '1 empty masks are taken for "not seen" (annotations 2)' in caplog.text
    edit(path, lambda c: c['annotations'][1].update(segmentations=[[], None]))
    assert load_ytvis(path)[1].tracks[0].rles == [None, None]


def test_a_command_tells_what_is_left_out(tmp_path):
    extra = {'id': 700, 'image_id': 2, 'category_id': 1, 'segmentation': []}
    path = write_coco(tmp_path, extra=(extra,))
    done = subprocess.run([sys.executable, '-m', 'tar_vis_core.commands.main', 'data', 'check', str(path)],
                          capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert '1 of 7 annotations left out: 1 with an empty mask (id 700)' in done.stderr


# fields that are missing, null or of another type

NUMBERS_THAT_ARE_NONE = [None, 'wide', '', [], {}, -3, 0, 2.5, float('nan'), float('inf'), 1e12, 10**400,
                         True]


@pytest.mark.parametrize('write', [write_coco, write_ytvis])
@pytest.mark.parametrize('value', [*NUMBERS_THAT_ARE_NONE, 'missing'])
@pytest.mark.parametrize('field', ['height', 'width'])
def test_a_size_that_is_none_names_entry_and_field(tmp_path, write, value, field):
    noun = 'images' if write is write_coco else 'videos'

    def change(content: dict) -> None:
        content[noun][1][field] = value
        if value == 'missing':
            del content[noun][1][field]
    text = refused(edit(write(tmp_path), change), f'{noun[:-1]} 2')
    assert field in text or 'size' in text


@pytest.mark.parametrize(('noun', 'field'), [
    ('images', 'id'), ('images', 'file_name'), ('annotations', 'image_id'), ('annotations', 'category_id'),
    ('categories', 'id'), ('categories', 'name')])
@pytest.mark.parametrize('value', ['missing', None, [], {'a': 1}, [[]]])
def test_a_field_of_coco_that_is_none_names_entry_and_field(tmp_path, noun, field, value):
    def change(content: dict) -> None:
        content[noun][1][field] = value
        if value == 'missing':
            del content[noun][1][field]
    entry = {'images': 'image', 'annotations': 'annotation', 'categories': 'category'}[noun]
    # named by its id, where it is not the id that is wrong
    refused(edit(write_coco(tmp_path), change), entry, f"'{field}'")


@pytest.mark.parametrize(('noun', 'field'), [
    ('videos', 'id'), ('videos', 'file_names'), ('annotations', 'id'), ('annotations', 'video_id'),
    ('annotations', 'category_id'), ('annotations', 'segmentations'), ('categories', 'id'), ('categories', 'name')])
@pytest.mark.parametrize('value', ['missing', None, {}, [None], [[1]]])
def test_a_field_of_youtube_vis_that_is_none_names_entry_and_field(tmp_path, noun, field, value):
    def change(content: dict) -> None:
        content[noun][0][field] = value
        if value == 'missing':
            del content[noun][0][field]
    text = refused(edit(write_ytvis(tmp_path), change))
    assert field in text or 'segmentation' in text or 'has 1 frames' in text


@pytest.mark.parametrize('write', [write_coco, write_ytvis])
@pytest.mark.parametrize('key', ['categories', 'annotations', 'images', 'videos'])
@pytest.mark.parametrize('value', ['missing', {}, 'text', 5, [None], [5], [[]], ['a']])
def test_lists_that_are_none_are_one_line(tmp_path, write, key, value):
    path = write(tmp_path)
    content = json.loads(path.read_text())
    if key not in content or (key == 'annotations' and value in ({}, [])):
        return
    content[key] = value
    if value == 'missing':
        del content[key]
    path.write_text(json.dumps(content))
    refused(path, f"'{key}'" if not isinstance(value, list) else 'number 1')


@pytest.mark.parametrize('content', [[], 5, 'text', None, True, {}, {'videos': None}, {'images': []}])
def test_content_that_is_no_label_file_is_one_line(tmp_path, content):
    for name in ('instances.json', 'videos.json'):
        (tmp_path / name).write_text(json.dumps(content))
        refused(tmp_path / name)
        with pytest.raises(DataError):
            open_set(tmp_path / name)


def test_stills_need_no_annotation_ids_and_null_flags_are_the_usual(tmp_path):
    def change(content: dict) -> None:
        for entry in content['annotations']:
            entry.pop('id')
            entry.update(iscrowd=None, pseudo=None)
        content['images'][0]['annotated'] = None
    records = load_coco(edit(write_coco(tmp_path), change))
    assert [len(record.annotations) for record in records] == [2, 2, 2] and records[0].exhaustive
    refused(edit(tmp_path / 'instances.json', lambda c: c['annotations'][2].update(category_id=None)),
            'annotation without id, number 3 of its list', "'category_id'")


def test_a_test_set_without_annotations_is_read(tmp_path):
    path = edit(write_ytvis(tmp_path), lambda c: c.update(annotations=None))
    assert [record.tracks for record in load_ytvis(path)] == [[], []]


@pytest.mark.parametrize('change', [
    lambda c: c['annotations'][1].pop('segmentation'), lambda c: c['annotations'][1].update(segmentation=None)])
def test_boxes_without_masks_are_said_to_be_that(tmp_path, change):
    refused(edit(write_coco(tmp_path), change), 'annotation 2 has no segmentation (mask)', 'boxes')


def test_cocovid_is_told_from_youtube_vis(tmp_path, capsys):
    path = write_coco(tmp_path)

    def change(content: dict) -> None:
        content['videos'] = [{'id': 1, 'name': 'street'}]
        for image in content['images']:
            image['video_id'] = 1
    edit(path, change)
    for arguments in (['data', 'check', str(path)], ['eval', '--data', str(path)]):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.count('\n') == 1 and "video 1: field 'file_names' is missing" in said and 'CocoVID' in said


def test_a_hidden_companion_of_the_file_is_left_alone(tmp_path):
    path = write_coco(tmp_path)
    (tmp_path / f'._{path.name}').write_bytes(b'\0\5\x16\7')
    assert open_set(tmp_path).path == path


# ids

@pytest.mark.parametrize(('form', 'write'), [(str, write_coco), (float, write_coco), (str, write_ytvis)])
@pytest.mark.parametrize('place', ['listed', 'named'])
def test_ids_as_text_are_the_numbers_that_they_say(tmp_path, form, write, place):
    noun = 'image' if write is write_coco else 'video'

    def change(content: dict) -> None:
        for entry in content[f'{noun}s'] if place == 'listed' else ():
            entry['id'] = form(entry['id'])
        for entry in content['annotations'] if place == 'named' else ():
            entry[f'{noun}_id'], entry['category_id'] = form(entry[f'{noun}_id']), form(entry['category_id'])
    records = load(edit(write(tmp_path), change))
    assert [record.id for record in records] == list(range(1, len(records) + 1))


def test_ids_may_be_words(tmp_path):
    def change(content: dict) -> None:
        content['images'][0]['id'] = 'a-1'
        for annotation in content['annotations'][:2]:
            annotation['image_id'] = 'a-1'
    assert load_coco(edit(write_coco(tmp_path), change))[0].id == 'a-1'
    refused(edit(tmp_path / 'instances.json', lambda c: c['annotations'][0].update(image_id='a-2')), "'a-2'", 'image')


@pytest.mark.parametrize(('write', 'noun', 'told'), [
    (write_coco, 'image', ('1.png', '3.png')), (write_coco, 'category', ("'person'", "'tv'")),
    (write_ytvis, 'video', ()), (write_ytvis, 'category', ())])
@pytest.mark.parametrize('form', [int, str])
def test_an_id_that_comes_twice_is_refused(tmp_path, write, noun, told, form):
    def change(content: dict) -> None:
        listed = content['categories' if noun == 'category' else f'{noun}s']
        if len(listed) == 1:
            listed.append(dict(listed[0]))
        listed[-1]['id'] = form(listed[0]['id'])
    refused(edit(write(tmp_path), change), f'{noun} id 1 occurs twice', *told)


@pytest.mark.parametrize('write', [write_coco, write_ytvis])
def test_categories_of_one_name_are_one_class(tmp_path, write):
    """As tools list a class and its supercategory."""
    path = write(tmp_path)
    marks = len(json.loads(path.read_text())['annotations'])

    def change(content: dict) -> None:
        content['categories'].append({'id': 99, 'name': 'person'})
        for mark in content['annotations']:
            mark['category_id'] = 1
        content['annotations'][0]['category_id'] = 99
    data = open_set(edit(path, change))
    assert data.classes.count('person') == 1
    row, = [line.split() for line in describe(data) if line.startswith('person ')]
    assert int(row[1]) == marks


@pytest.mark.parametrize(('name', 'read'), [
    ('traffic\n light', 'traffic light'), (' cat\t', 'cat'), ('Kätzchen', 'Kätzchen')])
def test_a_category_has_its_name_on_one_line(tmp_path, name, read):
    path = edit(write_coco(tmp_path), lambda c: c['categories'][0].update(name=name))
    assert open_set(path).classes[0] == read
    refused(edit(path, lambda c: c['categories'][0].update(name=f'{name}\x1b[2J')), "'name'", 'printed')


def test_two_objects_of_one_id_in_a_video_are_refused(tmp_path):
    def change(content: dict) -> None:
        content['annotations'][1].update(id=1, video_id=1)
    refused(edit(write_ytvis(tmp_path), change), 'annotation 1 occurs twice in video 1')


# numbers that reach C code

@pytest.mark.parametrize('number', [float('nan'), float('inf'), -float('inf'), 1e12, -1e300, 2**40, 10**400, None, {}])
@pytest.mark.parametrize('write', [write_coco, write_ytvis])
def test_numbers_that_no_polygon_has_end_in_one_line_and_take_no_memory(tmp_path, number, write):
    polygon = [[10, 10, 50, 10, 50, number]]

    def change(content: dict) -> None:
        if write is write_coco:
            content['annotations'][3]['segmentation'] = polygon
        else:
            content['annotations'][1]['segmentations'][0] = polygon
    path = edit(write(tmp_path), change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, 'annotation 4' if write is write_coco else 'annotation 2')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize('counts', [
    [float('nan')], [float('inf')], [HEIGHT * WIDTH + 5, -5], [2**40], ['7'], [None], [1.5] * 4, 'o' * 200_000,
    'é', None, 5, {}, [HEIGHT * WIDTH * 1.0, 0, [1]]])
def test_run_lengths_that_are_none_are_one_line(tmp_path, counts):
    bad = {'id': 70, 'image_id': 1, 'category_id': 1, 'segmentation': {'size': [HEIGHT, WIDTH], 'counts': counts}}
    refused(write_coco(tmp_path, extra=(bad,)), 'annotation 70: bad segmentation')


@pytest.mark.parametrize('size', [[HEIGHT], [WIDTH, HEIGHT], [1 << 40, 1 << 40], None, 'ab', [HEIGHT, None], {}])
def test_run_lengths_of_another_size_are_one_line(tmp_path, size):
    bad = {'id': 70, 'image_id': 1, 'category_id': 1, 'segmentation': {**FULL, 'size': size}}
    refused(write_coco(tmp_path, extra=(bad,)), 'annotation 70: bad segmentation')


# nothing to find

@pytest.mark.parametrize(('arguments', 'words'), [
    ([], 'no person is labelled here'), (['--categories', 'tv', 'dog'], 'no dog is labelled'),
    (['--categories', 'voc'], 'no voc is labelled')])
def test_an_evaluation_with_nothing_to_find_is_one_line_before_anything_runs(tmp_path, capsys, arguments, words):
    path = edit(write_coco(tmp_path), lambda c: [a.update(category_id=72) for a in c['annotations']])
    edit(path, lambda c: c['categories'][2].update(name='forklift' if not arguments or 'voc' in arguments else 'tv'))
    assert main(['eval', '--data', str(path), *arguments]) == 1
    said = capsys.readouterr()
    assert said.err.count('\n') == 1 and words in said.err and '(6)' in said.err and 'nan' not in said.out


def test_videos_with_nothing_to_find_are_one_line(tmp_path, capsys):
    path = edit(write_ytvis(tmp_path), lambda c: c.update(annotations=None))
    assert main(['eval', '--data', str(path)]) == 1
    assert 'there is nothing to evaluate' in capsys.readouterr().err


def test_an_empty_list_of_videos_beside_images_is_coco(tmp_path):
    path = edit(write_coco(tmp_path), lambda c: c.update(videos=[]))
    assert open_set(path).kind == 'COCO'


def test_reading_is_quiet_where_all_is_well(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    load_coco(write_coco(tmp_path / 'a'))
    load_ytvis(write_ytvis(tmp_path / 'b'))
    assert not caplog.records
