"""ROS 2 side: messages (generated), the node, the video source and their tools."""

import ctypes as _ctypes
import sys as _sys
from pathlib import Path as _Path

import tar_vis_core as _  # noqa: F401  (limits what OpenCV reads, before anything here loads it)

# A command whose modules could not import ROS says so in a line. (Of tar-vis, some parts need none.)
if (_program := _Path(_sys.argv[0] if hasattr(_sys, 'argv') else '').name).startswith('tar-vis-'):
    from tar_vis_ros.process.which_ros import ros_problem as _ros_problem

    _problem, _remedy = _ros_problem()
    if _problem:
        _sys.exit(f'{_program}: {_problem}: {_remedy}')

# A pip installation keeps the compiled messages in this folder, which the loader
# does not search: load them now, and the loader finds them by their names. A
# colcon installation has no such folder.
for _library in sorted((_Path(__file__).parent / '_lib').glob('*.so')):
    try:
        _ctypes.CDLL(str(_library))
    except OSError:  # no ROS in this environment: the messages will not import
        break
