"""Write bags that `ros2 bag` and Foxglove read, also with the messages of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from tar_vis_core.errors import one_line
from tar_vis_ros.bags.reader import BagError
from tar_vis_ros.msg import InstanceMask, InstanceMaskArray, SkipDiagnostics
from tar_vis_ros.process.publishers import type_name

STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}
IDL_NAMES = {'boolean': 'bool', 'octet': 'byte', 'float': 'float32', 'double': 'float64'}   # what .msg files call them


class BagWriter:
    """A new bag with a topic for each entry of ``topics`` (topic: message class); a context manager.

    It is closed in order however the block ends, so the messages written so far can be read. Raise BagError if it
    cannot be made.
    """

    def __init__(self, path: Path, storage: str, topics: Mapping[str, type]) -> None:
        self.path = path
        store = known_types()
        try:
            self._writer = Writer(path, version=9, storage_plugin=STORAGES[storage])
            self._writer.open()
            self._connections = {topic: self._writer.add_connection(topic, type_name(message), typestore=store)
                                 for topic, message in topics.items()}
        except Exception as error:
            raise self._failed(error) from error

    def write(self, topic: str, recorded_ns: int, cdr: bytes) -> None:
        """Add a serialised message; ``recorded_ns`` is its time in the bag."""
        try:
            self._writer.write(self._connections[topic], recorded_ns, cdr)
        except Exception as error:      # whatever the storage raises, for example on a full disk
            raise self._failed(error) from error

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            self._writer.close()
        except Exception as error:
            if kind is None:    # else what ended the block is what matters
                raise self._failed(error) from error

    def _failed(self, error: Exception) -> BagError:
        return BagError(f'{self.path}: cannot be written: {one_line(error)}')


def message_definition(fields: Mapping[str, str]) -> str:
    """Return the fields of a message as a .msg file has them, without constants.

    ``fields`` is the result of ``get_fields_and_field_types`` of its class, which needs no installation path.
    """
    lines = []
    for name, kind in fields.items():
        inner = re.fullmatch(r'sequence<([^,]+)>', kind)
        base = inner[1] if inner else kind
        lines.append(f'{IDL_NAMES.get(base, base)}{"[]" if inner else ""} {name}')
    return '\n'.join(lines)


def known_types() -> Typestore:
    """Return the messages of ROS 2 Jazzy and of this package."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for message in (InstanceMask, InstanceMaskArray, SkipDiagnostics):
        store.register(get_types_from_msg(message_definition(message.get_fields_and_field_types()), type_name(message)))
    return store
