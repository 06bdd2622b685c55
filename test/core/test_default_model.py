"""The default model on photographs: it finds what is plainly there, in each form that computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tar_vis_core.data.transforms import Sample
from tar_vis_core.models.class_sets import COCO
from tar_vis_core.models.presets import PRESETS
from tar_vis_core.models.proposals import OFFSET, SLOPE, Proposals
from tar_vis_core.models.video_model import build_model
from tar_vis_core.segmenter import SegmenterOptions, VideoSegmenter
from tar_vis_core.training.proposal_losses import assign, mask_boxes, mask_costs, proposal_losses
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

PHOTOGRAPHS = pytest.importorskip('skimage.data')


@pytest.fixture(scope='module')
def segmenter() -> VideoSegmenter:
    return VideoSegmenter('nano', device='cpu', options=SegmenterOptions(score_threshold=0.5))


def masks_by_class(segmenter: VideoSegmenter, image: np.ndarray) -> dict[str, np.ndarray]:
    """The largest mask of each class in an image."""
    found = segmenter.step(image, segmenter.new_state()).instances
    return {i.class_name: i.mask(*image.shape[:2]) for i in sorted(found, key=lambda i: i.area)}


def test_it_knows_the_classes_of_coco(segmenter):
    assert segmenter.class_names == COCO and segmenter.num_layers == PRESETS['nano'].decoder_layers


@pytest.mark.parametrize(('name', 'wanted', 'least'), [('astronaut', 'person', 0.25), ('coffee', 'cup', 0.1)])
def test_what_fills_the_picture_is_found(segmenter, name, wanted, least):
    found = masks_by_class(segmenter, np.ascontiguousarray(getattr(PHOTOGRAPHS, name)()[..., :3]))
    assert wanted in found and found[wanted].mean() > least


def test_the_plain_form_reports_the_same(segmenter):
    plain = VideoSegmenter.from_model(load_model('nano', packaged_weights('nano')), 'cpu', options=segmenter.options)
    for name in ('astronaut', 'coffee'):
        image = np.ascontiguousarray(getattr(PHOTOGRAPHS, name)()[..., :3])
        packed, found = masks_by_class(segmenter, image), masks_by_class(plain, image)
        assert packed.keys() == found.keys()
        for label, mask in found.items():
            assert (mask & packed[label]).sum() > 0.97 * (mask | packed[label]).sum(), label


@pytest.mark.parametrize('precision', ['float16', 'bfloat16', 'float32'])
def test_half_precision_finds_the_same(segmenter, precision):
    half = VideoSegmenter('nano', device='cpu', precision=precision, options=segmenter.options)
    image = np.ascontiguousarray(PHOTOGRAPHS.astronaut()[..., :3])
    single, found = masks_by_class(segmenter, image), masks_by_class(half, image)
    assert (single['person'] & found['person']).sum() > 0.97 * (single['person'] | found['person']).sum()


def test_a_known_frame_keeps_every_slot():
    """Shown the same picture again, each query finds the slot that it had, and its box with it."""
    model = load_model('nano', packaged_weights('nano'))
    with torch.inference_mode():
        features = model.encode(model.prepare(torch.from_numpy(PHOTOGRAPHS.astronaut()), 320))
        first = model.decode(features)
        again = model.decode(features, first.past, 'adaptive')
    sure = first.logits[0].softmax(-1)[:, :-1].amax(-1) > 0.3
    assert sure.any() and torch.equal(first.shapes.boxes[0, sure], again.shapes.boxes[0, sure])


def test_class_scores_are_the_detectors_own():
    """Softmax gives each class its chance; what may be two things is no more than one."""
    logits = torch.full((1, 3, 80), -9.0)
    logits[0, 0, 16] = logits[0, 1, 16] = logits[0, 1, 15] = 2.0        # a dog; a dog or a cat; nothing
    found = Proposals(torch.zeros(1, 3, 4), logits, torch.zeros(1, 3, 96), torch.zeros(1, 24, 8, 8)).class_logits()
    dog, either, nothing = found.softmax(-1)[0]
    assert dog[16] == pytest.approx(float(torch.sigmoid(torch.tensor(2 * SLOPE + OFFSET))), abs=1e-4)
    assert either[15] == pytest.approx(0.5, abs=1e-3) and either[16] == either[15] and nothing[-1] > 0.999
    assert torch.allclose(found.softmax(-1).sum(-1), torch.ones(1, 3))


# what trains it

def made_sample(masks: torch.Tensor, labels: list[int], boxed: list[bool]) -> Sample:
    count, size = len(labels), masks.shape[1:]
    return Sample(
        image=torch.zeros(3, *size, dtype=torch.uint8), masks=masks, labels=torch.tensor(labels, dtype=torch.long),
        trusted=torch.ones(count, dtype=torch.bool), valid=torch.ones(count, dtype=torch.bool),
        ignore=torch.zeros(size, dtype=torch.bool), exhaustive=True,
        boxed=torch.tensor(boxed, dtype=torch.bool))


def test_boxes_of_masks_are_tight():
    masks = torch.zeros(1, 40, 80, dtype=torch.bool)
    masks[0, 10:20, 8:24] = True
    assert torch.allclose(mask_boxes(masks), torch.tensor([[0.1, 0.25, 0.3, 0.5]]))


def test_a_query_stands_for_the_instance_that_its_box_shows():
    truth = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]])
    boxes = torch.tensor([[0.0, 0.8, 0.1, 0.9], [0.5, 0.52, 0.9, 0.9], [0.12, 0.1, 0.4, 0.4], [0.2, 0.1, 0.6, 0.5]])
    q, t = assign(torch.zeros(4, 3), boxes, torch.tensor([0, 1]), truth)
    assert dict(zip(q.tolist(), t.tolist(), strict=True)) == {1: 1, 2: 0}


def test_of_a_box_only_the_projections_count():
    truth = torch.zeros(2, 28, 28)
    truth[:, 4:24, 4:24] = 1
    plus = torch.full((1, 2, 28, 28), -8.0)
    plus[..., 4:24, 12:16] = plus[..., 12:16, 4:24] = 8.0       # fills the box's sides, but not the box
    bce, dice = mask_costs(plus, truth, torch.tensor([True, False]))
    assert bce[0, 0] == 0 and dice[0, 0] < 0.01 and bce[0, 1] > 1 and dice[0, 1] > 0.3


def test_only_queries_that_stand_for_an_instance_are_charged():
    torch.manual_seed(0)
    model = build_model('nano', routing=False)
    features = model.encode(torch.rand(1, 3, 64, 96))
    masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    masks[0, 16:48, 24:72] = True
    box = torch.tensor([0.25, 0.25, 0.75, 0.75]).expand(1, 64, 4).clone()
    box[0, 1:] = torch.tensor([0.0, 0.0, 0.1, 0.1])
    logits = torch.full((1, 64, 80), -9.0)
    logits[0, 0, 0] = 2.0
    logits[0, 1, 0] = 1.0           # a second person where none is labelled, as in a crowd
    features.proposals = Proposals(box, logits, features.proposals.content, features.proposals.fine)
    output = model.supervised(features)

    def loss(samples):
        return proposal_losses(model, output, features, samples, (64, 96))

    terms = loss([made_sample(masks, [0], [False])])
    assert all(torch.isfinite(v) and v > 0 for v in terms.values())
    gradient, = torch.autograd.grad(sum(terms.values()), output.mask_embeddings[-1], retain_graph=True)
    assert (gradient[0, 0] != 0).any() and (gradient[0, 1:] == 0).all()
    assert all(v == 0 for v in loss([made_sample(masks[:0], [], [])]).values())
