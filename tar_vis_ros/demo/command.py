"""``tar-vis-demo``: the whole path on one machine, from a video to pictures of what was found.

It starts the video source and the lifecycle node as processes on a free ROS domain and records what they publish. It
writes a video, a contact sheet, a routing picture and one JSON line for each frame.

From a file, a folder and the photographs, the source sends the next frame when the last one is answered, at most at the
file's own rate. So every frame is processed on any machine. ``--live`` sends at the full rate instead, as a camera
does, and the node drops the frames that it has no time for.

The node runs with its defaults and ``encoder_reuse:=4.0``: while the picture rests, masks of the last segmented frame
are taken over. ``-p encoder_reuse:=0.0`` segments every frame.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from tqdm import tqdm

from tar_vis_core.errors import TarVisError
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import make_folder
from tar_vis_core.media.frames import PHOTOGRAPHS, open_frames
from tar_vis_core.media.readers import camera_path
from tar_vis_core.models.presets import FOREIGN
from tar_vis_ros.demo.recorder import AnsweredFrame, FrameSummary, FrameWriter, Recorder
from tar_vis_ros.node.settings import TABLE
from tar_vis_ros.process.children import ChildProcess, ProcessError, ServiceCaller, StopRequest
from tar_vis_ros.process.dds import use_shared_memory_profile
from tar_vis_ros.process.domains import ClaimedDomain

NODE = '/tar_vis'
MAX_WIDTH = 1280            # wider images are scaled down to this
CONFIGURE_S = 180.0         # the model loads and warms up
CAMERA_RATE, CAMERA_FRAMES = 10.0, 200
SHOWN_COMPLAINTS = 10       # warnings and errors of the node and the source
QUIET_S = 3.0               # after the source's end, without an answer for so long: no more will come
REST = 4.0                  # grey levels, the node's encoder_reuse
RESULTS = ('overlay.mp4', 'sheet.png', 'routing.png', 'instances.jsonl')
INTERRUPTED = 130           # exit code after Ctrl-C


@dataclass(frozen=True)
class DemoRun:
    """The choices of a command line."""

    video: str | None         # a file or folder; None, and no camera: the photographs
    camera: str | None
    out: str
    frames: int               # 0: all
    rate: float               # 0: the source's own
    live: bool
    parameter: list[str]      # NAME:=VALUE, of the node
    domain_id: int            # 0: one that is free

    @property
    def given(self) -> dict[str, str]:
        """Return the node's parameters by their names."""
        return dict(text.split(':=', 1) for text in self.parameter if ':=' in text)

    @property
    def routing(self) -> str:
        """Return the node's parameter routing."""
        return self.given.get('routing', TABLE.options['routing'].default)


@dataclass(frozen=True)
class SourcePlan:
    """The arguments of the source, and what is known about it beforehand."""

    name: str
    arguments: list[str]
    total: int | None


def plan_source(options: DemoRun) -> SourcePlan:
    """Look at the source and choose the video source's arguments. Raise SourceError if there is no frame."""
    arguments = ['--wait-for-subscribers', '2']     # the node and the recorder
    live = options.live or options.camera is not None
    if options.camera is not None:
        source = name = camera_path(options.camera)
        total, width = CAMERA_FRAMES, 0
        rate, frames = options.rate or CAMERA_RATE, options.frames or CAMERA_FRAMES
    else:
        source, rate, frames = options.video or PHOTOGRAPHS, options.rate, options.frames
        with open_frames(source) as reader:
            name, total = reader.name, reader.count
            width = reader.read().shape[1]
    if width > MAX_WIDTH:
        arguments += ['--width', str(MAX_WIDTH)]
    if frames:
        arguments += ['--frames', str(frames)]
        total = min(frames, total or frames)
    if rate:
        arguments += ['--rate', str(rate)]
    if not live:
        # The source's own clock: a slow machine is no gap in the video.
        arguments += ['--follow', f'{NODE}/instances', '--stamps', 'source', '--follow-timeout-s', '30']
    return SourcePlan(name, [*arguments, '--', source], total)


def node_arguments(options: DemoRun) -> list[str]:
    """Return the ROS arguments of the node: given parameters and encoder_reuse; the others keep the node's defaults."""
    rests = 'encoder_reuse' not in options.given and options.given.get('model') not in FOREIGN
    settings = [f'encoder_reuse:={REST}'] * rests + options.parameter
    return ['--ros-args', *(part for setting in settings for part in ('-p', setting))]


