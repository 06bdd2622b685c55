"""Preset minvis_r50 gives what the reference gave on the same weights and frames.

The weights take a user's way: an official checkpoint file, the converter, the loader.
"""

import numpy as np
import pytest
import torch
from parity_data import expected, formula, largest_gap, needs_parity_data, official_state

from tar_vis_core.evaluation.whole_video import match_frames, segment_video
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.official import convert_official

pytestmark = needs_parity_data

CONTENT, PADDED, OUTPUT = (180, 310), (192, 320), (240, 414)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    torch.save({'model': official_state('minvis_r50'), 'iteration': 5999}, folder / 'minvis_ytvis19_R50.pth')
    return convert_official(folder / 'minvis_ytvis19_R50.pth', folder / 'minvis_r50.safetensors').path


@pytest.fixture(scope='module')
def reference():
    return expected('minvis_r50')


@pytest.fixture(scope='module', params=['as trained', 'folded, channels last'])
def network(weights, request):
    network = load_model('minvis_r50', weights)
    if request.param != 'as trained':
        network.backbone.fold().to(memory_format=torch.channels_last)
    return network


@pytest.fixture(scope='module')
def frames(reference):
    frames = torch.from_numpy(formula().frames(3, *CONTENT))
    assert frames.double().sum().item() == reference['input_checksum'][0]
    return frames


@pytest.fixture(scope='module')
def features(network, frames):
    with torch.no_grad():
        return network.encode(network.normalize(frames))


@pytest.fixture(scope='module')
def decoded(network, features):
    with torch.no_grad():
        output = network.decode(features)
        return output, network.mask_logits(output.mask_embeddings, features.mask_features)


def test_normalising_pads_right_and_bottom_with_zeros(network, frames):
    x = network.normalize(frames)
    assert tuple(x.shape[-2:]) == PADDED
    assert (x[..., CONTENT[0]:, :] == 0).all() and (x[..., CONTENT[1]:] == 0).all()


def test_pixel_decoder(features, reference):
    for index, level in enumerate(features.levels):
        assert largest_gap(level[:, ::8, ::2, ::2], reference[f'pixdec_ms{index}_sub']) < 1e-4
    mask_features = features.mask_features
    assert largest_gap(mask_features[:, ::8, ::4, ::4], reference['mask_features_sub']) < 1e-4
    assert largest_gap(mask_features.mean((2, 3)), reference['mask_features_channel_mean']) < 1e-4
    assert largest_gap(mask_features.std((2, 3)), reference['mask_features_channel_std']) < 1e-4


def test_class_logits_and_embeddings(decoded, reference):
    output, _ = decoded
    assert output.trace.executed == (True,) * 9
    assert largest_gap(output.logits, reference['pred_logits']) < 1e-4
    assert largest_gap(output.embeddings, reference['pred_embds']) < 1e-4


def test_mask_logits(decoded, reference):
    masks = decoded[1].transpose(0, 1)
    assert largest_gap(masks[:, :, 1::3, 1::3], reference['pred_masks_sub3']) < 1e-3
    assert largest_gap(masks[:6], reference['pred_masks_full_first6']) < 1e-3
    assert largest_gap(masks.mean((2, 3)), reference['pred_masks_mean']) < 1e-3
    assert largest_gap(masks.std((2, 3)), reference['pred_masks_std']) < 1e-3


@torch.no_grad()
def test_heads_after_every_layer(network, features, decoded, reference):
    deep = network.supervised(features)
    assert len(deep.logits) == len(deep.mask_embeddings) == 10
    assert largest_gap(torch.stack([logits[0] for logits in deep.logits[:9]]), reference['aux_logits_frame0']) < 1e-4
    means = [network.mask_logits(embedding, features.mask_features).mean((2, 3)).T
             for embedding in deep.mask_embeddings[:9]]
    assert largest_gap(torch.stack(means), reference['aux_masks_mean']) < 1e-3
    torch.testing.assert_close(deep.logits[9], decoded[0].logits)  # both forms of the decoder are one decoder


@torch.no_grad()
def test_frames_one_by_one(network, frames, reference):
    for t, frame in enumerate(frames):
        output = network.decode(network.encode(network.normalize(frame[None])))
        assert largest_gap(output.logits[0], reference['pred_logits'][t]) < 1e-4
        assert largest_gap(output.embeddings[0], reference['pred_embds'][t]) < 1e-4


def test_instances_of_the_video(decoded, reference):
    output, masks = decoded
    assert np.array_equal(match_frames(output.embeddings).numpy(), reference['match_indices'])
    video = segment_video(output.logits, masks, output.embeddings, PADDED, CONTENT, OUTPUT)
    assert largest_gap(video.scores, reference['final_scores']) < 1e-4
    assert video.labels.tolist() == reference['final_labels'].tolist()
    allowed = np.maximum(3, 1e-3 * reference['final_mask_areas'])
    assert (np.abs(video.masks.sum((2, 3)).numpy() - reference['final_mask_areas']) <= allowed).all()
    shape = reference['final_masks_shape']
    recorded = np.unpackbits(reference['final_masks_packed'])[:shape.prod()].reshape(shape).astype(bool)
    assert ((video.masks.numpy() != recorded).sum((2, 3)) <= allowed).all()
