"""Models on labelled videos: what is scored is what the model says, way by way, frame by frame."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from coco_files import rle_of
from decoder_outputs import decoder_output
from pycocotools import mask as coco_mask
from saved_weights import save_weights
from tiny_model import picture, tiny_model

from tar_vis_core.commands.main import main
from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.evaluation.decodings import decodings_of
from tar_vis_core.evaluation.tubes import frame_areas
from tar_vis_core.evaluation.videos import encode_picture, evaluate_videos, plain_name
from tar_vis_core.evaluation.whole_video import segment_video
from tar_vis_core.instances import RoutingTrace, TrackStatus
from tar_vis_core.models.video_model import build_model, resized
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.tracking.tracker import MatchingTracker

FRAMES, HEIGHT, WIDTH = 4, 96, 128
CLASSES = ('person', 'giant panda')


def body(x: int, y: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y:y + 24, x:x + 16] = True
    return mask


# by track: class id, mask or None by frame
TRUTH = [(1, [body(8 + 8 * t, 16) for t in range(FRAMES)]), (5, [body(88 - 8 * t, 56) for t in range(FRAMES)]),
         (5, [None, None, body(96, 8), body(96, 8)])]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Two videos; the first shows TRUTH as planes of colour, the second another picture."""
    folder = tmp_path_factory.mktemp('videos')
    content = {'categories': [{'id': 1, 'name': 'Person'}, {'id': 5, 'name': 'Giant_panda'}], 'videos': [],
               'annotations': []}
    for number in (1, 2):
        (folder / 'JPEGImages' / str(number)).mkdir(parents=True)
        names = [f'{number}/{t}.png' for t in range(FRAMES)]
        content['videos'].append({'id': number, 'width': WIDTH, 'height': HEIGHT, 'file_names': names})
        for t, name in enumerate(names):
            image = picture(t, HEIGHT, WIDTH)
            if number == 1:
                image = np.stack([np.zeros((HEIGHT, WIDTH), np.uint8) if masks[t] is None else 255 * masks[t]
                                  for _, masks in TRUTH], -1).astype(np.uint8)
            cv2.imwrite(str(folder / 'JPEGImages' / name), image[..., ::-1])
    for category, masks in TRUTH:
        content['annotations'].append({
            'id': len(content['annotations']) + 1, 'video_id': 1, 'category_id': category, 'iscrowd': 0,
            'segmentations': [None if m is None else rle_of(m) for m in masks]})
    (folder / 'instances.json').write_text(json.dumps(content))
    return folder / 'instances.json'


def plain_model(**changes):
    return tiny_model(class_set='custom', class_names=CLASSES, classes=2, tracker='matching',
                      **changes).eval()


@dataclass
class Seer:
    """A model that reads the truth from the picture's colours; queries, embeddings and classes are the way's."""

    config = plain_model().config
    pixel_mean = torch.zeros(3, 1, 1)

    def eval(self):
        return self

    def prepare(self, pixels, short_side):
        return resized(pixels, short_side).float()

    def encode(self, images):
        planes = torch.nn.functional.avg_pool2d(images, 4) / 25.5 - 5          # -5 or 5 at stride 4
        return type('Features', (), {'mask_features': planes, 'levels': []})


def seeing(swap_at: int = -1):
    """A way for the Seer, whose queries stand in another order in each frame; at ``swap_at`` two embed wrongly."""
    frame = -1

    def decoding(features, previous):
        nonlocal frame
        frame += 1
        order = np.roll(np.arange(3), frame)
        logits = torch.tensor([[6.0, 0, 0], [0, 6.0, 0], [0, 5.0, 0]])[None, order]
        embeddings = torch.eye(3)[None, order]
        if frame == swap_at:
            embeddings = embeddings[:, :, [1, 0, 2]]
        out = decoder_output(logits, torch.eye(3)[None, order], embeddings)
        out.trace = RoutingTrace((True,) * 9, np.full(9, np.nan))
        return out
    return decoding


def test_true_masks_in_changing_slots_score_one(data):
    records = load_ytvis(data)[:1]
    row = evaluate_videos(Seer(), records, {'true': seeing()}, short_side=96, max_instances=3, progress=False)[0]
    assert row.ap.mean.ap == row.ap.mean.ar10 == 1 and [c.name for c in row.ap.categories] == ['Giant_panda', 'Person']
    assert (row.identities.hota, row.identities.idf1, row.identities.switches) == (1, 1, 0)
    assert row.identities.predicted == 10


