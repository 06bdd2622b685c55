"""Several processes that train one model: started by this command on CPUs, or by torchrun."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tar_vis_core.errors import TarVisError, one_line
from tar_vis_core.runtime.allocator import keep_freed_memory
from tar_vis_core.runtime.device import pick_device


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    device: torch.device


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return {'RANK', 'WORLD_SIZE', 'LOCAL_RANK'} <= os.environ.keys()


def join_processes(rank: int, size: int, device: str, rendezvous: Path) -> World:
    """Meet the other processes: torchrun's, or ``size`` of this command at the file ``rendezvous``.

    ``device`` is as :func:`.pick_device` takes it; with CUDA every process has its own GPU.
    """
    chosen, meeting = pick_device(device), {}
    if under_torchrun():
        rank, size = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
        if chosen.type == 'cuda':
            chosen = pick_device(f'cuda:{os.environ["LOCAL_RANK"]}')
    else:
        meeting = {'init_method': rendezvous.resolve().as_uri(), 'rank': rank, 'world_size': size}
    if chosen.type == 'cuda':
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()
        torch.set_num_threads(1)       # with more, the order of sums and so the result depends on their number
    if size > 1:
        try:
            dist.init_process_group('nccl' if chosen.type == 'cuda' else 'gloo', **meeting)
        except dist.DistError as error:
            raise TarVisError(f'the {size} processes of the training cannot meet: {one_line(error)}') from error
    return World(rank, size, chosen)


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of every process's ``values``, without gradient."""
    values = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients over all processes, in one message. A parameter without any gradient stays without."""
    if not dist.is_initialized():
        return
    there = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    flat = torch.cat([*((p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters), there])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([*(p.numel() for p in parameters), len(parameters)])
    for parameter, part, somewhere in zip(parameters, parts[:-1], parts[-1].tolist(), strict=True):
        parameter.grad = part.view_as(parameter) if somewhere else None
