"""Notice two nodes of one name: their topics, services and parameters are mixed up."""

from __future__ import annotations

from rclpy.node import Node


class Namesakes:
    """Looks for other nodes with the name of ``node``; :meth:`look` is for its timer."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.problem = ''       # one line while there is another one

    def look(self) -> str:
        """Return the problem, '' for none, and log it when it begins."""
        name = self._node.get_fully_qualified_name()
        nodes = self._node.get_node_names_and_namespaces()
        same = sum(f'{place.rstrip("/")}/{other}' == name for other, place in nodes)
        before, self.problem = self.problem, '' if same < 2 else (
            f'{same} nodes have the name {name}: their answers, services and parameters are mixed up; end the others, '
            'or name this one with -r __node:=NAME (one that was killed counts for 20 s still)')
        if self.problem and not before:
            self._node.get_logger().warning(self.problem)
        return self.problem
