"""Parts of a model as CUDA graphs: the GPU's work is recorded once per size, and then started by one call.

A frame is many hundred small kernels, and a GPU waits while a host starts them one by one. A graph starts them all, at
the addresses it was recorded with. So arguments are copied to these addresses, unless they are results of another
recording, whose addresses are constant. Results have constant addresses as well, until the part is played again:
results that the host keeps are copied out. Decisions stay outside: a layer is played if its router decides so.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from tar_vis_core.errors import first_line
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime.device import watched

# of a part, those used last, one for each size of image; cameras of more sizes are recorded again and again
MOST = 8
LONGEST_PAUSE = 1024    # calls of a part until recording is tried again if there was no memory for it
ONE_AT_A_TIME = threading.Lock()    # torch records one graph at a time in a process


class GraphRecorder(Protocol):
    """The interface that makes graphs of a device."""

    def record(self, function: Callable[[], Any], kept: bool) -> tuple[Callable[[], None], Any]:
        """Return a callable that plays ``function`` again, and its result, whose tensors every playing overwrites.

        ``kept``: the result is copied out at once. Otherwise it must stay while other parts are played. Whether it has
        been played once when this returns is left open.
        """


class CudaRecorder:
    """CUDA graphs of one device; no two of them may run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = torch.device('cuda', torch.cuda.current_device() if device.index is None else device.index)
        self._stream = torch.cuda.Stream(self._device)
        self._shared, self._failed = torch.cuda.graph_pool_handle(), []

    def record(self, function: Callable[[], Any], kept: bool) -> tuple[Callable[[], None], Any]:
        """See :class:`GraphRecorder`. Raise DeviceLostError if the GPU is lost."""
        # In shared memory a result may lie where an older graph computes, and is lost when that one is played.
        pool, held = self._shared if kept else torch.cuda.graph_pool_handle(), KeepAlive()
        # the stream of before comes back whatever happens, which torch's own context does not see to
        with watched(self._device), ONE_AT_A_TIME, torch.cuda.device(self._device), torch.cuda.stream(
                torch.cuda.current_stream(self._device)), trying_algorithms():
            graph = torch.cuda.CUDAGraph()
            # what happens only the first time must not be recorded: constants of a size, compiling, choosing algorithms
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(2):
                    function()
            torch.cuda.current_stream().wait_stream(self._stream)
            with own_workspace():
                result = self._capture(graph, pool, held, function)
        graph.held = held.tensors       # for as long as it is there
        return graph.replay, result

    def _capture(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int], held: KeepAlive, function: Callable) -> Any:
        own_error = None
        try:
            with torch.cuda.graph(graph, pool, self._stream, capture_error_mode='thread_local'), held:
                try:
                    return function()
                except BaseException as error:
                    own_error = error
                    raise
        except BaseException as error:
            if error is not own_error:      # the capture could not even be ended
                self._give_up(graph, pool)
            raise

    def _give_up(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        """Tell the allocator, which still works for a capture that could not be ended, to stop. Leave its pool."""
        with contextlib.suppress(Exception):
            if torch.__version__ >= (2, 14):
                graph.reset()       # does it, and a second time would be an error in the destructor
            else:
                self._failed.append(graph)      # which the allocator goes on asking
                torch._C._cuda_endAllocateToPool(self._device.index, pool)
        self._shared = torch.cuda.graph_pool_handle()


@contextlib.contextmanager
def own_workspace() -> Iterator[None]:
    """Let a graph captured in this block have a cuBLAS workspace of its own, in its own memory.

    torch keeps one workspace for each stream, and graphs hold its address. When one graph goes, torch frees the
    workspace of its capture stream (pytorch#175276), under all other graphs that were captured there.
    """
    forget = getattr(torch._C, '_cuda_clearCublasWorkspaces', lambda: None)
    forget()
    try:
        yield
    finally:
        forget()


@contextlib.contextmanager
def trying_algorithms() -> Iterator[None]:
    """Let cuDNN try which algorithm of each convolution is fastest here, while the block runs."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class KeepAlive(TorchFunctionMode):
    """Keep tensors that are read while this is active and were made before: a graph still reads what a cache drops.

    It looks at calls from Python, above mixed precision, which a mode below it would take away.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self._known: dict[int, weakref.ref] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.tensors += self._new((args, kwargs))
        result = function(*args, **kwargs)
        self._new(result)       # what is made in here the graph owns
        return result

    def _new(self, tree: Any) -> list[Tensor]:
        """Return the tensors that have not been seen yet; from now on they have."""
        new = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)
               and (id(leaf) not in self._known or self._known[id(leaf)]() is not leaf)]
        self._known |= {id(tensor): weakref.ref(tensor) for tensor in new}
        return new


