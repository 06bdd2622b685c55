"""Online video instance segmentation with temporal-aware query routing.

The public names are imported when they are first asked for, because the segmenter takes torch along.
"""

import os as _os
import signal as _signal
import sys as _sys
from importlib import import_module as _import_module

# OpenCV reads this once, when it is loaded: no header of a picture makes it allocate more than 300 MB.
_os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', '100000000')
# torch's threads read this once, when they are loaded: a thread that waits for another one spins for about 0.1 ms and
# then sleeps. To wake it takes longer than most pauses within a step: without spinning a step took 1.7 times as long on
# an idle machine. With long spinning it took 3 times as long beside two busy processes: the thread that is waited for
# may have no processor.
if not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & set(_os.environ):
    _os.environ['GOMP_SPINCOUNT'] = '2000'


def _on_interrupt(number, frame):
    """Raise KeyboardInterrupt as Python does, but end at once if it would go through an import.

    A program that is still loading has nothing to put in order, and nobody wants to read where it was.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            _os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _is_program():
    words = _sys.orig_argv
    module = words[words.index('-m') + 1:][:1] if '-m' in words else ()
    return _os.path.basename(_sys.argv[0] if _sys.argv else '').startswith('tar-vis') or any(
        name.startswith(('tar_vis_core.', 'tar_vis_ros.')) for name in module)


# Only for the programs of this package: who imports it as a library has handlers of their own.
if _is_program() and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _on_interrupt)

_PUBLIC = {'VideoSegmenter': 'segmenter', 'TemporalState': 'state', 'SegmenterOptions': 'options',
           'FrameResult': 'instances', 'Instance': 'instances', 'TrackStatus': 'instances', 'TarVisError': 'errors'}
__all__ = list(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(_import_module(f'{__name__}.{_PUBLIC[name]}'), name)
