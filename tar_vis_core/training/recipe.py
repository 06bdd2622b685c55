"""A training recipe: the defaults live here, a YAML file and ``--set`` change them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from tar_vis_core.errors import DataError, TarVisError, near
from tar_vis_core.io.json_files import read_text
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.yaml_files import parse_yaml
from tar_vis_core.models.presets import find_preset
from tar_vis_core.runtime.device import PRECISIONS
from tar_vis_core.training.losses import LossWeights

RECIPES = Path(__file__).parent / 'recipes'

# What ``train`` may name, and how the names of its parameters begin.
PARTS = {'all': '', 'backbone': 'backbone.', 'pixel_decoder': 'pixel_decoder.', 'decoder': 'decoder.',
         'synchronizer': 'decoder.synchronizer.', 'routers': 'decoder.routers.', 'box_masks': 'decoder.box_masks.',
         'tracker': 'tracker.'}


class RecipeError(TarVisError):
    """A recipe is missing, malformed or names an unknown option."""


@dataclass
class Recipe:
    """The options of ``tar-vis train``; every field may stand in the YAML file."""

    preset: str = 'nano'
    classes: str = ''               # a class set, or a text file with one name a line; '': the preset's own
    # COCO files under --data, moved as pseudo-videos where ``clip`` is more than 1. [synth]: made-up videos of class
    # set 'crowd' (data/synth.py). With ``videos`` as well, samples come from both in turn.
    data: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)         # YouTube-VIS files under --data
    mosaic: float = 0.0             # share of stills that are made of four pictures
    skip_bad: bool = False          # an unreadable picture is listed in bad_samples.txt and another one drawn
    workers: int = 0                # processes that make samples; 0: the training process does

    train: list[str] = field(default_factory=lambda: ['all'])   # the parts that train, names of ``PARTS``
    clip: int = 1                   # frames of a sample; TAR and the referring tracker need 2 or more
    # Frames of the video from one of a clip to the next, drawn each time; 0: the same moment again. With [1] alone
    # routers hardly meet a frame on which layers matter more than on another.
    gaps: list[int] = field(default_factory=lambda: [1])
    reroute_first: bool = False     # a clip's first frame is decoded twice, then routed by its own plain queries
    iterations: int = 1000
    batch: int = 8                  # samples of an iteration, shared out over the processes
    processes: int = 2              # CPU processes of one thread each; torchrun's number goes first
    precision: str = 'float32'      # or mixed: bfloat16, on CUDA also float16
    seed: int = 0
    checkpoint_every: int = 250

    lr: float = 5e-4
    warmup: int = 200               # iterations of linear warm-up
    steps: list[int] = field(default_factory=list)          # a tenth of the rate from each on; none: cosine to zero
    weight_decay: float = 0.05      # none on norms, biases and embeddings
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    grad_clip: float = 10.0         # norm of all gradients together
    ema: float = 0.0                # decay of the averaged weights, which are what is kept; 0: the last ones
    backbone_from: float = 0.0      # fraction of the run at which the backbone starts to train; over 1: never
    backbone_lr: float = 0.1        # factor on lr
    backbone_decay: float = 0.05    # weight decay of the backbone
    backbone_frozen_blocks: int = 0  # first blocks of a MobileNetV2 that never train

    # canvas of stills, pseudo-videos and made-up videos: (from this fraction of the run on, height, width)
    sizes: list[list[float]] = field(default_factory=lambda: [[0.0, 256, 384]])
    short_sides: list[int] = field(default_factory=lambda: [360, 480])      # of ``videos``: one is drawn for a clip
    max_side: int = 1333
    crop: list[int] = field(default_factory=list)           # sides of random crops of ``videos``: from, to; []: none

    price: float = 0.05             # of a layer, in units of loss, for Routers that look at the picture
    rest_cost: float = 0.0          # units of loss that the frames behind a rest lose, for the same Routers
    tracker_noise: float = 0.0      # how often the referring tracker starts from mixed queries
    loss: LossWeights = field(default_factory=LossWeights)

    def trains(self, name: str) -> bool:
        """Return whether the parameter of that name trains at some time. Stills leave routing and tracker out."""
        if self.clip == 1 and name.startswith((PARTS['synchronizer'], PARTS['routers'], PARTS['tracker'])):
            return False
        return name.startswith(tuple(PARTS[part] for part in self.train))


def load_recipe(name: str, changes: Iterable[str] | None = None) -> Recipe:
    """Return a recipe by packaged name or YAML path, with ``key=value`` or ``loss.key=value`` changes.

    Raise RecipeError for unknown keys, values of another type, and combinations that make no sense.
    """
    path = user_path(name) if name.endswith(('.yaml', '.yml')) else RECIPES / f'{name}.yaml'
    if not path.is_file():
        known = ', '.join(sorted(p.stem for p in RECIPES.glob('*.yaml')))
        raise RecipeError(f'no recipe {name!r}; give a YAML file or one of: {known}')
    try:
        values = parse_yaml(read_text(path), str(path)) or {}
    except DataError as error:
        raise RecipeError(str(error)) from error
    if not isinstance(values, dict):
        raise RecipeError(f'{path}: expected options and their values, found {type(values).__name__}')
    for change in changes or ():
        key, separator, text = change.partition('=')
        if not separator:
            raise RecipeError(f'--set {change!r}: expected key=value')
        group, _, inner = key.partition('.')
        try:
            value = parse_yaml(text, f'--set {change!r}')
        except DataError as error:
            raise RecipeError(str(error)) from error
        if inner:
            values.setdefault(group, {})[inner] = value
        else:
            values[key] = value
    values['loss'] = LossWeights(**_checked(values.get('loss', {}), LossWeights(), f'{path.name}: loss'))
    recipe = Recipe(**_checked(values, Recipe(), path.name))
    _check(recipe, path.name)
    return recipe


def _checked(values: dict, defaults: Recipe | LossWeights, where: str) -> dict:
    """Return ``values`` checked for names and types of the fields of ``defaults``."""
    if not isinstance(values, dict):
        raise RecipeError(f'{where} is {values!r}, expected options and their values')
    known, checked = {f.name: getattr(defaults, f.name) for f in fields(defaults)}, {}
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f'{where}: unknown option {key!r}{near(key, known)}')
        kind = type(known[key])
        try:
            checked[key] = float(value) if kind is float else value     # YAML reads 5e-4 as text
        except (TypeError, ValueError) as error:
            raise RecipeError(f'{where}: {key} is {value!r}, expected a number') from error
        if type(checked[key]) is not kind:
            raise RecipeError(f'{where}: {key} is {value!r}, expected {kind.__name__}')
    return checked


def _check(recipe: Recipe, where: str) -> None:
    for part in recipe.train:
        if part not in PARTS:
            raise RecipeError(f'{where}: train names {part!r}, expected of {", ".join(PARTS)}')
    if recipe.precision not in PRECISIONS:
        raise RecipeError(f'{where}: precision is {recipe.precision!r}, expected one of {", ".join(PRECISIONS)}')
    if not recipe.data and not recipe.videos:
        raise RecipeError(f'{where}: neither data nor videos name an annotation file')
    if min(recipe.clip, recipe.batch, recipe.processes, recipe.iterations) < 1:
        raise RecipeError(f'{where}: clip, batch, processes and iterations must be at least 1')
    if recipe.trains(PARTS['tracker']) and find_preset(recipe.preset).tracker == 'dynamic_anchors':
        raise RecipeError(f'{where}: the tracker of DVIS-DAQ (preset {recipe.preset}) cannot be trained yet, what is '
                          "missing is in docs/reference/models.md; expected 'clip: 1' or other parts in train")
    if any(min(size[1:]) < 16 for size in recipe.sizes):
        raise RecipeError(f'{where}: sizes is {recipe.sizes}, expected canvases of at least 16x16')
    if not recipe.gaps or min(recipe.gaps) < 0 or not max(recipe.gaps):
        raise RecipeError(f'{where}: gaps is {recipe.gaps}, expected whole numbers from 0, not all 0')
    if recipe.crop and (len(recipe.crop) != 2 or not 0 < recipe.crop[0] <= recipe.crop[1]):
        raise RecipeError(f'{where}: crop is {recipe.crop}, expected two sides in pixels, the smaller first')


def changed_options(recipe: Recipe, other: dict) -> list[str]:
    """Return the names of the options in which ``other``, a recipe as a dictionary, differs from ``recipe``."""
    return [name for name, value in asdict(recipe).items() if other.get(name) != value]