def test_a_wrong_match_costs_precision_and_switches_identities(data):
    # one class for all, so that only the identity is wrong
    records = load_ytvis(data)[:1]
    for track in records[0].tracks:
        track.category = 'Person'

    def same_class(decoding):
        def one(features, previous):
            out = decoding(features, previous)
            out.logits = torch.tensor([6.0, 0, 0]).expand_as(out.logits)
            return out
        return one
    decodings = {'true': same_class(seeing()), 'swapped': same_class(seeing(swap_at=1))}
    true, swapped = evaluate_videos(Seer(), records, decodings, short_side=96, max_instances=3, progress=False)
    assert true.ap.mean.ap == 1 and true.identities.switches == 0
    assert swapped.ap.mean.ap < 1 and swapped.identities.switches == 4       # two objects, there and back
    assert swapped.identities.detection == 1 and swapped.identities.association < 1


def same_tubes(a, b) -> bool:
    return [(t.video_id, t.category, t.score, t.rles) for t in a] == [(t.video_id, t.category, t.score, t.rles)
                                                                    for t in b]


def test_slots_are_those_of_the_whole_video_at_once(data):
    model, records = plain_model(), load_ytvis(data)
    row = evaluate_videos(model, records, {'all': lambda f, p: model.decode(f)}, max_instances=5, progress=False)[0]
    assert len(row.predictions) == 10 and [x.shape for x in row.executed] == [(FRAMES, 9)] * 2
    with torch.inference_mode():
        frames = [encode_picture(model, image, model.config.short_side) for image in records[1].frames()]
        features = torch.cat([f.features.mask_features for f in frames])
        levels = [torch.cat(level) for level in zip(*(f.features.levels for f in frames), strict=True)]
        tracked, _ = MatchingTracker().track(model.decoder(features, levels), features, None)
        video = segment_video(tracked, features, frames[0].geometry, 5)
    ours = row.predictions[5:]
    assert [t.score for t in ours] == pytest.approx(video.scores.tolist(), abs=1e-5)
    areas = frame_areas([t.rles for t in ours], FRAMES)
    assert np.abs(areas - video.masks.sum((2, 3)).numpy()).max() <= 3 and areas.any()


@pytest.mark.parametrize('model', [plain_model(), tiny_model()], ids=['slots', 'tracks'])
def test_frames_are_encoded_once_and_each_way_goes_on_by_itself(data, model, monkeypatch):
    records, options = load_ytvis(data), SegmenterOptions(score_threshold=0.1, refresh_frames=0)
    categories = ['Person', 'Giant_panda', 'cat', 'dog', 'chair', 'sofa']
    calls = []
    inner = model.encode
    monkeypatch.setattr(model, 'encode', lambda images: calls.append(images.shape) or inner(images))

    def run(decodings):
        return evaluate_videos(model, records, decodings, options=options, categories=categories, progress=False)
    rows = {row.name: row for row in run(decodings_of(model, [0, 3], True))}
    assert len(calls) == 2 * FRAMES
    assert list(rows) == ['first 0', 'first 3', 'TAR', 'TAR, all executed', 'TAR, all skipped', 'TAR, random gates']
    assert [rows[n].executed_layers for n in ('first 0', 'first 3', 'TAR, all executed')] == [0, 3, 9]
    assert rows['TAR, all skipped'].executed_layers == (9 + 3 * 1) / 4       # the first frame has none before it
    for name in ('first 3', 'TAR, all skipped'):
        assert rows[name].predictions
        alone = run({name: decodings_of(model, [3], True)[name]})[0]
        assert same_tubes(alone.predictions, rows[name].predictions)
    assert not same_tubes(rows['TAR, all skipped'].predictions, rows['TAR, all executed'].predictions)


def test_random_gates_execute_as_often_as_the_routers():
    model, rng = plain_model(), np.random.default_rng(3)
    decodings = decodings_of(model, [], True)
    with torch.inference_mode():
        features = encode_picture(model, picture(), 64).features
        previous, total = model.decode(features).queries, {'TAR': 0, 'TAR, random gates': 0}
        for frame in range(120):
            rate = 0.9 if frame < 60 else 0.2                              # a video that grows easier
            chosen = list((rng.random(8) < rate).astype(float))
            for name in total:
                if name == 'TAR':                                            # the routers say what was drawn
                    model.decoder.execute_probability = lambda x, p, layer, bias, found, c=chosen: c[layer - 1:]
                total[name] += decodings[name](features, previous).trace.executed_layers
                vars(model.decoder).pop('execute_probability', None)
    assert total['TAR, random gates'] == pytest.approx(total['TAR'], rel=0.12)


