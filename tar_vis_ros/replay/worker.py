"""The process that replays one bag: ``python -m tar_vis_ros.replay.worker JOB``, JOB being a Job as JSON.

It prints ``image N`` as it goes, and at the end one line if something went wrong. The images that were processed are
judged and written however it ends, except after a second Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import rclpy
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.exceptions import InvalidTopicNameException
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import parameter_value_to_python
from rclpy.signals import SignalHandlerOptions
from rclpy.validate_full_topic_name import validate_full_topic_name
from std_srvs.srv import Trigger

from tar_vis_core.errors import DataError, TarVisError
from tar_vis_core.io.whole_files import make_folder
from tar_vis_core.models.class_sets import plain_name
from tar_vis_core.models.presets import FOREIGN, PRESETS, preset_of
from tar_vis_core.weights.manifest import sha256_of
from tar_vis_ros.bags.reader import BagError, ImageBag, RecordedMessage
from tar_vis_ros.bags.writer import BagWriter
from tar_vis_ros.process.children import ChildProcess, ProcessError, ServiceCaller, StopRequest
from tar_vis_ros.replay import pictures, scoring
from tar_vis_ros.replay.outcome import ANSWERS, FRAMES, NODE, PICTURES, RESULTS, BagOutcome, Job
from tar_vis_ros.replay.player import Player
from tar_vis_ros.replay.truth import Truth, find_truth

STAND_IN = '/replay/image'  # for a topic that ROS 2 does not take
CONFIGURE_S = 300.0         # the model loads and warms up
FIND_S = 10.0               # a running node is found
PRINT_S = 0.2               # between two lines about the progress
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def clear_folder(folder: Path) -> None:
    """Make a folder, or remove the files of an earlier run from it and nothing else."""
    make_folder(folder)
    for name in (FRAMES, RESULTS):
        (folder / name).unlink(missing_ok=True)
    for name in (ANSWERS, PICTURES):
        shutil.rmtree(folder / name, ignore_errors=True)


def node_arguments(job: Job, bag: ImageBag) -> list[str]:
    """Return the ROS arguments of the node: the user's, then those of a replay."""
    needs = ["image_topics:=['']", f'image_transport:={"compressed" if bag.compressed else "raw"}', 'autostart:=false']
    if job.mode == 'lossless':
        needs.append('image_reliability:=reliable')
    files = ['--params-file', job.params_file] if job.params_file else []
    return ['--ros-args', '-r', f'image:={publish_topic(job, bag).removesuffix("/compressed")}', *files,
            *(part for value in (*job.parameters, *needs) for part in ('-p', value))]


def publish_topic(job: Job, bag: ImageBag) -> str:
    """Return where the images go: a compressed topic ends as image_transport wants it.

    A bag may come from ROS 1 and have a name that ROS 2 does not take. The node that is started here gets its images
    under another name then. Raise BagError if one that runs already should.
    """
    topic = job.to or bag.topic
    try:
        validate_full_topic_name('/' + topic.lstrip('/'))
    except InvalidTopicNameException as error:
        if job.node:
            raise BagError(f'{bag.path}: ROS 2 takes no topic {topic} ({str(error).partition(":")[0]}); give the '
                           'topic that the node listens on with --to') from error
        topic = STAND_IN
    return topic if not bag.compressed or topic.endswith('/compressed') else f'{topic}/compressed'


def check_classes(parameters: dict, truth: Truth | None) -> None:
    """Raise DataError if the node's model knows no class of the ground truth: nothing it finds would count."""
    try:
        name = preset_of(str(parameters.get('model', '')), str(parameters.get('backbone', '')))
    except ValueError:      # a node of another version
        return
    if truth is None or name in FOREIGN:    # its classes are known to the node alone
        return
    known = {plain_name(label) for label in PRESETS[name].class_names}
    if not any(plain_name(label) in known for label in truth.categories.values()):
        raise DataError(f'{truth.path}: none of its classes ({", ".join(list(truth.categories.values())[:5])}) is one '
                        f'of the model {name}; choose a model that knows them, or move the file away')


def with_progress(images: Iterable[RecordedMessage]) -> Iterator[RecordedMessage]:
    """Yield the images, and print a line now and then for the process that shows the progress."""
    printed = 0.0
    for image in images:
        if time.monotonic() - printed > PRINT_S:
            print(f'image {image.index}', flush=True)
            printed = time.monotonic()
        yield image


