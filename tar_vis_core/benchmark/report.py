"""The figures of ``tar-vis bench``: as text, in a file, and the guard against becoming slower.

Times of two machines, or of one machine on two days, say little; ratios between lines of one run say more. The guard
looks at these alone.
"""

from __future__ import annotations

from pathlib import Path

from tar_vis_core.benchmark.contenders import FULL, REFERENCE, RIVAL, STAGES, TAR
from tar_vis_core.benchmark.machine import in_words
from tar_vis_core.io.json_files import read_json

TIMED = (
    'Timed is the whole step, the device synchronised before and after: host image in, copy to the device, resize, '
    'normalise, image encoder, decoder, classes, masks at the size of the image, run lengths, matching, identities. '
    'Not timed: reading the video.')
# what a ratio's name divides: how often the time of the second line goes into that of the first
RATIOS = {f'{FULL} over {REFERENCE}': (REFERENCE, FULL), f'{TAR} over {FULL}': (FULL, TAR)}
TOLERANCE = 0.2


def read_figures(path: Path) -> dict:
    """Return the figures in a file; ValueError if they are not of ``tar-vis bench``."""
    try:
        figures = read_json(path)
        if {'configuration', 'machine', 'lines'} <= figures.keys() and REFERENCE in figures['lines']:
            return figures
    except (AttributeError, TypeError):
        pass
    raise ValueError(f'{path} holds no figures of this version of tar-vis bench; expected what --json writes')


def ratios(figures: dict) -> dict[str, float]:
    """Return how many times as fast a line is as the one before it, by median, if both are there."""
    times = {name: line['median_ms']['total'] for name, line in figures['lines'].items()}
    return {name: times[slow] / times[fast] for name, (slow, fast) in RATIOS.items() if {slow, fast} <= times.keys()}


def layers_in_words(line: dict) -> str:
    """Return mean number of executed layers, and of each stride."""
    by_stride = ' + '.join(f'{count:.1f}' for count in line['executed_by_stride'].values())
    return f'{line["executed_layers"]:.2f} ({by_stride})'


def print_figures(figures: dict) -> None:
    """Print the lines by stage, then how they compute, then the model's parts."""
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
    if figures['busy'] or RIVAL in figures['idle']:
        print_company(figures)
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


def print_company(figures: dict) -> None:
    """Print whole steps on the machine as it was, and with busy processes beside them, and the other network."""
    against, beside = figures['configuration']['against'], figures['configuration']['beside']
    rounds = {'idle': figures['idle']} | ({f'{beside} busy beside it': figures['busy']} if figures['busy'] else {})
    print(f'\n{"whole step":<18}' + ''.join(f'{name:>26}' for name in rounds))
    for name in figures['idle']:
        print(f'{name:<18}' + ''.join(
            f'{times[name]["median_ms"]:>12.1f} (p95 {times[name]["p95_ms"]:6.1f})' for times in rounds.values())
            + (f'{figures["busy"][name]["median_ms"] / figures["idle"][name]["median_ms"]:>8.2f} times'
               if figures['busy'] else ''))
    if RIVAL in figures['idle']:
        for name, times in rounds.items():
            print(f'{name}: {FULL} takes {times[FULL]["median_ms"] / times[RIVAL]["median_ms"]:.2f} times as long as '
                  f'the network alone of {against}')


def fallen(stored: dict, now: dict, tolerance: float) -> list[str]:
    """Return a line of text for each ratio that is below the stored one by more than this share of it.

    Raise ValueError if a line of the stored figures was not measured.
    """
    found, found_now = [], ratios(now)
    for name, before in ratios(stored).items():
        if name not in found_now:
            raise ValueError(f'{name} is stored but was not measured; the model has lost its routers')
        if found_now[name] < before * (1 - tolerance):
            found.append(f'{name}: {found_now[name]:.2f} times as fast, stored {before:.2f}: fallen by '
                         f'{1 - found_now[name] / before:.0%}, allowed {tolerance:.0%}')
    return found
