"""Two files of ``tar-vis bench`` beside each other, and the guard against becoming slower.

Times of two machines, or of one machine on two days, say little; ratios between lines of one run say more. The guard
looks at these alone.
"""

from __future__ import annotations

from pathlib import Path

from tar_vis_core.benchmark.contenders import FULL, REFERENCE, STAGES, TAR
from tar_vis_core.io.json_files import read_json

# what a ratio's name divides: how often the time of the second line goes into that of the first
RATIOS = {f'{FULL} over {REFERENCE}': (REFERENCE, FULL), f'{TAR} over {FULL}': (FULL, TAR)}
TOLERANCE = 0.2


def read_figures(path: Path) -> dict:
    """The figures in a file; ValueError where they are not of ``tar-vis bench``."""
    try:
        figures = read_json(path)
        if {'configuration', 'machine', 'lines'} <= figures.keys() and REFERENCE in figures['lines']:
            return figures
    except (AttributeError, TypeError):
        pass
    raise ValueError(f'{path} holds no figures of this version of tar-vis bench; expected what --json writes')


def ratios(figures: dict) -> dict[str, float]:
    """How many times as fast a line is as the one before it, by median; only where both are there."""
    times = {name: line['median_ms']['total'] for name, line in figures['lines'].items()}
    return {name: times[slow] / times[fast] for name, (slow, fast) in RATIOS.items() if {slow, fast} <= times.keys()}


def quotient(above: float, below: float) -> float | None:
    """None where there is nothing to divide by."""
    return above / below if below else None


def times_of_both(a: dict, b: dict) -> dict[str, dict[str, float | None]]:
    """For every line of both, ``b`` over ``a``: median milliseconds by stage and in all, and frames a second."""
    found = {}
    for name in (n for n in a['lines'] if n in b['lines']):
        before, after = a['lines'][name], b['lines'][name]
        found[name] = {s: quotient(after['median_ms'][s], before['median_ms'][s]) for s in (*STAGES, 'total')}
        found[name]['frames/s'] = quotient(after['fps'], before['fps'])
    return found


def print_comparison(paths: tuple[Path, Path]) -> None:
    """What changed from the first file to the second."""
    a, b = (read_figures(path) for path in paths)
    for letter, path, figures in zip('AB', paths, (a, b)):
        print(f'{letter}  {path}: {figures["title"]}; {figures["date"]}')
    columns = (*STAGES, 'total', 'frames/s')
    print(f'\nB over A; milliseconds below 1 are gains\n{"line":<18}' + ''.join(f'{c:>15}' for c in columns))
    for name, row in times_of_both(a, b).items():
        print(f'{name:<18}' + ''.join(f'{"-" if row[c] is None else format(row[c], ".2f"):>15}' for c in columns))
    of_a, of_b = ratios(a), ratios(b)
    print(f'\n{"times as fast":<34}{"A":>8}{"B":>8}')
    for name in RATIOS:
        print(f'{name:<34}' + ''.join(f'{format(r[name], ".2f") if name in r else "-":>8}' for r in (of_a, of_b)))


def fallen(stored: dict, now: dict, tolerance: float) -> list[str]:
    """A line of text for each ratio that is below the stored one by more than this share of it.

    Raises ValueError where a line of the stored figures was not measured.
    """
    found, found_now = [], ratios(now)
    for name, before in ratios(stored).items():
        if name not in found_now:
            raise ValueError(f'{name} is stored but was not measured; the model has lost its routers')
        if found_now[name] < before * (1 - tolerance):
            found.append(f'{name}: {found_now[name]:.2f} times as fast, stored {before:.2f}: fallen by '
                         f'{1 - found_now[name] / before:.0%}, allowed {tolerance:.0%}')
    return found
