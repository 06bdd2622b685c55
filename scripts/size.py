"""Print how many lines of Python each room of the product has."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Count and print."""
    lines: Counter[str] = Counter()
    for package in ('tar_vis_core', 'tar_vis_ros'):
        for path in (ROOT / package).rglob('*.py'):
            parts = path.relative_to(ROOT).parts
            if parts[:2] != ('tar_vis_ros', 'msg'):
                room = '/'.join(parts[:2]) if len(parts) > 2 else f'{package}/*.py'
                lines[room] += len(path.read_text().splitlines())
    for room, count in sorted(lines.items()):
        print(f'{room:<30}{count:>7}')
    print(f'{"all":<30}{lines.total():>7}')


if __name__ == '__main__':
    main()
