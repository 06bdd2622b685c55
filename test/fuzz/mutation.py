"""Changes to bytes and to JSON that files and messages suffer, or that somebody makes on purpose."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63 - 1,
           2**64 - 1)
SPECIAL = float('nan'), float('inf'), -1, 0, .5, 1e9, 1e12, -1e300, 2**31, 10**400
VALUES = (None, True, False, 0, -1, 1, 2, 2.5, -1e300, 1e12, 2**31, 2**63, 10**400, float('nan'), float('inf'), '', '1',
          'a\nb', 'ß\ud800', '../..', 'x' * 5000, [], [[]], [None], [1, 2], {}, {'id': 1},
          {'size': [1, 1], 'counts': '0'})


def mutate_bytes(rng: np.random.Generator, seeds: list[bytes]) -> bytes:
    """Return one of the seeds with some changes: bits, numbers, and pieces cut, doubled, moved and mixed."""
    data = bytearray(seeds[rng.integers(len(seeds))])
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(max(1, len(data)) if rng.random() < .5 else min(max(1, len(data)), 120)))
        size = int(rng.integers(1, 2 + min(64, len(data)) if rng.random() < .8 else 2 + len(data)))
        match rng.integers(9):
            case 0:
                data[at:at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << int(rng.integers(8))])
            case 1 | 2:
                width, order = int(rng.choice([1, 2, 4, 8])), 'big' if rng.random() < .5 else 'little'
                number = NUMBERS[rng.integers(len(NUMBERS))] % (1 << 8 * width)
                data[at:at + width] = number.to_bytes(width, order)
            case 3:
                del data[at:at + size]
            case 4:
                data[at:at] = data[at:at + size]
            case 5:
                data[at:at + size] = rng.bytes(size)
            case 6:
                other = seeds[rng.integers(len(seeds))]
                place = int(rng.integers(max(1, len(other))))
                data[at:at + size] = other[place:place + size]
            case 7:
                del data[max(at, len(data) // 4):]
            case 8:
                data[at:at + size] = bytes(size)
    return bytes(data[:1 << 20])


def mutate_json(rng: np.random.Generator, content: Any) -> bytes:
    """Return JSON text of the content with some fields changed, deleted, doubled or exchanged; sometimes damaged."""
    content = copy.deepcopy(content)
    for _ in range(int(rng.integers(1, 5))):
        holder, key = _place(rng, content)
        if holder is None:
            continue
        match rng.integers(5):
            case 0 | 1 if type(holder[key]) in (int, float) and rng.random() < .7:
                holder[key] = (*SPECIAL, holder[key] + 1, -holder[key])[rng.integers(len(SPECIAL) + 2)]
            case 0 | 1:
                holder[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
            case 2:
                del holder[key]
            case 3:
                if isinstance(holder, list):
                    holder.append(copy.deepcopy(holder[key]))
            case 4:
                other, place = _place(rng, content)
                if other is not None:
                    holder[key] = copy.deepcopy(other[place])
    text = json.dumps(content, ensure_ascii=bool(rng.random() < .5)).encode('utf-8', 'surrogatepass')
    return mutate_bytes(rng, [text]) if rng.random() < .2 else text


def _place(rng: np.random.Generator, content: Any) -> tuple[Any, Any]:
    """A random list or object in the content, and a key of it: any, or one on a random way down."""
    if rng.random() < .5:
        places = list(_places(content))
        return places[rng.integers(len(places))] if places else (None, None)
    holder, key = None, None
    while isinstance(content, dict | list) and content:
        holder, (key, content) = content, list(_items(content))[rng.integers(len(content))]
        if rng.random() < .25:
            break
    return holder, key


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in _items(content) if isinstance(content, dict | list) else ():
        yield content, key
        yield from _places(value)


def _items(content: dict | list) -> Iterable[tuple[Any, Any]]:
    return content.items() if isinstance(content, dict) else enumerate(content)