def run_graph(options: DemoRun, plan: SourcePlan, writer: FrameWriter, interrupt: StopRequest) -> int:
    """Start everything and record until the source has ended and is answered. Return the number of frames sent."""
    children: list[ChildProcess] = []
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    bar = None

    def on_frame(frame: AnsweredFrame) -> None:
        writer.add(frame)
        if bar is not None:
            bar.set_postfix_str(f'{len(writer.frames[-1].tracks)} instances, {sum(writer.frames[-1].executed)} layers, '
                                f'{frame.latency_ms:.0f} ms', refresh=False)
            bar.update()

    try:
        recorder = Recorder(on_frame, NODE)
        executor.add_node(recorder)
        node = ChildProcess('the node', 'tar_vis_ros.node', node_arguments(options))
        children.append(node)
        source = ChildProcess('the video source', 'tar_vis_ros.video_source', plan.arguments)
        children.append(source)
        print('loading the model ...', flush=True)
        ServiceCaller(recorder, executor, children, interrupt).bring_up(NODE, CONFIGURE_S)
        bar = tqdm(total=plan.total, unit='frame', desc=plan.name, dynamic_ncols=True, disable=None)
        record(executor, recorder, source, node, writer, interrupt)
        bar.close()
        for line in [line for child in children for line in child.complaints][:SHOWN_COMPLAINTS]:
            print(line, file=sys.stderr)
        return frames_sent(source, recorder)
    finally:
        if bar is not None:
            bar.close()
        with interrupt.ignored():
            for child in children:
                child.interrupt()
            for child in children:
                child.end()
            executor.shutdown()
            rclpy.try_shutdown()


def record(executor: SingleThreadedExecutor, recorder: Recorder, source: ChildProcess, node: ChildProcess,
           writer: FrameWriter, interrupt: StopRequest) -> None:
    """Spin until the source has ended and its last frame is answered, or nothing more comes."""
    seen, last_news = 0, time.monotonic()
    asked = False
    while True:
        executor.spin_once(timeout_sec=0.1)
        source.check()
        node.check()
        if node.code is not None:
            raise node.error('ended too early')
        if interrupt() and not asked:
            asked = True
            source.interrupt()
        if len(writer.frames) != seen or source.code is None:
            seen, last_news = len(writer.frames), time.monotonic()
        if source.code is not None:
            slowest_s = max((frame.latency_ms for frame in writer.frames), default=0.0) / 1e3
            quiet_s = time.monotonic() - last_news
            if quiet_s > max(QUIET_S, 3 * slowest_s) or (recorder.complete and quiet_s > 0.3):
                return


def frames_sent(source: ChildProcess, recorder: Recorder) -> int:
    """Return the number of frames that the source reports; after an interruption, the number that arrived here."""
    for line in reversed(source.lines):
        if match := re.search(r'sent (\d+) frames', line):
            return int(match.group(1))
    return recorder.images_received


def summary_table(sent: int, frames: list[FrameSummary], routing: str) -> list[tuple[str, str]]:
    """Return the numbers of a run, as label and text."""
    latency = np.array([frame.latency_ms for frame in frames])
    step = np.array([frame.total_ms for frame in frames])
    layers = np.array([sum(frame.executed) for frame in frames])
    names: dict[tuple[int, int], Counter] = defaultdict(Counter)    # a track's class may waver: its commonest counts
    for frame in frames:
        for number, name in frame.tracks:
            names[frame.track_epoch, number][name] += 1
    per_class = Counter(counter.most_common(1)[0][0] for counter in names.values())
    classes = ', '.join(f'{count} {name}' for name, count in per_class.most_common(8))
    resets = sum(bool(frame.reset_reason) for frame in frames)
    rows = [
        ('frames sent', f'{sent}'),
        ('frames processed', f'{len(frames)}'),
        ('frames dropped', f'{max(0, sent - len(frames))}  ({sum(f.dropped for f in frames)} replaced by a newer one)'),
        ('tracks', f'{len(names)}' + (f'  ({classes})' if classes else '')),
        ('frames at rest', f'{sum(f.reused for f in frames)}  (masks taken over, no layer executed)'),
        ('executed layers, mean', f'{layers.mean():.2f} of {len(frames[0].executed)}  (routing: {routing})'),
        ('latency', f'p50 {np.percentile(latency, 50):.0f} ms, p95 {np.percentile(latency, 95):.0f} ms'),
        ('model step', f'p50 {np.percentile(step, 50):.0f} ms, p95 {np.percentile(step, 95):.0f} ms'),
    ]
    return rows + ([('resets', f'{resets}')] if resets else [])


