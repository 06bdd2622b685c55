"""What launch files declare, read from their source."""

from __future__ import annotations

import ast
from pathlib import Path


def calls(tree: ast.AST, *names: str) -> list[ast.Call]:
    """The calls of functions and classes of these names."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)
            and getattr(node.func, 'id', getattr(node.func, 'attr', '')) in names]


def keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords}


def texts(tree: ast.AST | None) -> list[str]:
    """Every text constant in an expression."""
    return [] if tree is None else [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), path.name)


def assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """What a name of the module stands for."""
    values = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == name]
    return values[0] if values else None


def declared(path: Path) -> set[str]:
    """Launch arguments of a file and of the files that it includes."""
    tree, names = parse(path), set()
    for call in calls(tree, 'DeclareLaunchArgument'):
        names |= set(texts(call.args[0])) or set(overrides(tree))
    for included in calls(tree, 'IncludeLaunchDescription'):
        for name in texts(included):
            names |= declared(path.parent / name)
    return names


def overrides(tree: ast.Module) -> tuple[str, ...]:
    value = assigned(tree, 'OVERRIDES')
    return () if value is None else ast.literal_eval(value)
