"""How the figures of ``tar-vis bench`` are shown: a table in the terminal, rows in Markdown, a plot."""

from __future__ import annotations

from pathlib import Path

from tar_vis_core.benchmark import cost
from tar_vis_core.benchmark.compare import ratios
from tar_vis_core.benchmark.contenders import FULL, REFERENCE, STAGES
from tar_vis_core.benchmark.machine import in_words
from tar_vis_core.io.whole_files import replacing

TIMED = (
    'Timed is the whole step, the device synchronised before and after: host image in, copy to the device, resize, '
    'normalise, image encoder, decoder, classes, masks at the size of the image, run lengths, matching, identities. '
    'Not timed: reading the video.')
MARKDOWN_HEAD = (
    '| model, line | source, network input | parameters, M: all (backbone + pixel decoder + decoder + tracker + TAR) '
    '| GFLOPs a frame: all (backbone + pixel decoder + decoder + tracker) '
    '| ms a frame, median: whole step (backbone + pixel decoder + decoder + tracker) | peak memory, GB |\n'
    '|---|---|---|---|---|---|\n')


def layers_in_words(line: dict) -> str:
    """Mean number of executed layers, and of each stride."""
    by_stride = ' + '.join(f'{count:.1f}' for count in line['executed_by_stride'].values())
    return f'{line["executed_layers"]:.2f} ({by_stride})'


def print_figures(figures: dict) -> None:
    """Lines by stage, then how they compute, then the model's parts."""
    lines, columns = figures['lines'], (*STAGES, 'total')
    print(f'{figures["title"]}; {figures["date"]}\n{in_words(figures["machine"])}')
    print(f'median (p95) ms of {lines[FULL]["frames"]} frames, the lines taking turns\n')
    print(f'{"line":<16}' + ''.join(f'{c:>17}' for c in columns)
          + f'{"frames/s":>10}{"layers (32+16+8)":>25}{"GFLOPs":>9}{"instances":>11}')
    for name, line in lines.items():
        cells = ''.join(f'{line["median_ms"][c]:>9.1f} ({line["p95_ms"][c]:5.1f})' for c in columns)
        print(f'{name:<16}{cells}{line["fps"]:>10.1f}{layers_in_words(line):>25}{sum(line["gflops"].values()):>9.2f}'
              f'{line["instances"]:>11.1f}')
    print()
    for name, ratio in ratios(figures).items():
        print(f'{name}: {ratio:.2f} times as fast')
    for name, line in lines.items():
        print(f'{name}: {line["routing"]}; attention: {line["attention"]}; deformable attention: '
              f'{line["deformable_attention"]}')
    print(f'\n{"part":<14}{"parameters":>12}' + ''.join(f'{name + " GFLOPs":>24}' for name in lines))
    for part, count in figures['parameters'].items():
        cells = ''.join(f'{line["gflops"][part]:>24.2f}' for line in lines.values() if part in line['gflops'])
        print(f'{part:<14}{count / 1e6:>10.2f} M{cells}')
    memory = figures['peak_memory_gb']
    print(f'\npeak memory of a process of its own, above what it holds before the model is made: '
          f'{memory[FULL]:.2f} GB, {REFERENCE} {memory[REFERENCE]:.2f} GB')
    if None not in (power := figures['power_w']).values():
        print(f'mean power of the GPU, frame upon frame: {power[FULL]:.0f} W, {REFERENCE} {power[REFERENCE]:.0f} W')
    print(TIMED + ' Frames a second are those of the median. Layers by the stride that they read.')
    if figures['configuration']['untrained']:
        print('Freshly initialised weights: time, operations and memory hold, instances do not, so "masks" has little '
              'to do.')


def markdown_rows(figures: dict) -> str:
    """A row of :data:`MARKDOWN_HEAD`'s table for each line."""
    def parts(values: list[float], total: float, digits: int) -> str:
        return f'{total:.{digits}f} ({" + ".join(f"{value:.{digits}f}" for value in values)})'

    rows, configuration = '', figures['configuration']
    millions = [count / 1e6 for count in figures['parameters'].values()]
    for name, line in figures['lines'].items():
        gflops, times = list(line['gflops'].values()), line['median_ms']
        peak = figures['peak_memory_gb'][REFERENCE if name == REFERENCE else FULL]
        rows += (f'| {configuration["preset"]}, {name} | {configuration["size"]}, {figures["input"]} '
                 f'| {parts(millions, sum(millions), 2)} | {parts(gflops, sum(gflops), 2)} '
                 f'| {parts([times[s] for s in cost.STAGES], times["total"], 0)} | {peak:.2f} |\n')
    return rows


def plot(figures: dict, path: Path) -> None:
    """A bar for each line, stacked by stage, with its frames a second."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    lines = figures['lines']
    figure, axes = pyplot.subplots(figsize=(8, 1.6 + 0.6 * len(lines)), layout='constrained')
    left = dict.fromkeys(lines, 0.0)
    for stage in STAGES:
        widths = [line['median_ms'][stage] for line in lines.values()]
        axes.barh(list(lines), widths, left=list(left.values()), label=stage.replace('_', ' '))
        left = {name: left[name] + width for name, width in zip(lines, widths)}
    for name, line in lines.items():
        axes.text(left[name], name, f' {line["fps"]:.1f} frames/s', va='center')
    axes.set_xlim(0, 1.2 * max(left.values()))
    axes.invert_yaxis()
    axes.set_xlabel('ms a frame, medians of the stages')
    axes.set_title(f'{figures["title"]}\n{in_words(figures["machine"])}', fontsize=8)
    figure.legend(fontsize=8, ncols=len(STAGES), loc='outside lower center')
    with replacing(path) as half:
        figure.savefig(half, dpi=150)
    pyplot.close(figure)
