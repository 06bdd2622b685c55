"""Deformable attention as its formula reads, for the tests that restate networks."""

import math

import torch


def sample(image, x, y):
    """Bilinear value of ``(C, h, w)`` at pixel coordinates whose integers are pixel centres; zero outside."""
    _, h, w = image.shape
    left, top = math.floor(x), math.floor(y)
    value = image.new_zeros(image.shape[0])
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < h and 0 <= column < w:
            value += (1 - abs(y - row)) * (1 - abs(x - column)) * image[:, row, column]
    return value


def centres(shapes):
    """(x, y) of every cell of every level."""
    return [((column + 0.5) / w, (row + 0.5) / h) for h, w in shapes for row in range(h) for column in range(w)]


def plain_deformable_attention(module, query, value, reference, shapes):
    """``query (Sq, D)``, ``value (Sv, D)``, ``reference`` a list of (x, y): query, head, level and point in turn."""
    heads, levels, points = module.heads, module.levels, module.points
    offsets = module.sampling_offsets(query).view(-1, heads, levels, points, 2).tolist()
    weights = module.attention_weights(query).view(-1, heads, levels * points).softmax(-1)
    weights = weights.view(-1, heads, levels, points).tolist()
    maps, start = [], 0
    for h, w in shapes:
        projected = module.value_proj(value[start:start + h * w])
        maps.append(projected.view(h, w, heads, -1).permute(2, 3, 0, 1))
        start += h * w
    rows = []
    for s, (centre_x, centre_y) in enumerate(reference):
        parts = []
        for head in range(heads):
            total = value.new_zeros(value.shape[1] // heads)
            for level, (h, w) in enumerate(shapes):
                for point in range(points):
                    dx, dy = offsets[s][head][level][point]
                    x, y = (centre_x + dx / w) * w - 0.5, (centre_y + dy / h) * h - 0.5
                    total += weights[s][head][level][point] * sample(maps[level][head], x, y)
            parts.append(total)
        rows.append(torch.cat(parts))
    return module.output_proj(torch.stack(rows))
