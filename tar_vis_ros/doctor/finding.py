"""A finding of the doctor: its subject, the facts, and a remedy if something is wrong."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

WIDTH = 110     # columns of a line


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. With ``wrong`` something does not work; a remedy alone is advice."""

    subject: str
    text: str
    remedy: str = ''
    wrong: bool = False

    def __str__(self) -> str:
        mark = 'WRONG' if self.wrong else 'look' if self.remedy else 'ok'
        lines = textwrap.wrap(f'{mark:<6}{self.subject:<14} {self.text}', WIDTH, subsequent_indent=' ' * 21)
        lines += textwrap.wrap(self.remedy, WIDTH, initial_indent=f'{"":<15}do -> ', subsequent_indent=' ' * 21)
        return '\n'.join(lines)