def run(options: DemoRun) -> int:
    """Run the demo and return the exit code. Raise TarVisError."""
    plan = plan_source(options)
    folder = user_path(options.out)
    try:
        make_folder(folder)
        for name in RESULTS:    # what is there afterwards is of this run
            (folder / name).unlink(missing_ok=True)
        writer = FrameWriter(folder)
    except OSError as error:
        raise ProcessError(f'cannot write into {folder}: {error.strerror or error}') from None
    use_shared_memory_profile()
    domain = None if options.domain_id else ClaimedDomain()
    os.environ['ROS_DOMAIN_ID'] = str(domain.number if domain else options.domain_id)
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    interrupt = StopRequest()
    try:
        sent = run_graph(options, plan, writer, interrupt)
    finally:
        writer.close()
    if not writer.frames:
        if interrupt():
            raise KeyboardInterrupt
        raise ProcessError(f'{sent} frames were sent, but none was answered: run tar-vis-node by hand to see why')
    title = f'{plan.name}, {len(writer.frames)} frames, routing: {options.routing}'
    print('drawing the pictures ...', flush=True)
    from tar_vis_ros.demo.pictures import contact_sheet, routing_picture
    contact_sheet(writer.video.path, writer.frames, folder / 'sheet.png', title)
    routing_picture(writer.frames, folder / 'routing.png', title)
    rows = summary_table(sent, writer.frames, options.routing)
    codec = {'avc1': 'H.264', 'mp4v': 'MPEG-4'}[writer.video.codec]
    meanings = (f'masks, names and ids on every processed frame ({codec})', 'frames of it on one sheet',
                'decoder layers executed, frames at rest, inter-frame MSE',
                'one line per frame: instances, masks, layers, latency')
    rows += [(str(folder / name), meaning) for name, meaning in zip(RESULTS, meanings)]
    wide = max(len(label) for label, _ in rows) + 2
    print('\n'.join(f'{label:<{wide}}{text}' for label, text in rows))
    return INTERRUPTED if interrupt() and options.camera is None else 0


def parse(arguments: list[str] | None) -> DemoRun:
    """Return the choices of a command line."""
    parser = argparse.ArgumentParser(prog='tar-vis-demo', description=(__doc__ or '').partition('\n\n')[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument('--video', metavar='FILE', help='a video file, an image, or a folder of images '
                        "(default: a simulated camera over scikit-image's photographs)")
    source.add_argument('--camera', metavar='N', help=f'a camera, 0 or /dev/video0: {CAMERA_FRAMES} frames at '
                        f'{CAMERA_RATE:g} per second unless said otherwise; Ctrl-C ends earlier')
    parser.add_argument('--out', default='demo', metavar='FOLDER', help='where the results go (default: demo)')
    parser.add_argument('--frames', type=int, default=0, metavar='N', help='end after so many frames (default: all)')
    parser.add_argument('--rate', type=float, default=0.0, metavar='R',
                        help="frames per second at most (default: the file's own)")
    parser.add_argument('--live', action='store_true', help='send at the full rate and let the node drop what is late')
    parser.add_argument('-p', '--parameter', action='append', default=[], metavar='NAME:=VALUE',
                        help='a parameter of the node, such as routing:=full; may come again')
    parser.add_argument('--domain-id', type=int, default=0, metavar='N',
                        help='ROS domain to run in, to watch with other tools (default: one that is free)')
    return DemoRun(**vars(parser.parse_args(arguments)))


def main(args: list[str] | None = None) -> int:
    """Run the demo. Return 0, 1 with one line on stderr if something went wrong, or 130 after Ctrl-C."""
    options = parse(args)
    try:
        return run(options)
    except TarVisError as error:
        print(f'tar-vis-demo: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == '__main__':
    sys.exit(main())
