"""Training: the losses reward what they should, and a run learns, resumes bit for bit, and refuses what is wrong."""

import math

import pytest
import torch
from coco_files import write_coco

from tar_vis_core.training.losses import (
    LossWeights,
    Target,
    class_loss,
    make_target,
    match,
    matching_cost,
    set_losses,
    total_loss,
)
from tar_vis_core.training.optimizer import learning_rate
from tar_vis_core.training.recipe import RECIPES, RecipeError, load_recipe
from tar_vis_core.training.starting_weights import start_model
from tar_vis_core.training.train import main
from tar_vis_core.weights.loading import load_model

W = LossWeights()
PERSON, OBJECT = 0, 1
SIZE = 16, 24


def two_instances() -> Target:
    masks = torch.zeros(2, *SIZE)
    masks[0, 2:10, 2:8] = 1
    masks[1, 4:14, 12:22] = 1
    return Target(masks, torch.tensor([PERSON, OBJECT]), torch.zeros(SIZE), True, torch.arange(2))


def answer(target: Target, order: list[int], queries: int = 5, sharp: float = 12.0):
    """Logits and mask logits that are right in slots ``order``, and no-object elsewhere."""
    logits = torch.zeros(queries, 3)
    logits[:, 2] = sharp
    masks = torch.full((queries, *SIZE), -sharp)
    for slot, label, mask in zip(order, target.labels, target.masks, strict=True):
        logits[slot] = 0
        logits[slot, label] = sharp
        masks[slot] = sharp * (2 * mask - 1)
    return logits, masks


def losses_of(target: Target, logits, masks) -> dict:
    # mask features are the identity, so that a mask embedding is the mask itself
    pixels = SIZE[0] * SIZE[1]
    features = torch.eye(pixels).view(1, pixels, *SIZE)
    return set_losses([logits[None]], [masks.flatten(1)[None]], features, [target], W)


@pytest.mark.parametrize('order', [[0, 1], [3, 1], [4, 0]])
def test_a_right_answer_costs_nothing_in_any_slots(order):
    target = two_instances()
    terms = losses_of(target, *answer(target, order))
    assert all(float(v) < 0.02 for v in terms.values())


def test_a_wrong_mask_or_class_or_a_duplicate_costs():
    target = two_instances()
    logits, masks = answer(target, [0, 1])
    right = losses_of(target, logits, masks)
    wrong_mask = masks.clone()
    wrong_mask[0] = -masks[0]
    assert losses_of(target, logits, wrong_mask)['dice'] > right['dice'] + 0.3
    swapped = logits.clone()
    swapped[0, [PERSON, OBJECT]] = logits[0, [OBJECT, PERSON]]
    assert losses_of(target, swapped, masks)['class'] > right['class'] + 1
    doubled, masks2 = logits.clone(), masks.clone()
    doubled[4], masks2[4] = logits[0], masks[0]
    assert losses_of(target, doubled, masks2)['class'] > right['class'] + 0.1


@pytest.mark.parametrize('depth', range(3))
def test_a_frame_is_charged_at_the_depth_at_which_it_is_wrong(depth):
    target = two_instances()
    logits, masks = answer(target, [0, 1])
    right, wrong, pixels = masks.flatten(1), -masks.flatten(1), SIZE[0] * SIZE[1]
    features = torch.eye(pixels).view(1, pixels, *SIZE).expand(2, -1, -1, -1)
    frames, embeddings = [torch.stack((logits, logits))] * 3, [torch.stack((right, right))] * 3

    def losses(pairs=None):
        return set_losses(frames, embeddings, features, [target, target], W, pairs=pairs)

    before = losses()
    other = (torch.tensor([3, 4]), torch.tensor([0, 1]))
    assert losses([[other] * 3] * 2)['class'] > before['class'] + 0.1, 'slots that are given are not matched'
    embeddings[depth] = torch.stack((right, wrong))
    after = losses()
    assert after['dice'] > before['dice'] + 0.1 and after['mask'] > before['mask'] + 0.1


def test_matching_finds_the_right_queries_at_each_depth():
    target = two_instances()
    stacked = [answer(target, order) for order in ([0, 1], [4, 2])]
    logits, masks = (torch.stack(x) for x in zip(*stacked, strict=True))
    pairs = match(matching_cost(-logits.softmax(-1)[..., target.labels], masks.flatten(2), target.masks.flatten(1), W))
    assert [dict(zip(t.tolist(), q.tolist(), strict=True)) for q, t in pairs] == [{0: 0, 1: 1}, {0: 4, 1: 2}]


def test_a_frame_without_instances_works():
    none = torch.zeros(0, dtype=torch.long)
    empty = Target(torch.zeros(0, *SIZE), none, torch.zeros(SIZE), True, none)
    logits = torch.zeros(5, 3, requires_grad=True)
    terms = losses_of(empty, logits, torch.zeros(5, *SIZE))
    assert all(v.ndim == 0 for v in terms.values())   # tensors, although nothing was matched
    loss = total_loss(terms, W)
    loss.backward()
    assert math.isfinite(float(loss.detach())) and logits.grad[:, 2].max() < 0


def test_where_only_persons_are_labelled_an_unmatched_object_is_not_charged():
    objects = torch.tensor([[0.0, 9.0, 0.0]]).expand(4, 3)
    none = torch.zeros(4, dtype=torch.bool)
    labels = torch.zeros(4, dtype=torch.long)
    charged, _ = class_loss(objects, labels, none, none, exhaustive=True, no_object=0.1)
    spared, _ = class_loss(objects, labels, none, none, exhaustive=False, no_object=0.1)
    assert charged > 1 and spared < 0.01
    persons, _ = class_loss(objects.roll(-1, 1), labels, none, none, exhaustive=False, no_object=0.1)
    assert persons > 1


