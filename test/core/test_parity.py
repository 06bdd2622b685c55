"""Every model gives what its reference gave on the same weights and frames, wherever that was recorded.

The weights take a user's way: an official checkpoint file, the converter, the loader.
"""

import copy
import json
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_data import expected, formula, official_state, recording

from tar_vis_core.evaluation.whole_video import VideoInstances, mean_logits, rows_by_slot, segment_video
from tar_vis_core.masks import MaskGeometry
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.packed import inference_form
from tar_vis_core.models.tracked import Tracked, masks_of
from tar_vis_core.models.video_model import Features
from tar_vis_core.runtime.device import compute_context
from tar_vis_core.tracking.tracker import MatchingTracker, make_tracker
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.official import convert_official

PRESETS = {'minvis_r50': 'minvis_r50', 'dvispp_r50': 'dvispp_r50', 'ctvis_r50_in_dvispp': 'ctvis_r50',
           'minvis_swinl': 'minvis_swin_l', 'dvispp_vitl': 'dvispp_vit_adapter_l'}


@dataclass(frozen=True)
class Clip:
    """Frames of one size, whose arrays have ``prefix`` in the family's recording."""

    family: str
    prefix: str
    salt: str
    frames: tuple[int, int, int]
    padded: tuple[int, int]
    output: tuple[int, int]

    def __str__(self) -> str:
        return f'{self.family}-{self.frames[1]}x{self.frames[2]}'


def clips(family: str) -> list[Clip]:
    """The recorded clips of a family on which the reference itself is stable: an attention mask decided by the last
    bit of a float32 would decide for the whole frame."""
    if recording(family) is None:
        return []
    with np.load(recording(family)) as archive:
        meta, gaps = (json.loads(str(archive[name])) for name in ('meta', 'fp64_gap'))
    found = []
    for prefix, sizes in meta.get('prefixes', {'': meta}).items():
        if (gaps[prefix] if 'prefixes' in meta else gaps)['pred_logits'] < 1e-4:
            found.append(Clip(family, prefix, meta['salt'],
                              *(tuple(sizes[name]) for name in ('frames', 'padded', 'output'))))
    return found


CLIPS = [clip for family in PRESETS for clip in clips(family)]


@lru_cache(maxsize=1)  # the large ones take gigabytes
def load(family: str, salt: str):
    with tempfile.TemporaryDirectory() as folder:
        official, ours = Path(folder) / 'model_final.pth', Path(folder) / 'ours.safetensors'
        torch.save({'model': official_state(family, salt), 'iteration': 5999}, official)
        convert_official(official, ours, PRESETS[family])
        official.unlink()
        return load_model(PRESETS[family], ours)


@dataclass
class Run:
    """A clip, all its frames at once, through the network; and what was recorded of it."""

    clip: Clip
    fast: bool                  # in its inference form
    network: torch.nn.Module
    frames: torch.Tensor
    maps: tuple[torch.Tensor, ...]
    features: Features
    decoded: DecoderOutput
    tracked: Tracked
    recorded: dict[str, np.ndarray]

    def has(self, name: str) -> bool:
        return name in self.recorded or f'{name}_even' in self.recorded

    def check(self, name: str, ours) -> None:
        """Compares with a recorded array, or with the one that holds the even queries only."""
        ours = np.asarray(ours)
        if f'{name}_even' in self.recorded:
            recorded = self.recorded[f'{name}_even']
            queries = next(axis for axis, size in enumerate(recorded.shape) if size != ours.shape[axis])
            ours = ours.take(range(0, ours.shape[queries], 2), queries)
        else:
            recorded = self.recorded[name]
        assert ours.shape == recorded.shape, name
        gap = np.abs(ours - recorded.astype(np.float64)).max()
        if recorded.dtype == np.int64:
            assert gap == 0, name
        else:
            assert gap < (max(1e-3, 1e-5 * np.abs(recorded).max()) if 'masks' in name else 1e-4), name


FORMS = [(clip, fast) for clip in CLIPS for fast in (False, True)]


@pytest.fixture(scope='module', params=FORMS, ids=lambda form: f'{form[0]}{"-inference" if form[1] else ""}')
@torch.no_grad()
def run(request):
    clip, fast = request.param
    recorded = {name.removeprefix(clip.prefix): value for name, value in expected(clip.family).items()
                if name.startswith(clip.prefix)}
    frames = torch.from_numpy(formula().frames(*clip.frames))
    assert frames.double().sum().item() == recorded['input_checksum'][0]
    network = load(clip.family, clip.salt)
    if fast:
        network = inference_form(copy.deepcopy(network), torch.device('cpu'))
    images = network.normalize(frames)
    features = network.encode(images)
    decoded = network.decode(features)
    tracked, _ = make_tracker(network.config.tracker, network).track(decoded, features.mask_features, None)
    yield Run(clip, fast, network, frames, network.backbone(images), features, decoded, tracked, recorded)
    if clip == CLIPS[-1]:
        load.cache_clear()