class Recorded:
    """A function of tensors and other hashable arguments that is recorded for every set of shapes.

    If it cannot be recorded, it warns and runs as it is from then on. If there is no memory for one more recording, it
    warns, keeps those that it has, runs as it is, and tries again after a pause that doubles.
    """

    eager = False       # while it is true the functions themselves run

    def __init__(self, function: Callable, recorder: GraphRecorder, kept: bool) -> None:
        """Record ``function``. With ``kept``, results are copied out, because they outlive the next playing."""
        # a model that holds this must not be held by it, or it outlives its last user for a while
        self._function = weakref.WeakMethod(function) if inspect.ismethod(function) else lambda: function
        self._recorder, self._kept = recorder, kept
        self._recordings: dict[tuple, OrderedDict[tuple, Recording]] = {}
        self._refused = False
        self._pause = self._next_pause = 0      # calls until it is tried again, if there was no memory
        self.made = 0       # recordings until now
        self.remark = ''    # why it runs operator by operator, '' if it does not

    def __call__(self, *args: Any) -> Any:
        function = self._function()
        if Recorded.eager or self._refused:
            return function(*args)
        others = tuple(arg for arg in args if not isinstance(arg, Tensor))
        sizes = self._recordings.setdefault(others, OrderedDict())
        shapes = tuple(signature(arg) for arg in args if isinstance(arg, Tensor))
        if shapes not in sizes and not self._record(sizes, shapes, function, args):
            return function(*args)
        sizes.move_to_end(shapes)
        result = sizes[shapes].play(args)
        return tree_map(copied_out, result) if self._kept else result

    def _record(self, sizes: OrderedDict[tuple, Recording], shapes: tuple, function: Callable, args: tuple) -> bool:
        """Record the function for these arguments. Return whether that could be done."""
        if self._pause:
            self._pause -= 1
            return False
        if len(sizes) == MOST:
            sizes.popitem(last=False)
        try:
            sizes[shapes] = Recording(function, args, self._recorder, self._kept)
        except RuntimeError as error:
            causes = list(chain_of(error))
            if any(isinstance(cause, torch.cuda.OutOfMemoryError) for cause in causes):
                self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause + 1, LONGEST_PAUSE)
                self.remark = (f'{function.__qualname__} runs operator by operator at a new size, for there is no '
                               'memory for its CUDA graph; it is tried again')
            else:
                self._refused = True
                self._recordings.clear()
                # torch says then that something went wrong before, and keeps what in the context
                self.remark = (f'{function.__qualname__} cannot be recorded as a CUDA graph and runs operator by '
                               f'operator: {first_line(causes[min(1, len(causes) - 1)])}')
            warnings.warn(self.remark, RuntimeWarning, stacklevel=3)
            return False
        self.made, self._next_pause, self.remark = self.made + 1, 0, ''
        return True


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the one that it was raised from or while handling, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class Recording:
    """A function recorded for arguments of certain shapes."""

    def __init__(self, function: Callable, args: tuple, recorder: GraphRecorder, kept: bool) -> None:
        with torch.inference_mode(False):   # whose tensors could be written to in inference mode alone
            self._inputs = [arg.clone() if isinstance(arg, Tensor) and not is_static(arg) else arg for arg in args]
        self._replay, self._result = recorder.record(lambda: function(*self._inputs), kept)
        for leaf in tree_leaves(self._result):
            if isinstance(leaf, Tensor):
                leaf.recorded = True

    def play(self, args: tuple) -> Any:
        """Return the result for these arguments, in memory that the next playing writes to."""
        for own, given in zip(self._inputs, args, strict=True):
            if isinstance(own, Tensor) and own is not given:
                own.copy_(given)
        self._replay()
        return self._result


def is_static(tensor: Tensor | None) -> bool:
    """Return whether a tensor is the result of a recording, or a weight."""
    return isinstance(tensor, nn.Parameter) or getattr(tensor, 'recorded', False)


def copied_out(leaf: Any) -> Any:
    """Return a result in its own memory, except for a weight that a function passes on."""
    return leaf.clone() if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter) else leaf


def signature(tensor: Tensor) -> tuple:
    """Return what a recording depends on; the values that it reads are at the address, or are copied there."""
    return tensor.shape, tensor.dtype, tensor.data_ptr() if is_static(tensor) else None


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run recorded parts operator by operator while the block runs, so that the operators can be observed."""
    Recorded.eager, before = True, Recorded.eager
    try:
        yield
    finally:
        Recorded.eager = before


def recorded_parts(model: nn.Module) -> list[Recorded]:
    """Return the parts that :func:`record_parts` has made."""
    return [part for module in model.modules() for part in vars(module).values() if isinstance(part, Recorded)]


def record_parts(model: VideoInstanceModel, recorder: GraphRecorder) -> VideoInstanceModel:
    """Return the model with its parts recorded when they first run at a size, in place."""
    # of weights with a gradient mixed precision keeps what it has cast, made in one graph and read in others
    decoder = model.requires_grad_(False).decoder
    parts = [(model, 'prepare', False), (model.backbone, 'forward', False), (model.pixel_decoder, 'forward', False),
             (decoder, 'level_memory', False), (decoder, 'attended', True), (decoder, 'scores', True),
             (decoder, 'heads', True)]
    if decoder.synchronizer is not None:    # else it does nothing, or what is the host's, an assignment
        parts.append((decoder.synchronizer, 'forward', True))
    if model.tracker is not None:
        parts += [(part, 'forward', True) for part in model.tracker.recordable()]
    for owner, name, kept in parts:
        setattr(owner, name, Recorded(getattr(owner, name), recorder, kept))
    return model
