"""``tar-vis-replay``: send recorded images through the node, and report on its answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from tar_vis_core.errors import TarVisError
from tar_vis_core.flags import add_flags, chosen
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.terminal import say_anything
from tar_vis_core.io.whole_files import make_folder, write_text
from tar_vis_core.io.yaml_files import parse_yaml
from tar_vis_core.options import option, options_of
from tar_vis_ros.bags.reader import ImageBag
from tar_vis_ros.node.settings import TABLE
from tar_vis_ros.process.children import StopRequest
from tar_vis_ros.process.dds import use_shared_memory_profile
from tar_vis_ros.process.parameter_files import PARAMETERS, is_for, listed, sections
from tar_vis_ros.replay import report
from tar_vis_ros.replay.comparison import table
from tar_vis_ros.replay.outcome import NODE, BagOutcome, Job, ReplayOptions
from tar_vis_ros.replay.pool import replay_all
from tar_vis_ros.replay.proof import differences, read_reference
from tar_vis_ros.replay.truth import find_truth

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
OWN = ('image_topics', 'image_transport', 'autostart')      # parameters that a replay sets itself
FILES = ('report.html', 'report.json', 'results.json')

DESCRIPTION = """Replay recorded images through the node and report on its answers.

  lossless   the next image when the last one is answered: accuracy, whatever the speed of this machine
  realtime   every image at its recorded time: latency and drops on this machine