def all_masks(tracked: Tracked, features: Features) -> torch.Tensor:
    """``(R, T, h, w)``"""
    rows = torch.arange(tracked.logits.shape[1])
    return torch.stack([masks_of(tracked, t, rows, features.mask_features) for t in range(len(tracked.slots))], 1)


def test_normalising_pads_right_and_bottom_with_zeros(run):
    x = run.network.normalize(run.frames)
    assert tuple(x.shape[-2:]) == run.clip.padded
    assert (x[..., run.clip.frames[1]:, :] == 0).all() and (x[..., run.clip.frames[2]:] == 0).all()


def test_backbone(run):
    for level, (x, step) in enumerate(zip(run.maps, (8, 4, 2, 1), strict=True), 2):
        run.check(f'backbone_res{level}_sub', x[:, ::16, ::step, ::step])
        run.check(f'backbone_res{level}_meanstd', [x.double().mean(), x.double().std()])
        if run.has(f'backbone_res{level}_ch8'):
            run.check(f'backbone_res{level}_ch8', x[:, ::8])


def test_pixel_decoder(run):
    for index, level in enumerate(run.features.levels):
        run.check(f'pixdec_ms{index}_sub', level[:, ::8, ::2, ::2])
    mask_features = run.features.mask_features
    run.check('mask_features_sub', mask_features[:, ::8, ::4, ::4])
    run.check('mask_features_channel_mean', mask_features.mean((2, 3)))
    run.check('mask_features_channel_std', mask_features.std((2, 3)))


def test_decoder(run):
    assert run.decoded.trace.executed == (True,) * 9
    run.check('pred_logits', run.decoded.logits)
    run.check('pred_embds', run.decoded.embeddings)
    if run.has('pred_embds_without_norm_first256'):
        run.check('pred_embds_without_norm_first256', run.decoded.queries)
    masks = torch.einsum('nkd,ndhw->nkhw', run.decoded.mask_embeddings, run.features.mask_features).transpose(0, 1)
    run.check('pred_masks_sub3', masks[:, :, 1::3, 1::3])
    run.check('pred_masks_full_first6', masks[:6])
    run.check('pred_masks_mean', masks.mean((2, 3)))
    run.check('pred_masks_std', masks.std((2, 3)))


@torch.no_grad()
def test_heads_after_every_layer(run):
    deep = run.network.supervised(run.features)
    assert len(deep.logits) == len(deep.mask_embeddings) == 10
    run.check('aux_logits_frame0', torch.stack([logits[0] for logits in deep.logits[:9]]))
    run.check('aux_masks_mean', torch.stack([
        torch.einsum('nkd,ndhw->nkhw', embedding, run.features.mask_features).mean((2, 3)).T
        for embedding in deep.mask_embeddings[:9]]))
    torch.testing.assert_close(deep.logits[9], run.decoded.logits)  # both forms of the decoder are one decoder


@torch.no_grad()
def test_tracker(run):
    matched, _ = MatchingTracker().track(run.decoded, run.features.mask_features, None)
    if run.network.tracker is None:
        run.check('match_indices', matched.slots.argsort(1))
        return
    run.check('tracker_indices', matched.slots.argsort(1))
    run.check('tracker_logits', run.tracked.logits)
    run.check('tracker_embds', run.tracked.embeddings)
    before = torch.cat((run.decoded.raw_embeddings[:1], run.tracked.embeddings[:-1]))
    run.check('tracker_references', run.network.tracker.ref_proj(before))
    masks = all_masks(run.tracked, run.features)
    run.check('tracker_masks_sub3', masks[:, :, 1::3, 1::3])
    run.check('tracker_masks_full_first6', masks[:6])


