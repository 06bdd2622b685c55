"""What a decoder computes with rows of queries, by the compiled kernels of a CPU, in float32 and without gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.kernels.tapes import ATTENTION, CELLS, GRIDS, MASKS, NORM, memory, run


def _read(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return tensors as the kernels read them; none if there is none."""
    kernels.refuse_tracing()
    return [None if t is None else t.detach().to(torch.float32).contiguous() for t in tensors]


def layer_norm(x: Tensor, norm: nn.LayerNorm, added: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the layer norm of ``x (..., C)``, and if there is something to add the sum of both, ``(..., C)``.

    C is a multiple of ``maps.PANEL``.
    """
    x, weight, bias, added = _read(x, norm.weight, norm.bias, added)
    found, total = memory(*x.shape), None if added is None else memory(*x.shape)
    run(NORM, (x, weight, bias, added, found, total), (x.numel() // len(weight), len(weight)), norm.eps)
    return found, total


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, keep: Tensor | None = None) -> Tensor:
    """Return attention as :func:`kernels.attention` does; ``keep`` is what :func:`attended_cells` returns."""
    query, key, value, keep = _read(query, key, value, keep)
    (n, queries, dim), found = query.shape, memory(*query.shape)
    run(ATTENTION, (query, key, value, keep, found, None), (n, queries, key.shape[1], heads, dim // heads))
    return found


def attended_cells(embeddings: Tensor, features: Tensor, boxes: Tensor | None = None) -> Tensor:
    """Return which cells of a map each query attends to, a byte for each query and cell: N Q h w bytes.

    A query attends where its mask, the product of ``embeddings (N, Q, C)`` and ``features (N, h, w, C)``, is not
    negative, or everywhere if it is so nowhere. ``boxes (N, Q, 4)`` limit both to what their margin touches
    (``proposals.touched_cells``). C is a multiple of ``maps.PANEL``.
    """
    embeddings, features, boxes = _read(embeddings, features, boxes)
    (n, queries, channels), (height, width) = embeddings.shape, features.shape[1:3]
    keep = memory(-(-n * queries * height * width // 4))
    run(CELLS, (embeddings, features, boxes, keep, None, None), (n, queries, height, width, channels))
    return keep


def grid_in(boxes: Tensor, points: int) -> Tensor:
    """Return the places of grids of so many points a side in ``boxes (K, 4)`` with their margin.

    They are ``(K points, points, 2)``, as :func:`maps.sample_map` takes those that are ``made``.
    """
    boxes, = _read(boxes)
    places = memory(len(boxes) * points, points, 2)
    run(GRIDS, (boxes, places, None, None, None, None), (len(boxes), points))
    return places


def draw(grids: Tensor, boxes: Tensor, products: Tensor) -> Tensor:
    """Return masks ``(K, h, w)``: ``products (K, h, w)`` and what their grids add to them inside their boxes.

    Of ``grids (K, G, G, C)`` the first channel counts; what they are is said in ``box_masks.on_cells``, and of
    ``boxes (K, 4)`` in ``proposals.cropped``.
    """
    grids, boxes, products = _read(grids, boxes, products)
    count, height, width = products.shape
    found = memory(count, height, width)
    run(MASKS, (grids, boxes, products, found, None, None), (count, *grids.shape[2:], height, width))
    return found
