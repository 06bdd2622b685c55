"""The one training loop: stills, routed clips, the referring tracker; one process or several."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from tar_vis_core.errors import TarVisError
from tar_vis_core.runtime.device import compute_context, pick_precision
from tar_vis_core.training.distributed import World, average_gradients, join_processes
from tar_vis_core.training.objective import batch_losses
from tar_vis_core.training.optimizer import learning_rate, parameter_groups, set_trainable, update_average
from tar_vis_core.training.recipe import Recipe, RecipeError, changed_options
from tar_vis_core.training.run_state import LossLog, Run, export, save_whole
from tar_vis_core.training.samples import RunSamples, batches, open_sources
from tar_vis_core.training.starting_weights import start_model


@dataclass(frozen=True)
class TrainRun:
    """Where a run reads and writes, and how far it goes; what it learns by is its recipe."""

    data: Path                      # folder of the recipe's annotation files
    out: Path                       # folder for checkpoint, log and weights
    init: Path | None = None        # weights to start from
    backbone: Path | None = None    # a DeepLabV3 file for a MobileNetV2
    device: str = 'auto'
    resume: bool = False            # go on from the last checkpoint in ``out``
    stop_at: int | None = None      # end after so many iterations


def train_process(rank: int, size: int, recipe: Recipe, paths: TrainRun) -> None:
    """Run all of one process's part."""
    world = join_processes(rank, size, paths.device, paths.out / 'rendezvous')
    train(world, recipe, paths)
    if dist.is_initialized():
        dist.barrier()      # nobody leaves while another still needs it
        dist.destroy_process_group()


def begin_run(world: World, recipe: Recipe, paths: TrainRun) -> Run:
    """Return the run as its recipe starts it, or as its last checkpoint left it."""
    dtype, device = pick_precision(recipe.precision), world.device
    resumes, weights = paths.resume and (paths.out / 'last.pt').is_file(), paths.out / 'model.safetensors'
    # a resumed run has the parts that it had, which may have come from --init
    init = weights if resumes and paths.init is None and weights.is_file() else paths.init
    model, notes = start_model(recipe, init, paths.backbone)
    model.to(device, memory_format=torch.channels_last)     # what convolutions are quickest in, forwards and back
    groups = parameter_groups(model, recipe)
    if not groups:
        raise RecipeError(f'train: {", ".join(recipe.train)} is no part of preset {recipe.preset} that trains on '
                          f'clips of {recipe.clip} frames')
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=tuple(recipe.betas))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    run = Run(model, optimizer, scaler, {k: v.clone() for k, v in model.state_dict().items()})
    if resumes:
        changed = changed_options(recipe, run.restore(paths.out / 'last.pt'))
        notes = [f'going on after {run.iteration} iterations' + (
            f', with other {", ".join(changed)} than before' if changed else '')]
    if world.rank == 0:
        print('\n'.join(notes), end='\n' if notes else '', flush=True)
    return run


def train(world: World, recipe: Recipe, paths: TrainRun) -> None:
    """Iterate, and keep a checkpoint and the weights in ``paths.out``."""
    run = begin_run(world, recipe, paths)
    draws = RunSamples(open_sources(recipe, paths.data, run.model.config), recipe, paths.out / 'bad_samples.txt')
    end, first, began = min(paths.stop_at or recipe.iterations, recipe.iterations), run.iteration, time.monotonic()
    samples = batches(draws, world, first, end)
    curves = LossLog(paths.out / 'log.csv', first) if world.rank == 0 else None
    progress = tqdm(range(first, end), initial=first, total=recipe.iterations, disable=world.rank != 0, mininterval=5,
                    unit='it', desc=recipe.preset)
    for iteration in progress:
        terms = training_step(run, next(samples), recipe, world, paths)
        run.iteration = iteration + 1
        if world.rank:
            continue
        curves.add(terms)
        progress.set_postfix({k: f'{v:.3g}' for k, v in terms.items() if k not in ('iteration', 'lr')}, refresh=False)
        if run.iteration % recipe.checkpoint_every == 0 or run.iteration == end:
            curves.flush()
            # the weights first: a run killed in between makes them again
            export(run.average, run.model.config, recipe.preset, paths.out / 'model.safetensors')
            run.save(paths.out / 'last.pt', recipe)
    if world.rank == 0:
        print(f'{paths.out / "model.safetensors"}: {run.iteration} of {recipe.iterations} iterations, '
              f'{(time.monotonic() - began) / 60:.1f} minutes')


def training_step(run: Run, clips: list, recipe: Recipe, world: World, paths: TrainRun) -> dict[str, float]:
    """Update the weights once. Return the terms of the loss.

    Raise TarVisError for a loss that is not finite, after the batch is written to ``paths.out``.
    """
    model, optimizer, iteration = run.model, run.optimizer, run.iteration
    # all that is random is a function of seed, iteration and process: a resumed run goes on as if never stopped
    phase = tuple(np.random.default_rng([recipe.seed, iteration]).integers(2, size=2).tolist())
    torch.manual_seed(recipe.seed * 1_000_003 + iteration * world.size + world.rank)
    done = iteration / recipe.iterations
    set_trainable(model, recipe, done)
    rate = learning_rate(recipe, iteration)
    for group in optimizer.param_groups:
        group['lr'] = rate * group['factor']
    with compute_context(world.device, pick_precision(recipe.precision)):
        loss, terms = batch_losses(model, clips, recipe, done, phase)
    if not torch.isfinite(loss):
        path = paths.out / f'non_finite_{world.rank}.pt'
        save_whole({'clips': [[asdict(f) for f in c] for c in clips], 'iteration': iteration}, path)
        raise TarVisError(f'iteration {iteration}: the loss is {float(loss.detach())}; its batch is in {path}')
    optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    average_gradients(parameters)
    run.scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, recipe.grad_clip)
    run.scaler.step(optimizer)
    run.scaler.update()
    update_average(run.average, model, recipe.ema, iteration)
    return dict(iteration=iteration, lr=rate, loss=float(loss.detach()), **terms)