Without --node every bag gets its own node on its own ROS domain. Ground truth is NAME.truth.json beside the bag
(tar-vis-bag from-youtube-vis makes both), or --truth. --out receives report.html, report.json, results.json, and a
folder for each bag: its answers as a bag (answers), one record for each image (frames.json), pictures.
Exit code: 0; 1 if a node failed or an answer differs from --check; 2 for bad input; 130 after Ctrl-C. Images that were
processed are reported in any case.
"""


@dataclass(frozen=True, kw_only=True)
class ReplayRun(ReplayOptions):
    """The choices of a command line."""

    bags: list[Path]
    out: Path
    truth: Path | None
    parameter: list[str]        # NAME:=VALUE, of the node that is started
    params_file: Path | None
    jobs: int = option(1, 'bags at once; more disturb the times of each other', low=1, high=1000)
    check: Path | None          # report.json of an earlier replay whose answers are expected
    compare: list[Path] | None  # two --out folders; nothing is replayed then


def command_line() -> argparse.ArgumentParser:
    """Return the options of ``tar-vis-replay``."""
    parser = argparse.ArgumentParser(prog='tar-vis-replay', description=DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bags', nargs='*', type=user_path, metavar='BAG', help='rosbag2 folder, .db3 or .mcap file')
    parser.add_argument('--out', type=user_path, default=Path('replay'), metavar='FOLDER',
                        help='(default: %(default)s)')
    parser.add_argument('--truth', type=user_path, metavar='JSON',
                        help='YouTube-VIS file with a video for each bag, of its name (default: NAME.truth.json)')
    parser.add_argument('-p', '--parameter', action='append', default=[], metavar='NAME:=VALUE',
                        help='a parameter of the node that is started; may come again')
    parser.add_argument('--params-file', type=user_path, metavar='YAML', help='parameters of the node that is started')
    parser.add_argument('--check', type=user_path, metavar='REPORT.json',
                        help='lossless: end with 1 if an answer is not that of this earlier replay; times do not '
                        'count')
    parser.add_argument('--compare', type=user_path, nargs=2, metavar=('A', 'B'),
                        help='replay nothing: print the differences of two --out folders, with intervals')
    add_flags(parser, options_of(ReplayRun))
    return parser


def parsed(words: Sequence[str]) -> ReplayRun:
    """Return the choices of a command line. Raise ValueError for a value that is not allowed."""
    args, known = command_line().parse_args(words), options_of(ReplayRun)
    return chosen(args, ReplayRun, **{name: value for name, value in vars(args).items() if name not in known})


def check_options(choices: ReplayRun) -> None:
    """Raise TarVisError for options that do not fit together, ParameterError for a parameter that the node refuses."""
    if bool(choices.bags) == bool(choices.compare):
        raise TarVisError('expected the bags to replay, or --compare with the folders of two replays')
    if choices.check and choices.mode != 'lossless':
        raise TarVisError('--check is for --mode lossless: in real time the answers depend on the speed of the machine')
    if choices.check and choices.check.absolute().parent == choices.out.absolute():
        raise TarVisError(f'--check: {choices.check} would be written over, give another --out')
    if choices.node and (choices.parameter or choices.params_file or choices.jobs > 1):
        raise TarVisError('--node drives a node that runs already: -p, --params-file and --jobs are for nodes that are '
                          'started here')
    if choices.to and not choices.node:
        raise TarVisError('--to is for --node: a node that is started here listens on the topic of the bag')
    for path in (choices.params_file, choices.truth):
        if path and not path.is_file():
            raise TarVisError(f'{path}: no such file')
    if choices.out.exists() and not choices.out.is_dir():
        raise TarVisError(f'--out {choices.out} is a file; expected a folder, which may be there or not')
    for text in choices.parameter:
        name, given, value = text.partition(':=')
        if not given:
            raise TarVisError(f'-p {text}: expected NAME:=VALUE')
        if name in OWN:
            raise TarVisError(f'-p {text}: the replay sets {", ".join(OWN)} itself')
        if name in TABLE.options:
            TABLE.check(name, parse_yaml(value, f'-p {text}'))
        elif not name.startswith('qos_overrides.'):
            raise TarVisError(f'-p {text}: {TABLE.unknown(name)}')


def plan(choices: ReplayRun) -> tuple[list[Job], int, dict[str, str]]:
    """Return the jobs, their number of images, and by path what is wrong with the other bags."""
    jobs, images, bad, taken = [], 0, {}, set()
    pictures = max(1, choices.pictures // len(choices.bags)) if choices.pictures else 0
    for number, path in enumerate(map(str, choices.bags), 1):
        try:
            with ImageBag(path, choices.topic) as bag:
                find_truth(bag, choices.truth, len(choices.bags) == 1)
                images += bag.count
                name = bag.name if bag.name not in taken else f'{bag.name}_{number}'
        except (TarVisError, OSError) as error:
            bad[path] = str(error)
            continue
        taken.add(name)
        jobs.append(Job(
            bag=path, folder=str(choices.out / name), number=number, alone=len(choices.bags) == 1,
            parameters=tuple(choices.parameter), params_file=str(choices.params_file or ''),
            truth=str(choices.truth or ''),
            **{name: getattr(choices, name) for name in options_of(ReplayOptions)} | {'pictures': pictures}))
    return jobs, images, bad


def own_parameters(path: Path, folder: Path) -> Path:
    """Return a parameter file for the node that is started here: this one, or a copy of its section for another name.

    A robot's file may be for /robot1/tar_vis. If it has exactly one such section, that is used. Raise TarVisError
    otherwise.
    """
    held = sections(path)
    if any(is_for(section, NODE) for section in held):
        return path
    meant = [name for name in held if name.rpartition('/')[2] == NODE.strip('/')] or list(held)
    if len(meant) > 1:
        raise TarVisError(f'{path}: none of its parameters are for {NODE}, it has those of {listed(held)}; expected '
                          f'{NODE} or /**')
    print(f'tar-vis-replay: {path}: the parameters of {meant[0]} are taken', file=sys.stderr)
    copy = folder / 'parameters.yaml'
    write_text(copy, yaml.safe_dump({'/**': {PARAMETERS: dict(held[meant[0]])}}))
    return copy


def run(choices: ReplayRun) -> int:
    """Run the command and return the exit code. Raise TarVisError and OSError."""
    check_options(choices)
    if choices.compare:
        print(table(*choices.compare))
        return 0
    reference = read_reference(choices.check) if choices.check else None
    interrupt = StopRequest()
    jobs, images, bad = plan(choices)
    for line in bad.values():
        print(f'tar-vis-replay: {line}', file=sys.stderr)
    if not jobs:
        return BAD_INPUT
    make_folder(choices.out)
    for name in FILES:
        (choices.out / name).unlink(missing_ok=True)
    if choices.params_file:
        jobs = [replace(job, params_file=str(own_parameters(choices.params_file, choices.out))) for job in jobs]
    use_shared_memory_profile()
    ended = replay_all(jobs, choices.jobs, images, interrupt)
    codes, outcomes = [BAD_INPUT] * bool(bad), {}
    for job in [job for job in jobs if job in ended]:
        code, last_words = ended[job]
        codes.append(code)
        if code and not interrupt():
            print(f'tar-vis-replay: {last_words or f"{job.bag}: its process ended with code {code}"}', file=sys.stderr)
        try:
            outcome = BagOutcome.read(Path(job.folder))
        except (OSError, ValueError):     # nothing came of it
            continue
        if outcome.frames:
            outcomes[Path(job.folder)] = outcome
    if outcomes:
        write_and_print_report(choices, outcomes)
    if interrupt():
        print('tar-vis-replay: interrupted; what was answered until then is reported', file=sys.stderr)
        return INTERRUPTED
    if reference is not None:
        differ = list(differences(reference, choices.check.parent, list(outcomes.values())))
        for line in differ:
            print(f'tar-vis-replay: {line}', file=sys.stderr)
        if not differ:
            print(f'answers are those of {choices.check}')
        codes.append(FAILED if differ else 0)
    return next((code for code in (FAILED, BAD_INPUT) if code in codes), FAILED if any(codes) else 0)


def write_and_print_report(choices: ReplayRun, outcomes: dict[Path, BagOutcome]) -> None:
    """Write the report and print its figures."""
    given = {'command': report.command_text(), 'mode': choices.mode, 'rate': choices.rate,
            'node': choices.node or 'started here'}
    total = report.write_report(choices.out, outcomes, given)
    rows = [(f'{len(outcomes)} bag{"s" * (len(outcomes) > 1)}', f'{choices.mode}'
             + (f', {choices.rate:g} times as fast as recorded' if choices.mode == 'realtime' else ''))]
    rows += report.summary_lines(total) + [('report', str(choices.out / name)) for name in FILES[:1]]
    wide = max(len(label) for label, _ in rows) + 2
    print('\n'.join(f'{label:<{wide}}{text}' for label, text in rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 if a node failed, 2 for bad input, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if '--ros-args' in words:       # what launch adds
        words = words[:words.index('--ros-args')]
    say_anything()
    try:
        return run(parsed(words))
    except (TarVisError, ValueError, OSError) as error:
        print(f'tar-vis-replay: {error}', file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == '__main__':
    sys.exit(main())
