"""Read YAML that any tool wrote."""

from __future__ import annotations

from typing import Any

import yaml

from tar_vis_core.errors import DataError, one_line


class _PlainLoader(yaml.SafeLoader):
    """YAML's plain types, without aliases: ten lines of them can stand for gigabytes. ROS reads none, either."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, f'*{event.anchor} is an alias, which is not read: write the '
                                              'values out', event.start_mark)
        return super().compose_node(parent, index)


def parse_yaml(text: str, name: str = '') -> Any:
    """Return the content of a YAML text. ``name`` is used in the message of a DataError."""
    try:
        return yaml.load(text, _PlainLoader)
    except Exception as error:      # YAMLError, and what its types raise: of a date that is none, of deep nesting
        raise DataError(f'{name}{": " * bool(name)}cannot be read as YAML: {one_line(error)[:200]}') from error
