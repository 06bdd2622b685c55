"""The command ``tar-vis see``."""

from __future__ import annotations

import argparse
import json
import math
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence

from tar_vis_core.errors import TarVisError, one_line
from tar_vis_ros.see.sight import Sight, sight

DESCRIPTION = """Print the objects in sight: place, age, score.

  tar-vis see --json                 one document from the node that runs
  tar-vis see --json --watch         one line for each change
  tar-vis see street.jpg --json      from a picture, without ROS; --watch for every frame of a video or camera

With --json an error is a document as well: {"error": "..."}. Exit code: 0; 1 if nothing can be seen, with the reason.
"""
INTERVALS = 30          # answers that the rate is estimated from
PLACE_S = 1.0           # largest age of the depth_lifter's positions, which come after their masks


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog='tar-vis see', description=DESCRIPTION,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument('source', nargs='?', help='picture, video, folder or camera (0); default: a node that runs')
    made.add_argument('--json', action='store_true', help='one JSON document a line; default: one sentence')
    made.add_argument('--watch', action='store_true', help='go on until Ctrl-C')
    made.add_argument('--every', action='store_true', help='with --watch: each answer, not only those with changes')
    made.add_argument('--namespace', default='tar_vis', help="the node's, or one camera's such as tar_vis/front "
                      '(default: %(default)s)')
    made.add_argument('--timeout', type=float, default=10.0, metavar='SECONDS',
                      help='wait so long for an answer of the node (default: %(default)g)')
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is in sight. Return 1 if nothing can be seen."""
    args = parser().parse_args(argv)
    before = None
    try:
        for seen in of_source(args.source) if args.source else of_node(args.namespace, args.timeout, args.watch):
            now = key(seen)
            if args.every or now != before:
                print(json.dumps(seen.as_dict()) if args.json else seen.text, flush=True)
            before = now
            if not args.watch:
                break
    except (KeyboardInterrupt, BrokenPipeError):
        sys.stderr.close()      # what a closed pipe would have Python say at its end
    except (TarVisError, ValueError, OSError) as error:
        if not args.json:
            raise
        print(json.dumps({'error': one_line(error)}))
        return 1
    return 0


def key(seen: Sight) -> object:
    """Return what counts as a change: who is there, and in which third of the image."""
    return seen.track_epoch, [(one.id, one.class_name, one.status == 'lost', one.where) for one in sorted(
        seen.objects, key=lambda one: one.id)]


def of_source(source: str) -> Iterator[Sight]:
    """Yield what the default model sees in each frame of a picture, a video, a folder or a camera."""
    from tar_vis_core.media.frames import open_frames, play
    from tar_vis_core.segmenter import VideoSegmenter

    segmenter = VideoSegmenter()
    state, rate = segmenter.new_state(), Rate()
    with open_frames(source) as reader:
        for frame in play(reader):
            result = segmenter.step(frame.image, state, frame.position_s)
            interval = rate.add(result.track_epoch, result.frame_index, frame.position_s)
            yield sight(result.instances, result.height, result.width, result.track_epoch, interval_s=interval)


class Rate:
    """The time between two answers of a node, from stamps and numbers of those that were heard."""

    def __init__(self) -> None:
        self._last: tuple[int, int, float] | None = None
        self._gaps: deque[float] = deque(maxlen=INTERVALS)

    def add(self, epoch: int, index: int, stamp_s: float) -> float | None:
        """Take an answer. Return the median seconds for one, None while they are not known."""
        last, self._last = self._last, (epoch, index, stamp_s)
        if last and last[0] == epoch and index > last[1] and stamp_s > last[2]:
            self._gaps.append((stamp_s - last[2]) / (index - last[1]))
        return statistics.median(self._gaps) if self._gaps else None


def of_node(namespace: str, timeout_s: float, watch: bool) -> Iterator[Sight]:
    """Yield what a running node answers: each answer, or the second one, for which the rate is known.

    Raise TarVisError if the node is silent for ``timeout_s``.
    """
    from tar_vis_ros.process.which_ros import ros_problem

    if any(problem := ros_problem()):
        raise TarVisError(': '.join(problem))
    try:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        from tar_vis_ros.client import Frame, InstanceClient, has_position
        from tar_vis_ros.conversions.stamps import seconds_of, stamp_of, stamp_text
    except ImportError as error:
        raise TarVisError(f'ROS cannot be loaded ({error}): source it, or give a picture; tar-vis doctor shows more'
                          ) from error
    from tar_vis_ros.process.dds import use_shared_memory_profile

    use_shared_memory_profile()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    ended: list[int] = []       # an exception may come at any place, also where ROS is left half closed
    usual = signal.signal(signal.SIGINT, lambda number, _: ended.append(number))
    node, frames = rclpy.create_node('tar_vis_see', start_parameter_services=False), deque()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        client = InstanceClient(node, namespace, frames.append)
        topic = f'/{namespace.strip("/")}/instances'

        def seen(frame: Frame, interval_s: float | None) -> Sight:
            places, age = client.frame_3d, client.age_s(frame.header)
            near = {one.track_id: (one.position.x, one.position.y, one.position.z) for one in places.instances
                    if has_position(one)} if places is not None and places.track_epoch == frame.track_epoch and abs(
                        seconds_of(places) - seconds_of(frame)) <= PLACE_S else None
            return sight(frame.instances, frame.height, frame.width, frame.track_epoch,
                         stamp=stamp_text(stamp_of(frame)), age_s=age if age < math.inf else None,
                         frame_id=frame.header.frame_id, interval_s=interval_s, positions=near)

        rate, news, alone = Rate(), time.monotonic(), None
        while not ended:
            executor.spin_once(timeout_sec=0.2)
            while frames:
                alone, news = frames.popleft(), time.monotonic()
                interval = rate.add(alone.track_epoch, alone.frame_index, seconds_of(alone))
                if watch or interval is not None:
                    yield seen(alone, interval)
            if time.monotonic() - news > timeout_s:
                if alone is not None and not watch:
                    yield seen(alone, None)
                raise TarVisError(f'no answer on {topic} for {timeout_s:g} s: is the node active, and does it get '
                                  'images? tar-vis doctor shows more')
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        signal.signal(signal.SIGINT, usual)
