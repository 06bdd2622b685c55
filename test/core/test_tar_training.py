"""How TAR trains where the paper leaves a choice: each recipe option does what it says."""

import torch

from tar_vis_core.data.synth import SynthVideos
from tar_vis_core.models.presets import find_preset
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.training import objective
from tar_vis_core.training.recipe import load_recipe
from tar_vis_core.training.starting_weights import start_model
from tar_vis_core.weights.loading import save_tensors


def tiny_crowd(preset: str = 'crowd') -> VideoInstanceModel:
    torch.manual_seed(0)
    return VideoInstanceModel(find_preset(preset))


def losses_of_a_clip(model):
    """Loss and log of two frames that follow each other."""
    clip = SynthVideos((64, 96), 2, length=1, seed=3)[0]
    return objective.batch_losses(model, [clip], load_recipe('crowd_tar'), 0.0, (0, 0))


def test_previous_queries_carry_no_gradient():
    model, seen = tiny_crowd(), []
    supervised = model.supervised
    model.supervised = lambda features, previous, *args: seen.append(previous) or supervised(features, previous, *args)
    losses_of_a_clip(model)
    assert seen[0] is None and not seen[1].queries.requires_grad


def test_weights_without_routers_keep_their_synchronizer(tmp_path):
    torch.manual_seed(1)
    before = VideoInstanceModel(find_preset('crowd')).state_dict()
    state = {name: value for name, value in before.items() if not name.startswith('decoder.routers.')}
    save_tensors(state, tmp_path / 'start.safetensors', {'preset': 'crowd', 'kind': 'model'})
    recipe = load_recipe('crowd_tar')
    model, notes = start_model(recipe, tmp_path / 'start.safetensors')
    assert len(notes) == 1 and 'without routers; starts afresh' in notes[0]
    after = model.state_dict()
    assert all(torch.equal(value.half().float(), after[name].half().float()) for name, value in state.items())
