"""``tar-vis train``: one loop for stills (the segmenter) and for pseudo-videos (TAR), on CPU processes."""

from __future__ import annotations

import argparse
import csv
import math
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from tqdm import tqdm

from tar_vis_core.data.coco import CocoDataset
from tar_vis_core.data.pseudo_video import PseudoVideoDataset
from tar_vis_core.data.synth import SynthVideos
from tar_vis_core.errors import TarVisError
from tar_vis_core.models.backbones.mobilenet import MobileNetV2
from tar_vis_core.models.video_model import VideoInstanceModel, build_model
from tar_vis_core.training.losses import make_target, semantic_loss, set_losses, total_loss
from tar_vis_core.training.recipe import Recipe, load_recipe
from tar_vis_core.weights.loading import load_weights, save_tensors


def parameter_groups(model: VideoInstanceModel, recipe: Recipe) -> list[dict]:
    """AdamW groups: the backbone slow and undecayed, no decay on vectors and embeddings."""
    groups: dict[str, list[nn.Parameter]] = {'backbone': [], 'plain': [], 'decay': []}
    for name, parameter in model.named_parameters():
        if recipe.freeze_encoder and not name.startswith('decoder.'):
            continue
        if recipe.clip == 1 and name.startswith(('decoder.synchronizer', 'decoder.routers')):
            continue
        kind = ('backbone' if name.startswith('backbone.')
                else 'plain' if parameter.ndim < 2 or 'embed' in name.rsplit('.', 1)[-1] or '.bias' in name
                else 'decay')
        groups[kind].append(parameter)
    return [{'params': groups['backbone'], 'factor': recipe.backbone_lr, 'weight_decay': 0.0},
            {'params': groups['plain'], 'factor': 1.0, 'weight_decay': 0.0},
            {'params': groups['decay'], 'factor': 1.0, 'weight_decay': recipe.weight_decay}]


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Linear warm-up, then cosine to zero."""
    warm = min(1.0, (iteration + 1) / max(1, recipe.warmup))
    return recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * iteration / recipe.iterations))


def freeze(model: VideoInstanceModel, recipe: Recipe, progress: float) -> None:
    """Decide which parameters have gradients at this point of the run."""
    model.requires_grad_(True)
    if recipe.freeze_encoder:
        model.backbone.requires_grad_(False)
        model.pixel_decoder.requires_grad_(False)
    elif progress < recipe.backbone_from:
        model.backbone.requires_grad_(False)
    elif isinstance(model.backbone, MobileNetV2):
        for module in (model.backbone.stem, *model.backbone.blocks[:recipe.backbone_frozen_blocks]):
            module.requires_grad_(False)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean of the gradients over all processes, in one message."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def batch_losses(model: VideoInstanceModel, clips: list[list], recipe: Recipe, phase: tuple[int, int]
                 ) -> tuple[Tensor, dict[str, float]]:
    """Loss of a batch of clips (one frame each for stills) and its terms.

    A clip's first frame is decoded plainly and stays in the loss, so that the plain decoder (first frames, routing
    'full') does not drift away; every later one is synchronised with, and routed by, the queries of the frame before,
    which are detached (memory, stability). With ``clip: 1`` there is only the first frame.
    """
    previous, total, log = None, 0.0, {}
    for frames in zip(*clips, strict=True):
        images = model.normalize(torch.stack([f.image for f in frames]))
        with torch.set_grad_enabled(not recipe.freeze_encoder):
            features = model.encode(images)
        output = model.supervised(features, previous, recipe.gumbel_tau)
        targets = [make_target(f) for f in frames]
        terms = set_losses(output.logits, output.mask_embeddings, features.mask_features, targets, recipe.loss, phase)
        if features.semantic is not None and not recipe.freeze_encoder:
            terms['semantic'] = semantic_loss(features.semantic, targets)
        total = total + total_loss(terms, recipe.loss)
        log.update({k: float(v.detach()) for k, v in terms.items()})
        if output.execute is not None:
            log.update(execute_probability=float(output.execute.detach().mean()),
                       executed=float(output.executed.mean()))
            if recipe.budget_weight:
                total = total + recipe.budget_weight * (output.execute.mean() - recipe.budget_target) ** 2
        previous = output.queries.detach()
    return total / recipe.clip, log


def train_worker(rank: int, recipe: Recipe, args: argparse.Namespace) -> None:
    """The whole run of one process."""
    torch.set_num_threads(1)
    if recipe.processes > 1:
        dist.init_process_group('gloo', init_method=f'file://{args.out / "rendezvous"}', rank=rank,
                                world_size=recipe.processes)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.preset)
    if args.backbone:
        model.backbone.load_deeplab(args.backbone)
    if args.init:
        load_weights(model, args.init)
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), lr=recipe.lr, betas=tuple(recipe.betas))
    start, checkpoint = 0, args.out / 'last.pt'
    if args.resume and checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved['model'])
        optimizer.load_state_dict(saved['optimizer'])
        ema, start = saved['ema'], saved['iteration']
    if recipe.data == ['synth']:
        stills = dataset = SynthVideos(frames=recipe.clip, seed=recipe.seed)
    else:
        stills = CocoDataset([args.data / p for p in recipe.data], seed=recipe.seed)
        dataset = stills if recipe.clip == 1 else PseudoVideoDataset(stills, recipe.clip)
    parameters = [p for g in optimizer.param_groups for p in g['params']]
    log = (args.out / 'log.csv').open('a' if start else 'w', newline='') if rank == 0 else None
    writer, began = None, time.monotonic()
    end = min(args.stop_at or recipe.iterations, recipe.iterations)
    progress = tqdm(range(start, end), initial=start, total=recipe.iterations, disable=rank != 0,
                    mininterval=5, unit='it', desc=recipe.preset)
    for iteration in progress:
        # everything random is a function of (seed, iteration, process): a resumed run goes on as if never stopped
        position = iteration * recipe.processes + rank
        rng = np.random.default_rng([recipe.seed, position])
        torch.manual_seed(recipe.seed * 1_000_003 + position)
        done = iteration / recipe.iterations
        height, width = next((int(h), int(w)) for f, h, w in reversed(recipe.sizes) if done >= f)
        stills.set_epoch(position)
        stills.set_size(height, width)
        items = [dataset[int(i)] for i in rng.integers(len(dataset), size=recipe.batch)]
        clips = [item if isinstance(item, list) else [item] for item in items]
        freeze(model, recipe, done)
        rate = learning_rate(recipe, iteration)
        for group in optimizer.param_groups:
            group['lr'] = rate * group['factor']
        with torch.autocast('cpu', torch.bfloat16, enabled=recipe.precision == 'bfloat16'):
            loss, terms = batch_losses(model, clips, recipe, tuple(rng.integers(2, size=2)))
        if not torch.isfinite(loss):
            torch.save({'clips': [[asdict(f) for f in c] for c in clips], 'iteration': iteration},
                       args.out / f'non_finite_{rank}.pt')
            raise TarVisError(f'iteration {iteration}: the loss is {float(loss.detach())}; the batch is in {args.out}')
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.processes > 1:
            average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, recipe.grad_clip)
        optimizer.step()
        with torch.no_grad():
            decay = min(recipe.ema, (iteration + 1) / (iteration + 10))
            state = model.state_dict()
            torch._foreach_lerp_(list(ema.values()), [state[k] for k in ema], 1 - decay)
        if rank == 0:
            terms = dict(iteration=iteration, lr=rate, loss=float(loss.detach()), **terms)
            if writer is None:
                writer = csv.DictWriter(log, terms.keys(), extrasaction='ignore', restval='')
                if not start:
                    writer.writeheader()
            writer.writerow({k: f'{v:.5g}' for k, v in terms.items()})
            progress.set_postfix({k: f'{v:.3g}' for k, v in terms.items() if k not in ('iteration', 'lr')},
                                 refresh=False)
            if (iteration + 1) % recipe.checkpoint_every == 0 or iteration + 1 == end:
                log.flush()
                torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict(), 'ema': ema,
                            'iteration': iteration + 1}, checkpoint.with_suffix('.tmp'))
                os.replace(checkpoint.with_suffix('.tmp'), checkpoint)
                save_tensors({k: v.half() for k, v in ema.items()}, args.out / 'model.safetensors',
                             {'preset': recipe.preset})
    if rank == 0:
        print(f'{args.out / "model.safetensors"}: {end} of {recipe.iterations} iterations, '
              f'{(time.monotonic() - began) / 60:.1f} minutes')
    if recipe.processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def main(argv: list[str] | None = None) -> int:
    """``tar-vis train RECIPE --data DIR --out DIR``."""
    parser = argparse.ArgumentParser(prog='tar-vis train', description='Train a model by a recipe.')
    parser.add_argument('recipe', help='packaged recipe (nano, nano_tar, crowd, crowd_tar) or a YAML file')
    parser.add_argument('--data', type=Path, default=Path(),
                        help="folder under which the recipe's COCO files lie (default: here)")
    parser.add_argument('--out', type=Path, required=True, help='folder for checkpoint, log and weights')
    parser.add_argument('--backbone', type=Path, help='start the backbone from this DeepLabV3 MobileNetV2 file')
    parser.add_argument('--init', type=Path, help='start from these weights (safetensors)')
    parser.add_argument('--resume', action='store_true', help='go on from the last checkpoint in --out')
    parser.add_argument('--stop-at', type=int, metavar='N', help='end after iteration N; go on with --resume')
    parser.add_argument('--set', action='append', metavar='KEY=VALUE', help='change an option of the recipe')
    args = parser.parse_args(argv)
    try:
        recipe = load_recipe(args.recipe, args.set)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'rendezvous').unlink(missing_ok=True)
        # glibc gives large blocks back to the system after every step otherwise: 1100 against 585 ms a step
        os.environ.setdefault('MALLOC_MMAP_MAX_', '0')
        os.environ.setdefault('MALLOC_TRIM_THRESHOLD_', str(1 << 36))
        if recipe.processes > 1:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))   # an orderly end takes the workers along
            mp.spawn(train_worker, (recipe, args), recipe.processes, daemon=True)
        else:
            train_worker(0, recipe, args)
    except TarVisError as error:
        print(f'tar-vis train: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