def test_tracks_are_what_users_get(data):
    model, record = tiny_model().eval(), load_ytvis(data)[1]
    options = SegmenterOptions(score_threshold=0.1, routing='full')
    names = list(model.config.class_names)
    row = evaluate_videos(model, [record], {'all': lambda f, p: model.decode(f)}, options=options, categories=names,
                          progress=False)[0]
    segmenter = VideoSegmenter.from_model(model, 'cpu', options=options)
    state, expected = segmenter.new_state(), {}
    for t, image in enumerate(record.frames()):
        for i in segmenter.step(image, state).instances:
            if i.status != TrackStatus.LOST:
                expected.setdefault(i.track_id, {})[t] = i
    assert expected and len(row.predictions) == len(expected)
    for tube, seen in zip(row.predictions, expected.values(), strict=True):
        assert {t for t, rle in enumerate(tube.rles) if rle is not None} == set(seen)
        assert tube.score == pytest.approx(np.mean([i.score for i in seen.values()]))
        assert tube.category in {i.class_name for i in seen.values()}
        for t, i in seen.items():
            assert np.array_equal(coco_mask.decode(tube.rles[t]), i.mask(HEIGHT, WIDTH))


def test_classes_are_matched_by_name(data):
    assert plain_name('Giant_panda') == plain_name('giant panda')
    assert plain_name('Vehical') == 'vehicle' and plain_name('pottedplant') == 'potted plant'
    assert plain_name('motorbike') == plain_name('motorcycle') and plain_name('Earless_seal') == 'earless seal'
    model, records = plain_model(), load_ytvis(data)
    decodings = {'all': lambda f, p: model.decode(f)}
    row = evaluate_videos(model, records, decodings, categories=['Giant_panda'], max_instances=20, progress=False)[0]
    assert {t.category for t in row.predictions} == {'Giant_panda'} and 0 < len(row.predictions) < 40
    with pytest.raises(ValueError, match=r'none of the categories of the data \(cow\), only person, giant panda'):
        evaluate_videos(model, records, decodings, categories=['cow'])


def test_the_command_scores_a_model_and_afterwards_its_file(data, tmp_path, capsys):
    weights = tmp_path / 'untrained.safetensors'
    torch.manual_seed(0)
    save_weights(build_model('nano', routing=False), weights, {'preset': 'nano'})
    words = ['eval', '--data', str(data), '--categories', 'Person', '--json', str(tmp_path / 'figures.json')]
    assert main([*words, '--weights', str(weights), '--layers', '1', '--short-side', '64', '--score-threshold', '0.05',
                 '--device', 'cpu', '--out', str(tmp_path / 'out'), '--zip']) == 0
    ran = json.loads((tmp_path / 'figures.json').read_text())[0]
    assert ran['name'] == 'first 1' and ran['executed'] == 1 and ran['categories'][0]['tracks'] == 1
    with zipfile.ZipFile(tmp_path / 'out' / 'first_1.zip') as archive:
        rows = json.loads(archive.read('results.json'))
    assert all(row['category_id'] == 1 and len(row['segmentations']) == FRAMES for row in rows)
    assert main([*words, '--results', str(tmp_path / 'out' / 'first_1.zip')]) == 0
    read = json.loads((tmp_path / 'figures.json').read_text())[0]
    assert read['mean'] == pytest.approx(ran['mean'], nan_ok=True)
    assert 'HOTA' in capsys.readouterr().out
    assert main([*words, '--results', str(tmp_path / 'out' / 'first_1.zip'), '--min-score', '0']) == 0
    assert json.loads((tmp_path / 'figures.json').read_text())[0]['identities'] == ran['identities']
    assert main([*words, '--results', 'nowhere.json']) == 1
    assert 'nowhere.json: not a file of predictions' in capsys.readouterr().err
    assert main([*words[:4], 'cow', '--results', 'nowhere.json']) == 1
    assert 'cow: the data has Person, Giant_panda' in capsys.readouterr().err
