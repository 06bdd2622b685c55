"""How TAR trains where the paper leaves a choice: each recipe option does what it says."""

import pytest
import torch
from test_training import SIZE, answer, two_instances

from tar_vis_core.data.synth import SynthVideos
from tar_vis_core.models.masked_decoder import SupervisedOutput
from tar_vis_core.models.presets import find_preset
from tar_vis_core.models.temporal_routing import EXECUTE
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.training import objective
from tar_vis_core.training.recipe import RecipeError, load_recipe
from tar_vis_core.training.starting_weights import start_model
from tar_vis_core.training.tracker_losses import TrackedFrame
from tar_vis_core.weights.loading import save_tensors


def tiny_crowd(preset: str = 'crowd') -> VideoInstanceModel:
    torch.manual_seed(0)
    return VideoInstanceModel(find_preset(preset))


def losses_of_a_clip(model, *changes):
    """Loss and log of two frames that follow each other."""
    clip = SynthVideos((64, 96), 2, length=1, seed=3)[0]
    return objective.batch_losses(model, [clip], load_recipe('crowd_tar', changes), 0.0, (0, 0))


def test_previous_queries_carry_a_gradient_only_where_they_are_not_detached():
    model, seen = tiny_crowd(), []
    supervised = model.supervised
    model.supervised = lambda features, previous, *args: seen.append(previous) or supervised(features, previous, *args)
    for detach in (True, False):
        seen.clear()
        losses_of_a_clip(model, f'detach_previous={str(detach).lower()}')
        assert seen[0] is None and seen[1].requires_grad is not detach


def test_an_instance_keeps_its_slot_behind_the_synchronizer(monkeypatch):
    model, taken = tiny_crowd(), []
    charge = objective.frame_losses
    monkeypatch.setattr(objective, 'frame_losses', lambda *args: taken.append(args[-1]) or charge(*args))
    losses_of_a_clip(model, 'keep_slots=true')
    assert taken[0] is None and len(taken[1][0]) == 9       # of ten depths the first is not synchronised
    losses_of_a_clip(model)
    assert taken[2:] == [None, None]

    target, pixels = two_instances(), SIZE[0] * SIZE[1]

    def frame(order):
        logits, masks = answer(target, order)
        said = SupervisedOutput([logits[None]] * 10, [masks.flatten(1)[None]] * 10, torch.zeros(1), None, None)
        return TrackedFrame(said, torch.eye(pixels).view(1, pixels, *SIZE), [target])

    # the second frame would rather have them in slots 0 and 1
    pairs = objective.kept_pairs(model, [frame([3, 1]), frame([0, 1])], load_recipe('crowd_tar'), (0, 0))
    assert [[x.tolist() for x in pair] for pair in pairs[0]] == [[[3, 1], [0, 1]]] * 9


@pytest.mark.parametrize('better', [True, False])
def test_exit_losses_move_a_shared_router_to_what_costs_less(monkeypatch, better):
    model = tiny_crowd('crowd:routers=shared')
    charge = objective.frame_losses

    def made_up(*args):
        each = charge(*args)
        depths = torch.arange(10.0).expand_as(each['class'])
        return {**each, 'class': 0 * each['class'] + (-depths if better else depths)}    # with each layer, less or more

    monkeypatch.setattr(objective, 'frame_losses', made_up)
    recipe = 'preset=crowd:routers=shared', 'exit_losses=true', 'loss.mask=0', 'loss.dice=0'
    total, _ = losses_of_a_clip(model, *recipe)
    total.backward()
    execute = model.decoder.routers.bias2.grad[0, 0, EXECUTE]
    assert (execute < 0) == better      # the step goes against the gradient


def test_exit_losses_need_a_shared_router():
    load_recipe('crowd_tar', ['preset=crowd:routers=shared', 'exit_losses=true'])
    with pytest.raises(RecipeError, match="expected one with 'routers=shared'"):
        load_recipe('crowd_tar', ['exit_losses=true'])


def test_weights_without_routers_keep_their_synchronizer(tmp_path):
    torch.manual_seed(1)
    before = VideoInstanceModel(find_preset('crowd')).state_dict()
    state = {name: value for name, value in before.items() if not name.startswith('decoder.routers.')}
    save_tensors(state, tmp_path / 'start.safetensors', {'preset': 'crowd', 'kind': 'model'})
    recipe = load_recipe('crowd_tar', ['preset=crowd:routers=shared'])
    model, notes = start_model(recipe, tmp_path / 'start.safetensors')
    assert len(notes) == 1 and 'without routers; starts afresh' in notes[0]
    after = model.state_dict()
    assert all(torch.equal(value.half().float(), after[name].half().float()) for name, value in state.items())
    assert model.decoder.routers.shared
