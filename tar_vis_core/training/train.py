"""``tar-vis train``: the command line, and the processes that it starts."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import torch.multiprocessing as mp

from tar_vis_core.errors import TarVisError
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import make_folder
from tar_vis_core.runtime.device import pick_device
from tar_vis_core.training.distributed import under_torchrun
from tar_vis_core.training.loop import TrainRun, train_process
from tar_vis_core.training.recipe import RECIPES, Recipe, RecipeError, load_recipe


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog='tar-vis train', description='Train a model by a recipe. Several GPUs: '
        'torchrun --nproc_per_node N -m tar_vis_core.training.train RECIPE ...')
    known = ', '.join(sorted(path.stem for path in RECIPES.glob('*.yaml')))
    made.add_argument('recipe', help=f'packaged recipe ({known}) or a YAML file')
    made.add_argument('--data', type=user_path, default=Path(),
                      help="folder under which the recipe's annotation files lie (default: here)")
    made.add_argument('--out', type=user_path, required=True, help='folder for checkpoint, log and weights')
    made.add_argument('--init', type=user_path,
                      help='start from these weights (safetensors), of a whole model or of a backbone; class heads of '
                      'other classes start with fresh weights')
    made.add_argument('--backbone', type=user_path,
                      help='start the backbone from this file: NanoDet-Plus-m (nano), DeepLabV3 MobileNetV2 (crowd)')
    made.add_argument('--device', default='auto', help='auto, cpu or cuda:N')
    made.add_argument('--resume', action='store_true', help='continue from the last checkpoint in --out')
    made.add_argument('--stop-at', type=int, metavar='N', help='end after iteration N; continue with --resume')
    made.add_argument('--set', action='append', metavar='KEY=VALUE', help='change an option of the recipe')
    return made


def _worker(rank: int, recipe: Recipe, run: TrainRun) -> None:
    try:
        train_process(rank, recipe.processes, recipe, run)
    except (TarVisError, ValueError, OSError) as error:
        # a data worker's error brings its traceback; the last line says what it is
        print(f'tar-vis train: {str(error).strip().splitlines()[-1]}', file=sys.stderr)
        sys.exit(1)


def main(argv: list[str] | None = None) -> int:
    """Run ``tar-vis train RECIPE --data DIR --out DIR``."""
    args = parser().parse_args(argv)
    run = TrainRun(args.data, args.out, args.init, args.backbone, args.device, args.resume, args.stop_at)
    try:
        recipe = load_recipe(args.recipe, args.set)
        make_folder(args.out)
        alone = under_torchrun() or recipe.processes == 1 or pick_device(args.device).type == 'cuda'
        if not alone and recipe.workers:
            raise RecipeError('workers: processes that this command starts cannot have any; --set processes=1 or '
                              'start it by torchrun')
    except (TarVisError, ValueError) as error:
        print(f'tar-vis train: {error}', file=sys.stderr)
        return 1
    if not under_torchrun():
        (args.out / 'rendezvous').unlink(missing_ok=True)
    if alone:
        recipe.processes = 1
    try:
        if alone:
            _worker(0, recipe, run)
        else:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))   # an orderly end takes the workers along
            mp.spawn(_worker, (recipe, run), recipe.processes, daemon=True)
    except mp.ProcessExitedException:      # it has said why
        return 1
    except SystemExit as stop:
        return int(stop.code)
    return 0


if __name__ == '__main__':
    sys.exit(main())