@contextlib.contextmanager
def ros_node(interrupt: StopRequest,
             children: list[ChildProcess]) -> Iterator[tuple[rclpy.node.Node, SingleThreadedExecutor]]:
    """Provide our own node and its executor; at the end the children end as well, undisturbed."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node, executor = rclpy.create_node('tar_vis_replay'), SingleThreadedExecutor()
    executor.add_node(node)
    try:
        yield node, executor
    finally:
        with interrupt.ignored():
            for child in children:
                child.end()
            executor.shutdown()
            rclpy.try_shutdown()


def replay_bag(job: Job, bag: ImageBag, outcome: BagOutcome, truth: Truth | None, interrupt: StopRequest) -> list[int]:
    """Play the bag. Return the answered images in the order of their answers. ``outcome`` says what ended it."""
    children: list[ChildProcess] = []
    prefix = '/' + job.node.strip('/') if job.node else NODE
    player = None
    try:
        with ros_node(interrupt, children) as (node, executor):
            player = Player(node, executor, publish_topic(job, bag), bag.compressed, prefix)
            outcome.frames = player.frames
            caller = ServiceCaller(node, executor, children, interrupt)
            if job.node:
                find_node(caller, player, prefix, publish_topic(job, bag))
            else:
                children.append(ChildProcess('the node', 'tar_vis_ros.node', node_arguments(job, bag)))
                caller.bring_up(NODE, CONFIGURE_S)
            outcome.parameters = parameters_of(caller, node, prefix)
            check_classes(outcome.parameters, truth)
            caller.wait(lambda: player.listeners, f'nobody listened on {publish_topic(job, bag)}', FIND_S)
            with BagWriter(Path(job.folder) / ANSWERS, bag.storage, player.topics) as writer:
                if job.mode == 'lossless':
                    player.lossless(with_progress(bag.images()), writer, caller, job.patience)
                else:
                    player.real_time(with_progress(bag.images()), writer, caller, job.rate)
    except KeyboardInterrupt:
        outcome.problem, outcome.exit_code = 'interrupted', INTERRUPTED
        while outcome.frames and not outcome.frames[-1].answered:     # on their way, not dropped
            outcome.frames.pop()
    except TarVisError as error:
        outcome.problem = str(error)
        outcome.exit_code = BAD_INPUT if isinstance(error, BagError | DataError) else FAILED
        complaint = next((child.complaints[-1] for child in children if child.complaints), '')
        if complaint and complaint not in outcome.problem:
            outcome.problem += f'; the node said: {complaint}'
    return player.order if player else []


def find_node(caller: ServiceCaller, player: Player, prefix: str, topic: str) -> None:
    """Wait for a running node and reset it, so that tracks start anew. Raise ProcessError."""
    caller.call(Trigger, f'{prefix}/reset', Trigger.Request(), FIND_S,
                f'{prefix}/reset did not answer (start the node, or name the one that runs with --node)')
    caller.wait(lambda: player.listeners, f'nobody listened on {topic} (activate {prefix}, or give the topic that it '
                                          'listens on with --to)', FIND_S)


def parameters_of(caller: ServiceCaller, node: rclpy.node.Node, prefix: str) -> dict:
    """Return the parameters of the node with these outputs, which may be of one of its cameras; {} without one."""
    services = {name for name, _ in node.get_service_names_and_types()}
    name = next((n for n in (prefix, prefix.rpartition('/')[0]) if f'{n}/list_parameters' in services), '')
    if not name:
        return {}
    names = caller.call(ListParameters, f'{name}/list_parameters', ListParameters.Request(), FIND_S).result.names
    values = caller.call(GetParameters, f'{name}/get_parameters', GetParameters.Request(names=names), FIND_S).values
    return {key: parameter_value_to_python(value) for key, value in zip(names, values, strict=True)}


def run(job: Job, interrupt: StopRequest) -> BagOutcome:
    """Replay, judge and draw one bag. Raise TarVisError if there is nothing to keep."""
    folder = Path(job.folder)
    clear_folder(folder)
    with ImageBag(job.bag, job.topic) as bag:
        truth = find_truth(bag, Path(job.truth) if job.truth else None, job.alone)
        outcome = BagOutcome(folder.name, str(bag.path), bag.topic, bag.storage, {}, bag.count)
        order = replay_bag(job, bag, outcome, truth, interrupt)
        try:
            write_results(job, bag, outcome, order, truth)
        except (TarVisError, OSError) as error:
            if not outcome.problem:
                raise
            # what ended the replay, such as a full disk, is also why its answers cannot be read
            raise TarVisError(outcome.problem) from error
    return outcome


def write_results(job: Job, bag: ImageBag, outcome: BagOutcome, order: Sequence[int], truth: Truth | None) -> None:
    """Judge and draw the images that were answered, in the ``order`` of the answers. Raise TarVisError and OSError."""
    folder = Path(job.folder)
    if outcome.frames:
        outcome.sha256 = {path.name: sha256_of(path) for path in bag.files}
        try:
            scoring.score_answers(outcome, folder, order, truth, job.number)
        except DataError as error:      # the truth does not fit: the answers are reported without it
            outcome.problem, outcome.exit_code, truth = str(error), BAD_INPUT, None
            scoring.score_answers(outcome, folder, order, truth, job.number)
        pictures.draw_pictures(outcome, folder, bag, order, truth, job.pictures)
    outcome.write(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 for a node that failed, 2 for bad input, 130 after Ctrl-C."""
    job = Job.from_json(json.loads((sys.argv[1:] if argv is None else argv)[0]))
    interrupt = StopRequest()
    try:
        outcome = run(job, interrupt)
    except ProcessError as error:
        print(error, flush=True)
        return FAILED
    except (TarVisError, OSError) as error:
        print(error, flush=True)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    if outcome.problem:
        print(outcome.problem, flush=True)
    return outcome.exit_code


if __name__ == '__main__':
    sys.exit(main())