def test_an_unmatched_query_inside_a_crowd_is_not_charged():
    target = two_instances()
    logits, masks = answer(target, [0, 1])
    masks[3] = -12
    masks[3, 10:16, 0:8] = 12
    logits[3] = torch.tensor([12.0, 0, 0])
    charged = losses_of(target, logits, masks)['class']
    target.ignore[10:16, 0:8] = 1
    assert charged > 0.3 and losses_of(target, logits, masks)['class'] < 0.02


def test_targets_average_masks_to_stride_four():
    class Item:
        masks = torch.zeros(2, 32, 32, dtype=torch.bool)
        labels = torch.tensor([0, 1])
        ignore = torch.zeros(32, 32, dtype=torch.bool)
        exhaustive = True

    Item.masks[1, 0:4, 0:2] = True
    target = make_target(Item, (32, 32))
    assert target.labels.tolist() == [1] and target.instances.tolist() == [1]       # the empty one is gone
    assert target.masks[0, 0, 0] == 0.5 and target.masks.sum() == 0.5
    Item.masks, Item.labels = Item.masks[:0], Item.labels[:0]
    assert make_target(Item, (32, 32)).masks.shape == (0, 8, 8)       # a picture of nothing


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp('toy')
    write_coco(folder, images=3)
    return folder


def train(toy, out, *options, recipe='nano'):
    changes = ['data=[instances.json]', 'processes=1', 'batch=1', 'warmup=1', 'sizes=[[0, 64, 96]]',
               'checkpoint_every=2', 'precision=float32']
    return main([recipe, '--data', str(toy), '--out', str(out),
                 *(word for change in changes for word in ('--set', change)), *options])


def tensors(out):
    return load_model('nano', out / 'model.safetensors').state_dict()


def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(toy, tmp_path):
    options = '--set', 'iterations=4', '--set', 'backbone_from=0.5'
    assert train(toy, tmp_path / 'whole', *options) == 0
    assert train(toy, tmp_path / 'parts', *options, '--stop-at', '2') == 0
    half = tensors(tmp_path / 'parts')
    assert train(toy, tmp_path / 'parts', *options, '--resume') == 0
    whole, parts = tensors(tmp_path / 'whole'), tensors(tmp_path / 'parts')
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert any(not torch.equal(half[k], parts[k]) for k in half)
    rows = (tmp_path / 'parts' / 'log.csv').read_text().splitlines()
    assert rows == (tmp_path / 'whole' / 'log.csv').read_text().splitlines()


def test_two_processes_take_the_step_that_one_takes_on_the_same_samples(toy, tmp_path):
    gradients = []
    for processes in (1, 2):
        options = f'processes={processes}', 'iterations=1', 'batch=2', 'backbone_from=0'
        assert train(toy, tmp_path / str(processes), *(w for o in options for w in ('--set', o))) == 0
        state = torch.load(tmp_path / str(processes) / 'last.pt', weights_only=True)['optimizer']['state']
        gradients.append(torch.cat([moments['exp_avg'].flatten() for moments in state.values()]))
    one, two = gradients
    assert (one != 0).float().mean() > 0.5
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5 * float(one.abs().max()))


def test_tar_trains_on_clips_with_all_but_the_routers_frozen(toy, tmp_path):
    assert train(toy, tmp_path / 'stills', '--set', 'iterations=2') == 0
    before = tensors(tmp_path / 'stills')
    assert train(toy, tmp_path / 'clips', '--set', 'iterations=3', '--init',
                 str(tmp_path / 'stills' / 'model.safetensors'), recipe='nano_tar') == 0
    fresh, after = start_model(load_recipe('nano_tar'))[0].state_dict(), tensors(tmp_path / 'clips')
    before.update({k: v.half().float() for k, v in fresh.items() if k not in before})
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert 'decoder.routers.worth.bias' in changed and all(k.startswith('decoder.routers.') for k in changed)
    header = (tmp_path / 'clips' / 'log.csv').read_text().splitlines()[0].split(',')
    assert 'worth' in header


def test_a_few_steps_lower_the_loss(toy, tmp_path):
    assert train(toy, tmp_path, '--set', 'iterations=30', '--set', 'warmup=5', '--set', 'lr=1e-3') == 0
    header, *rows = [line.split(',') for line in (tmp_path / 'log.csv').read_text().splitlines()]
    loss = [float(row[header.index('loss')]) for row in rows]
    assert sum(loss[-5:]) < 0.8 * sum(loss[:5])


def test_the_packaged_recipes_load():
    for path in RECIPES.glob('*.yaml'):
        recipe = load_recipe(path.stem)
        assert recipe.lr > 0 and recipe.iterations > 0


def test_the_learning_rate_warms_up_and_ends_near_zero():
    recipe = load_recipe('nano')
    rates = [learning_rate(recipe, i) for i in range(recipe.iterations)]
    assert rates[0] < recipe.lr / 50 and max(rates) > 0.95 * recipe.lr and rates[-1] < 1e-3 * recipe.lr


@pytest.mark.parametrize(('change', 'said'), [
    ('iteration=3', "did you mean 'iterations'"), ('lr=fast', 'lr'), ('batch=many', 'batch'), ('lr', 'key=value')])
def test_a_wrong_option_is_one_clear_line(toy, tmp_path, capsys, change, said):
    assert main(['nano', '--data', str(toy), '--out', str(tmp_path), '--set', change]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1
    with pytest.raises(RecipeError, match='no recipe'):
        load_recipe('nanno')


def test_missing_data_is_one_clear_line(tmp_path, capsys):
    assert main(['nano', '--data', str(tmp_path), '--out', str(tmp_path / 'out'), '--set', 'processes=1']) == 1
    assert 'no such file' in capsys.readouterr().err
