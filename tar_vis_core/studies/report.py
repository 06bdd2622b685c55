"""Result files of a study: table.csv, table.md and plot.png in one folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

from tar_vis_core.io.whole_files import make_folder, replacing, write_text

UNKNOWN = 'n/a'     # the paper does not say, or we do not know what it says


def cell(value: object) -> str:
    """Return a table's cell: numbers to two places, ``n/a`` for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN
    return f'{value:.2f}' if isinstance(value, float) else str(value)


def with_bounds(row: dict[str, object], name: str) -> str:
    """Return a cell, with the bounds of its interval if they are known."""
    bounds = [cell(row.get(f'{name}: {end}')) for end in ('low', 'high')]
    return cell(row[name]) + ('' if UNKNOWN in bounds else f' ({bounds[0]} to {bounds[1]})')


def write_report(folder: Path, title: str, rows: Sequence[dict[str, object]], notes: Sequence[str],
                 draw: Callable[[matplotlib.axes.Axes], None]) -> None:
    """Write a study's table as CSV and Markdown, and its plot, which ``draw`` paints; print the table.

    All rows have the keys of the first one, which are the columns; those named ``X: low`` and ``X: high`` bound column
    ``X``, and share its cell in Markdown. ``notes`` stand below the Markdown table, a paragraph each.
    """
    matplotlib.use('Agg')
    from matplotlib import pyplot

    make_folder(folder)
    columns = list(rows[0])
    cells = [[cell(row[name]) for name in columns] for row in rows]
    with replacing(folder / 'table.csv') as half, half.open('w', newline='', encoding='utf-8') as file:
        csv.writer(file, lineterminator='\n').writerows([columns, *cells])
    shown = [name for name in columns if not name.endswith((': low', ': high'))]
    lines = ['| ' + ' | '.join(line) + ' |' for line in [
        shown, ['---'] * len(shown), *([with_bounds(row, name) for name in shown] for row in rows)]]
    text = '\n\n'.join([f'# {title}', '\n'.join(lines), *notes]) + '\n'
    write_text(folder / 'table.md', text)
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout='constrained')
    draw(axes)
    axes.set_title(title, fontsize=10)
    with replacing(folder / 'plot.png') as half:
        figure.savefig(half, dpi=150)
    pyplot.close(figure)
    print(text + '\n' + '\n'.join(str(folder / name) for name in ('table.csv', 'table.md', 'plot.png')))
