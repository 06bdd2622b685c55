"""Feed damaged and hostile input to the live code: ``make fuzz``, bounded, and the same seed gives the same inputs.

Each target runs in a child process with limits on memory and time, for a fault in C code ends the process. A finding is
an error that is none of the project's own, a message of several lines, a crash, ten seconds for one input, or memory
beyond the limit. The input of a finding is kept; ``--target NAME --from N --inputs 1`` makes it again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

PATIENCE_S = 10.0           # for one input
START_S = 120.0             # for imports and seeds, on a busy machine
ROOM = 1_500_000_000        # bytes of address space beyond what the imports took
GROWTH = 700_000            # KiB that one input may add to the resident memory
NAMES = 'pictures', 'labels', 'checkpoints', 'messages', 'bags'
NEEDS_ROS = 'messages', 'bags'


def child(name: str, folder: Path, seed: int, first: int, inputs: int, deadline: float) -> None:
    """Feed inputs one after the other; tell of each start and of each finding in a line of JSON."""
    from targets import TARGETS, check_line
    (folder / 'input').mkdir(parents=True, exist_ok=True)
    target = TARGETS[name](folder / 'input')
    taken = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, -1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    number = first
    while number < first + inputs and time.time() < deadline:
        target.make(np.random.default_rng([seed, NAMES.index(name), number]))
        print(json.dumps({'start': number}), flush=True)
        before, problem, answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, '', 'read'
        try:
            target.feed()
        except target.answers as error:
            answer = 'refused'
            try:
                check_line(error)
            except AssertionError as wrong:
                problem = str(wrong)
        except BaseException:
            problem = traceback.format_exc()[-3000:]
        if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > GROWTH:
            problem = problem or f'{grown // 1024} MiB of memory for one input'
        if problem:     # now, for the next input takes its place
            shutil.copytree(folder / 'input', folder / 'found' / str(number))
        print(json.dumps({'end': number, 'answer': answer, 'problem': problem}), flush=True)
        number += 1


class Watched:
    """A target's child process, watched from outside."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.name, self.seed, self.folder = name, seed, folder
        self.counts = {'read': 0, 'refused': 0}
        self.findings: list[str] = []

    def run(self, first: int, inputs: int, seconds: float) -> None:
        """Feed so many inputs, or for so long; start again behind one that ends the process."""
        deadline = time.time() + seconds
        number = first
        while number < first + inputs and time.time() < deadline:
            number = self._start(number, first + inputs - number, deadline)

    def _start(self, first: int, inputs: int, deadline: float) -> int:
        command = [sys.executable, str(HERE), '--child', '--target', self.name, '--seed', str(self.seed), '--from',
                   str(first), '--inputs', str(inputs), '--deadline', str(deadline), '--folder', str(self.folder)]
        log = (self.folder / 'stderr').open('w+b')
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=self.folder)
        os.set_blocking(process.stdout.fileno(), False)
        current, heard, rest, patience_s = None, time.time(), b'', START_S
        while True:
            chunk = process.stdout.read()
            if chunk:
                *lines, rest = (rest + chunk).split(b'\n')
                heard = time.time()
                for line in map(json.loads, lines):
                    current = line.get('start')
                    if 'end' in line:
                        patience_s = PATIENCE_S     # the first one imports what it needs
                        first, self.counts[line['answer']] = line['end'] + 1, self.counts[line['answer']] + 1
                        if line['problem']:
                            self._found(line['end'], line['problem'])
            elif process.poll() is not None:
                break
            elif time.time() - heard > (START_S if current is None else patience_s):
                process.kill()
                process.wait()
                self._found(first, f'no answer within {patience_s:.0f} s' if current is not None else 'did not start')
                return first + 1
            else:
                time.sleep(.02)
        if process.returncode:
            log.seek(0)
            self._found(first, f'exit code {process.returncode}: {log.read()[-1500:].decode(errors="replace")}')
            return first + 1
        return first if first > 0 and time.time() < deadline else first + inputs

    def _found(self, number: int, problem: str) -> None:
        kept = Path(f'fuzz_findings/{self.name}_{self.seed}_{number}').absolute()
        made = self.folder / 'found' / str(number)
        shutil.copytree(made if made.exists() else self.folder / 'input', kept, dirs_exist_ok=True)
        (kept / 'problem.txt').write_text(problem)
        self.findings.append(f'{self.name} {number}: {problem.strip().splitlines()[-1][:200]} (kept: {kept})')
        print(self.findings[-1], flush=True)


def main() -> int:
    """Return 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog='make fuzz', description=__doc__)
    parser.add_argument('--seconds', type=float, default=60, help='for all targets together (default: 60)')
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same inputs (default: 0)')
    parser.add_argument('--target', choices=NAMES, help='this one alone')
    parser.add_argument('--from', dest='first', type=int, default=0, metavar='N', help='begin at this input')
    parser.add_argument('--inputs', type=int, default=10**9, help='so many of each target at most')
    parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--deadline', type=float, help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.target, args.folder, args.seed, args.first, args.inputs, args.deadline)
        return 0
    names = [args.target] if args.target else list(NAMES)
    if subprocess.run([sys.executable, '-c', 'import sensor_msgs.msg'], capture_output=True).returncode:
        print(f'without ROS: {" and ".join(NEEDS_ROS)} are left out')
        names = [name for name in names if name not in NEEDS_ROS]
    total, findings = 0, 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix='fuzz_') as folder:
            watched = Watched(name, args.seed, Path(folder))
            watched.run(args.first, args.inputs, args.seconds / len(names))
            counts = watched.counts
        total, findings = total + sum(counts.values()), findings + len(watched.findings)
        print(f'{name:12} {sum(counts.values()):8} inputs: {counts["read"]} read, {counts["refused"]} refused, '
              f'{len(watched.findings)} findings', flush=True)
    print(f'{total} inputs, seed {args.seed}, {findings} findings')
    return 1 if findings else 0


if __name__ == '__main__':
    sys.exit(main())
