"""A training recipe: the defaults live here, a YAML file and ``--set`` change them."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

from tar_vis_core.errors import TarVisError
from tar_vis_core.training.losses import LossWeights

RECIPES = Path(__file__).parent / 'recipes'


class RecipeError(TarVisError):
    """A recipe is missing, malformed or names an unknown option."""


@dataclass
class Recipe:
    """What ``tar-vis train`` does; every field may stand in the YAML file."""

    preset: str = 'nano'
    # COCO files under --data; [synth]: made-up videos of class set 'crowd' (data/synth.py)
    data: list[str] = field(default_factory=lambda: ['train/instances_train.json'])
    clip: int = 1                   # frames per sample: 1 trains on stills, 2 or more trains TAR on pseudo-videos
    iterations: int = 1000
    batch: int = 4                  # samples per process and iteration
    processes: int = 2              # CPU processes of one thread each; gradients are averaged
    lr: float = 5e-4
    warmup: int = 200               # iterations of linear warm-up, then cosine to zero
    weight_decay: float = 0.05      # none on norms, biases, embeddings and the backbone
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    grad_clip: float = 10.0
    ema: float = 0.998
    # (from this fraction of the run on, height, width)
    sizes: list[list[float]] = field(default_factory=lambda: [[0.0, 256, 384]])
    backbone_from: float = 2.0      # fraction of the run at which the backbone starts to train; over 1: never
    backbone_lr: float = 0.1        # factor on lr
    backbone_frozen_blocks: int = 3  # the first blocks never train
    freeze_encoder: bool = False    # True: only the decoder with its routing trains
    precision: str = 'float32'      # or bfloat16 autocast
    gumbel_tau: float = 0.0         # temperature of the routers' training noise; 0: none
    budget_weight: float = 0.0      # times (mean execute probability - target)^2; 0: the paper's recipe
    budget_target: float = 0.5
    seed: int = 0
    checkpoint_every: int = 250
    loss: LossWeights = field(default_factory=LossWeights)


def load_recipe(name: str, changes: list[str] | None = None) -> Recipe:
    """A recipe by packaged name or YAML path, with ``key=value`` changes. Unknown keys are errors."""
    path = Path(name) if name.endswith(('.yaml', '.yml')) else RECIPES / f'{name}.yaml'
    if not path.is_file():
        known = ', '.join(sorted(p.stem for p in RECIPES.glob('*.yaml')))
        raise RecipeError(f'no recipe {name!r}; give a YAML file or one of: {known}')
    values = yaml.safe_load(path.read_text()) or {}
    for change in changes or ():
        key, separator, text = change.partition('=')
        if not separator:
            raise RecipeError(f'--set {change!r}: expected key=value')
        values[key] = yaml.safe_load(text)
    known = {f.name: f for f in fields(Recipe)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise RecipeError(f'{path.name}: unknown option {key!r}' + (f', did you mean {near[0]!r}?' if near else ''))
    defaults = asdict(Recipe())
    for key, value in values.items():
        if key == 'loss':
            values[key] = LossWeights(**value)
        elif isinstance(defaults[key], float):
            try:
                values[key] = float(value)     # YAML reads 5e-4 as text
            except (TypeError, ValueError) as error:
                raise RecipeError(f'{path.name}: {key} is {value!r}, expected a number') from error
        elif not isinstance(value, type(defaults[key])):
            raise RecipeError(f'{path.name}: {key} is {value!r}, expected {type(defaults[key]).__name__}')
    return Recipe(**values)
