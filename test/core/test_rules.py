"""Rules that keep the house in order: who may import whom, one name for one thing, files of a readable size."""

import ast
from collections import defaultdict
from pathlib import Path

from building import ROOT

# From the ground up: what stands in a line imports lines above it, and its own.
FLOORS = [
    {'errors', 'instances', 'io'}, {'runtime'}, {'media'}, {'models'}, {'options', 'flags', 'masks', 'weights', 'data'},
    {'engines', 'preprocess', 'detection', 'latency_budget', 'stamp_watch'}, {'tracking', 'still_picture'},
    {'state'}, {'segmenter'}, {'foreign'}, {'training', 'evaluation', 'benchmark'}, {'studies'}, {'commands'}]
ROS_FLOORS = [{'conversions', 'process'}, {'node', 'depth', 'bags', 'client', 'video_source'},
              {'replay', 'demo', 'examples'}]
# A kernel compares itself with its plain form when it is first asked for.
UPWARD = {('tar_vis_core/runtime/kernels/__init__.py', 'tar_vis_core.models.deformable.sample_by_grid')}
LONG = {'tar_vis_core/weights/unpickle.py': 350}      # a reader of a foreign format, with the types that it needs
SAME_NAME = {'__init__', '__main__', 'command', 'node', 'pictures', 'report', 'run'}     # a room each says whose
DOORS = ('commands/', 'command.py', 'tar_vis_core/flags.py', 'training/train.py', 'video_source.py')


def product() -> dict[str, ast.Module]:
    """The modules of both packages by their path."""
    paths = [path for package in ('tar_vis_core', 'tar_vis_ros') for path in sorted((ROOT / package).rglob('*.py'))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths
            if path.relative_to(ROOT).parts[:2] != ('tar_vis_ros', 'msg')}


def imports(tree: ast.Module) -> set[str]:
    """The modules that a module imports, also within functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def room(name: str) -> str:
    return Path(name.replace('.', '/')).parts[1]


def test_every_import_goes_down():
    wrong = []
    for path, tree in product().items():
        package = path.partition('/')[0]
        floors = {name: floor for floor, names in enumerate(FLOORS if package == 'tar_vis_core' else ROS_FLOORS)
                  for name in names}
        own = floors.get(room(path.removesuffix('.py')))
        for name in imports(tree):
            target = room(name) if name.startswith(f'{package}.') else None
            if None not in (own, floors.get(target)) and floors[target] > own and (path, name) not in UPWARD:
                wrong.append(f'{path} imports {name}')
        if package == 'tar_vis_core':
            assert own is not None or path == 'tar_vis_core/__init__.py', f'{path} stands on no floor'
            wrong += [f'{path} imports {name}' for name in imports(tree) if name.startswith(('tar_vis_ros', 'rclpy'))]
    assert not wrong


def test_the_product_patches_nothing_and_reads_command_lines_at_the_door_only():
    for path, tree in product().items():
        names = {name.partition('.')[0] for name in imports(tree)}
        assert 'unittest' not in names, path
        assert 'argparse' not in names or any(door in path for door in DOORS), path


def test_no_module_and_no_class_has_the_name_of_another():
    modules, classes = defaultdict(list), defaultdict(list)
    for path, tree in product().items():
        if '/commands/' not in path:        # named after their commands
            modules[Path(path).stem].append(path)
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(path)
    assert not {name: paths for name, paths in modules.items() if len(paths) > 1 and name not in SAME_NAME}
    assert not {name: paths for name, paths in classes.items() if len(paths) > 1}


def test_files_can_be_read_in_one_sitting():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in product()}
    assert not {path: count for path, count in lengths.items() if count > LONG.get(path, 300)}
