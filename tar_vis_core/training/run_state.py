"""State of a run on disk, from which it resumes bit for bit, and the weights that it writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tar_vis_core.errors import one_line
from tar_vis_core.io.whole_files import WriteError, replacing, write_text
from tar_vis_core.models.presets import ModelConfig
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.training.recipe import Recipe, RecipeError
from tar_vis_core.weights.loading import save_tensors


@dataclass
class Run:
    """The changing parts of a run. Random numbers follow from the seed and the iteration, and need no state."""

    model: VideoInstanceModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: dict[str, Tensor]
    iteration: int = 0          # the next one

    def save(self, path: Path, recipe: Recipe) -> None:
        """Write the state beside ``path``, then move it there: a run killed at any time leaves a whole file."""
        save_whole({'model': self.model.state_dict(), 'optimizer': self.optimizer.state_dict(),
                    'scaler': self.scaler.state_dict(), 'average': self.average, 'iteration': self.iteration,
                    'recipe': asdict(recipe)}, path)

    def restore(self, path: Path) -> dict[str, Any]:
        """Take the state from ``path``. Return the recipe that it was made by, as a dictionary."""
        try:
            saved = torch.load(path, map_location='cpu', weights_only=True)
            self.model.load_state_dict(saved['model'])
            self.optimizer.load_state_dict(saved['optimizer'])
            self.scaler.load_state_dict(saved['scaler'])
            for name, value in self.average.items():
                value.copy_(saved['average'][name])
            self.iteration = saved['iteration']
            return saved['recipe']
        except (RuntimeError, ValueError, KeyError) as error:
            raise RecipeError(f'{path} does not fit this recipe: {one_line(error)[:200]}') from error


def save_whole(content: Any, path: Path) -> None:
    """Write what torch can save, whole or not at all. Raise WriteError."""
    with replacing(path) as half:
        try:
            torch.save(content, half)
        except RuntimeError as error:       # torch's own writer reports a full disk like this
            raise WriteError(f'cannot write {path}: {one_line(error)[:100]}; is the disk full?') from error


def export(state: Mapping[str, Tensor], config: ModelConfig, preset: str, path: Path) -> None:
    """Write weights for use, floating point numbers in half precision."""
    metadata = {'kind': 'model', 'preset': preset, 'class_set': config.class_set,
                'class_names': '\n'.join(config.class_names)}
    save_tensors({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path, metadata)


class LossLog:
    """The CSV file of the terms of every iteration."""

    def __init__(self, path: Path, start: int) -> None:
        """Continue after iteration ``start - 1``: rows that a killed run wrote after its checkpoint are removed."""
        lines = path.read_text().splitlines(keepends=True) if start and path.is_file() else []
        kept = lines[:1] + [line for line in lines[1:] if line.endswith('\n') and int(line.partition(',')[0]) < start]
        write_text(path, ''.join(kept))
        self._names = lines[0].strip().split(',') if lines else None
        self._path, self._rows = path, io.StringIO(newline='')
        self._writer = None

    def add(self, row: dict[str, float]) -> None:
        """Add one iteration, for the next flush; the first row of a file names its terms."""
        if self._writer is None:
            self._writer = csv.DictWriter(self._rows, self._names or list(row), restval='', extrasaction='ignore',
                                          lineterminator='\n')
            if self._names is None:
                self._writer.writeheader()
        self._writer.writerow({k: f'{v:.5g}' for k, v in row.items()})

    def flush(self) -> None:
        """Append the rows since the last call to the file. Raise WriteError."""
        try:
            with self._path.open('a', newline='') as file:
                file.write(self._rows.getvalue())
        except OSError as error:
            raise WriteError(f'cannot write {self._path}: {error.strerror}') from error
        self._rows.seek(0)
        self._rows.truncate()