@torch.no_grad()
def test_frame_by_frame_with_state(run):
    tracker, memory = make_tracker(run.network.config.tracker, run.network), None
    for t, frame in enumerate(run.frames):
        features = run.network.encode(run.network.normalize(frame[None]))
        decoded = run.network.decode(features)
        tracked, memory = tracker.track(decoded, features.mask_features, memory)
        assert np.array_equal(tracked.slots[0], run.tracked.slots[t])
        close = dict(rtol=0, atol=1e-4)
        torch.testing.assert_close(decoded.queries[0], run.decoded.queries[t], **close)
        torch.testing.assert_close(tracked.logits[0], run.tracked.logits[t], **close)
        torch.testing.assert_close(tracked.embeddings[0], run.tracked.embeddings[t], **close)
        masks, at_once = all_masks(tracked, features)[:, 0], all_masks(run.tracked, run.features)[:, t]
        torch.testing.assert_close(masks, at_once, rtol=0, atol=max(1e-3, 1e-5 * float(at_once.abs().max())))


def instances(run, tracked: Tracked, features: Features) -> VideoInstances:
    clip = run.clip
    geometry = MaskGeometry(tuple(features.mask_features.shape[-2:]), clip.padded, clip.frames[1:], clip.output)
    return segment_video(tracked, features.mask_features, geometry, len(run.recorded['final_scores']))


def test_instances_of_the_video(run):
    recorded, video = run.recorded, instances(run, run.tracked, run.features)
    run.check('final_scores', video.scores)
    run.check('final_labels', video.labels)
    if run.network.tracker is not None:
        run.check('final_query_ids', video.queries)
    allowed = np.maximum(3, 1e-3 * recorded['final_mask_areas'])
    assert (np.abs(video.masks.sum((2, 3)).numpy() - recorded['final_mask_areas']) <= allowed).all()
    shape = recorded['final_masks_shape']
    masks = np.unpackbits(recorded['final_masks_packed'])[:shape.prod()].reshape(shape).astype(bool)
    assert ((video.masks.numpy() != masks).sum((2, 3)) <= allowed).all()


def check_top(run, expected: Tracked, tracked: Tracked, features: Features, distance: float) -> None:
    """The video's instances have their scores within ``distance`` of the expected ones, float32's, and those that lead
    the eleventh by more than that are all there."""
    rows = [torch.from_numpy(rows_by_slot(t.slots)[1]) for t in (expected, tracked)]
    plain, half = (mean_logits(t.logits, row).softmax(-1)[:, :-1]
                   for t, row in zip((expected, tracked), rows, strict=True))
    best = plain.flatten().topk(11)
    picked = best.indices[:10]
    assert (plain.flatten()[picked] - half.flatten()[picked]).abs().max() < distance
    leading = picked[best.values[:10] - best.values[10] > distance]
    video = instances(run, tracked, features)
    assert len(leading) > 3
    assert set(leading.tolist()) <= set((video.queries * plain.shape[1] + video.labels).tolist())


@torch.no_grad()
def test_bfloat16_stays_near_float32(run):
    """Half precision rounds; and where a mask logit is near zero, it lets a query attend elsewhere.

    With random weights most of the distance comes from that: with float32's attention masks every class logit of a
    frame stays within 0.2 of float32's, with its own the mean does, and scores of a video's instances within 0.05, or
    0.1 behind a tracker's network.
    """
    if 'r50' not in run.clip.family or run.clip.prefix or run.fast:
        pytest.skip('one backbone and size is enough, in the plain form')
    network, layers = run.network, run.network.decoder.layers
    tracker = make_tracker(network.config.tracker, network)
    keeps: list[torch.Tensor] = []
    recording = [layer.register_forward_pre_hook(lambda _, inputs: keeps.append(inputs[4])) for layer in layers]
    # two frames: a processor without bfloat16 takes long for each
    plain = network.decode(Features(run.features.mask_features[:2], [level[:2] for level in run.features.levels]))
    for hook in recording:
        hook.remove()
    expected, _ = tracker.track(plain, run.features.mask_features[:2], None)

    with compute_context(torch.device('cpu'), torch.bfloat16):
        features = network.encode(network.normalize(run.frames[:2]))
        decoded = network.decode(features)
        assert decoded.logits.dtype == torch.bfloat16
        assert (decoded.logits - plain.logits).abs().mean() < 0.2
        tracked, _ = tracker.track(decoded, features.mask_features, None)
        # a tracker's network adds its own, and without bfloat16 in hardware sums round otherwise
        check_top(run, expected, tracked, features, distance=0.05 if network.tracker is None else 0.1)

        replaying = [layer.register_forward_pre_hook(lambda _, inputs, keep=keep: (*inputs[:4], keep, inputs[5]))
                     for layer, keep in zip(layers, keeps, strict=True)]
        decoded = network.decode(features)
        for hook in replaying:
            hook.remove()
        assert (decoded.logits - plain.logits).abs().max() < 0.2
        tracked, _ = tracker.track(decoded, features.mask_features, None)
        check_top(run, expected, tracked, features, distance=0.02)
