"""Read JSON files of any tool and system."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tar_vis_core.errors import DataError
from tar_vis_core.io.input_files import problem_of, what_it_is


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file: UTF-8 whatever the locale, UTF-16 or UTF-32, with a byte order mark or not.

    ``NaN`` and ``Infinity``, which Python writes, are read. Raise DataError with one line that names the fault.
    """
    if problem := problem_of(path):
        raise DataError(f'{path}: {problem}')
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror or error}') from error
    return parse_json(data, str(path))


def parse_json(data: bytes, name: str) -> Any:
    """Return the content of JSON bytes. ``name`` is used in the message of a DataError."""
    if known := what_it_is(data[:512]):
        raise DataError(f'{name}: no JSON, but {known}')
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        if not error.doc[error.pos:].strip(' \t\r\n\0') or error.msg.startswith('Unterminated string'):
            raise DataError(f'{name}: the JSON ends in the middle, at line {error.lineno}: only a part of it was '
                            'written or copied') from error
        raise DataError(f'{name}: no valid JSON at line {error.lineno}, column {error.colno}: {error.msg}') from error
    except UnicodeDecodeError as error:
        raise DataError(f'{name}: no text in UTF-8, as JSON is: byte {error.start} is {data[error.start]:#04x}; '
                        'save it as UTF-8') from error
    except RecursionError as error:
        raise DataError(f'{name}: the JSON is nested too deeply to be a file of ours') from error
    except ValueError as error:     # a number of more than 4300 digits
        raise DataError(f'{name}: no valid JSON: {error}') from error


def read_text(path: str | Path) -> str:
    """Return a text file, in UTF-8 whatever the locale, without byte order mark. Raise DataError."""
    if problem := problem_of(path):
        raise DataError(f'{path}: {problem}')
    data = Path(path).read_bytes()
    try:
        return data.decode('utf-16' if data.startswith((b'\xff\xfe', b'\xfe\xff')) else 'utf-8-sig')
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: no text in UTF-8; save it as UTF-8') from error


def file_name(text: str) -> str:
    """Return a file name out of a UTF-8 file as this system's calls take it, whatever the locale."""
    return os.fsdecode(text.encode('utf-8', 'surrogatepass'))
