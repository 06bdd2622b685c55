"""The fields of annotation files, checked one by one: tools leave them out, write null, text, or an id twice."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tar_vis_core.data.rle import to_rle
from tar_vis_core.errors import DataError
from tar_vis_core.io.json_files import read_json
from tar_vis_core.media.pictures import max_pixels

Id = int | str
logger = logging.getLogger(__name__)


def as_id(value: Any) -> Id | None:
    """Return an id; whole numbers as text or with a decimal point are taken for numbers. None for what is no id."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_labels(path: str | Path) -> dict[str, Any]:
    """Return the content of an annotation file, an object of lists. Raise DataError."""
    content = read_json(path)
    if not isinstance(content, dict):
        what = 'a list, such as results have' if isinstance(content, list) else type(content).__name__
        raise DataError(f'{path}: not a COCO annotation file and not a YouTube-VIS file: expected an object with '
                        f'images or videos, annotations and categories, found {what}')
    return content


def holds_videos(content: Mapping[str, Any]) -> bool:
    """Return whether this is YouTube-VIS rather than COCO: it lists videos. An empty list beside images is none."""
    return content.get('videos') is not None and not (content['videos'] == [] and content.get('images'))


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of an annotation file. Every access checks; an error names the file, the entry and the field."""

    path: Path
    noun: str               # 'image', 'video', 'annotation' or 'category'
    position: int           # in its list, from 1
    values: Mapping[str, Any]

    def error(self, text: str) -> DataError:
        """Return a DataError about this entry."""
        own = self.values.get('id')
        name = f'without id, number {self.position} of its list' if own is None else _shown(own)
        return DataError(f'{self.path}: {self.noun} {name}{text}')

    def get(self, key: str, expected: str) -> Any:
        """Return a field that must be there and not null."""
        if key not in self.values:
            raise self.error(f": field '{key}' is missing, expected {expected}")
        if self.values[key] is None:
            raise self.error(f": field '{key}' is null, expected {expected}")
        return self.values[key]

    def id(self, key: str = 'id') -> Id:
        """Return an id; whole numbers as text or with a decimal point are taken for numbers."""
        value = self.get(key, 'an id')
        if (found := as_id(value)) is None:
            raise self.error(f": field '{key}' is {_shown(value)}, expected an id")
        return found

    def text(self, key: str) -> str:
        """Return a field that is text, not empty."""
        value = self.get(key, 'text')
        if not isinstance(value, str) or not value.strip():
            raise self.error(f": field '{key}' is {_shown(value)}, expected text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a field that is true or false, 1 or 0; the default if it is missing or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if value not in (0, 1):     # True and 1.0 are among them
            raise self.error(f": field '{key}' is {_shown(value)}, expected 0 or 1")
        return bool(value)

    def positive(self, key: str, default: float) -> float:
        """Return a field that is a number above 0, the default if it is anything else: tools write 0, -1 or text."""
        value = self.values.get(key)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if numeric and 0 < value < math.inf else default

    def list(self, key: str) -> list:
        """Return a field that is a list."""
        value = self.get(key, 'a list')
        if not isinstance(value, list):
            raise self.error(f": field '{key}' is {_shown(value)}, expected a list")
        return value

    def size(self) -> tuple[int, int]:
        """Return ``height`` and ``width``, whole numbers of pixels that a picture can have."""
        sides = []
        for key in ('height', 'width'):
            value = self.get(key, 'the size of the picture in pixels')
            if isinstance(value, str) and value.strip().isdecimal():
                value = float(value)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= max_pixels() \
                    or value != int(value):
                raise self.error(f": field '{key}' is {_shown(value)}, expected a whole number of pixels")
            sides.append(int(value))
        if sides[0] * sides[1] > max_pixels():
            raise self.error(f': a size of {sides[1]}x{sides[0]} is more than the {max_pixels()} pixels that are read')
        return sides[0], sides[1]

    def mask(self, key: str, height: int, width: int) -> dict:
        """Return a field that is a mask as pycocotools' compressed run lengths; their area is 0 for an empty one."""
        if self.values.get(key) is None:
            state = 'null' if key in self.values else 'missing'
            raise self.error(f" has no segmentation (mask): field '{key}' is {state}; masks are needed, boxes alone do "
                             'not do')
        return self.rle(self.values[key], height, width)

    def rle(self, segmentation: Any, height: int, width: int) -> dict:
        """Return a segmentation as pycocotools' compressed run lengths."""
        try:
            return to_rle(segmentation, height, width)
        except Exception as error:      # pycocotools raises bare Exception, too
            raise self.error(f': bad segmentation: {error}') from error

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """Return a field that is one of ``choices``; the first one if it is missing or null."""
        value = self.values.get(key)
        if value is not None and value not in choices:
            raise self.error(f": {key} is {_shown(value)}, expected {' or '.join(map(repr, choices))}")
        return choices[0] if value is None else value


def entries(path: Path, content: Mapping[str, Any], key: str, noun: str, kind: str) -> list[Entry]:
    """Return the objects of one list of an annotation file. Raise DataError if that is no list of objects."""
    values = content.get(key)
    if not isinstance(values, list):
        missing = 'is missing' if key not in content else f'is {_shown(values)}'
        raise DataError(f"{path}: not a {kind} file: field '{key}' {missing}, expected a list")
    for position, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise DataError(f'{path}: not a {kind} file: {noun} number {position} is {_shown(value)}, expected an '
                            'object')
    return [Entry(path, noun, position, value) for position, value in enumerate(values, 1)]


def by_id(made: Iterable[Entry], told_by: Callable[[Entry], str]) -> dict[Id, Entry]:
    """Return entries by their ids. Raise DataError if an id comes twice; ``told_by`` distinguishes two entries."""
    found: dict[Id, Entry] = {}
    for entry in made:
        own = entry.id()
        if own in found:
            raise DataError(f'{entry.path}: {entry.noun} id {own} occurs twice ({told_by(found[own])} and '
                            f'{told_by(entry)}); ids must be unique: were two files put together?')
        found[own] = entry
    return found


def category_names(path: Path, content: Mapping[str, Any], kind: str) -> dict[Id, str]:
    """Return the names of the categories by id, on one line each. Raise DataError.

    Two categories of one name are one class; annotation tools list a class and its supercategory by the same name.
    """
    made = by_id(entries(path, content, 'categories', 'category', kind), lambda entry: repr(entry.values.get('name')))
    names = {own: ' '.join(entry.text('name').split()) for own, entry in made.items()}
    if wrong := next((own for own, name in names.items() if not name.isprintable()), None):
        raise made[wrong].error(f": field 'name' is {_shown(names[wrong])}, expected text that can be printed")
    return names


@dataclass
class LeftOut:
    """The entries of a file that are not used, and why; one line says so."""

    path: Path
    total: int
    why: dict[str, list[Id]] = field(default_factory=dict)      # ids by reason

    def add(self, reason: str, own: Id | None) -> None:
        """Note one annotation."""
        self.why.setdefault(reason, []).append('(none)' if own is None else own)

    @property
    def line(self) -> str:
        """Return one line, empty if all is used."""
        if not self.why:
            return ''
        parts = [f'{len(ids)} {reason} (id{"s" * (len(ids) > 1)} {", ".join(map(str, ids[:10]))}'
                 f'{", .." if len(ids) > 10 else ""})' for reason, ids in self.why.items()]
        number = sum(map(len, self.why.values()))
        return f'{self.path}: {number} of {self.total} annotations left out: {"; ".join(parts)}'

    def warn(self) -> None:
        """Warn if anything is left out."""
        if self.why:
            logger.warning(self.line)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + '...'
