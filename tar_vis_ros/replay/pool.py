"""Replay several bags at once, each in its own process on its own ROS domain."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict

from tqdm import tqdm

from tar_vis_ros.process.children import ChildProcess, StopRequest
from tar_vis_ros.process.domains import ClaimedDomain
from tar_vis_ros.replay.outcome import Job

PATIENCE_S = 20.0       # for a process that ends its node first
PROGRESS = re.compile(r'image (\d+)')        # a line of the worker, as far as it is


class RunningReplay:
    """One bag that is being replayed."""

    def __init__(self, job: Job) -> None:
        self.job, self.interrupted = job, False
        # a job that drives a running node stays on this process's domain
        self.domain = None if job.node else ClaimedDomain()
        environment = {} if self.domain is None else {
            'ROS_DOMAIN_ID': str(self.domain.number),
            'ROS_AUTOMATIC_DISCOVERY_RANGE': os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')}
        self.child = ChildProcess(job.bag, 'tar_vis_ros.replay.worker', [json.dumps(asdict(job))], environment)

    def end(self, patience_s: float = PATIENCE_S) -> None:
        """End the process if it still runs, and let others have its domain."""
        self.child.end(patience_s)
        if self.domain is not None:
            self.domain.release()

    @property
    def images(self) -> int:
        """Return the number of images played so far."""
        for line in reversed(list(self.child.lines)):
            if found := PROGRESS.fullmatch(line):
                return int(found[1]) + 1
        return 0

    @property
    def last_words(self) -> str:
        """Return the lines that it printed about its end."""
        lines = list(self.child.lines)
        start = max((n for n, line in enumerate(lines, 1) if PROGRESS.fullmatch(line)), default=0)
        return '\n'.join(lines[start:])


def replay_all(jobs: Sequence[Job], at_once: int, images: int, interrupt: StopRequest) -> dict[Job, tuple[int, str]]:
    """Return exit code and last words of each job that was begun; ``images`` is the total of the progress bar.

    Each job has a ROS domain of its own, but a job that drives a running node keeps that of this process. After an
    interruption nothing new begins, and the jobs that run end in order.
    """
    waiting, running, ended = list(jobs), [], {}
    played = 0
    bar = tqdm(total=images, unit='image', dynamic_ncols=True, disable=None, desc='replaying')
    try:
        while running or (waiting and not interrupt()):
            while waiting and len(running) < at_once and not interrupt():
                job = waiting.pop(0)
                running.append(RunningReplay(job))
            for one in list(running):
                if interrupt() and not one.interrupted:
                    one.child.interrupt()
                    one.interrupted = True
                if one.child.code is not None:
                    one.end()
                    running.remove(one)
                    played += one.images
                    ended[one.job] = one.child.code, one.last_words
            bar.update(played + sum(one.images for one in running) - bar.n)
            time.sleep(0.05)
    finally:
        bar.close()
        with interrupt.ignored():
            for one in running:
                one.child.interrupt()
            for one in running:
                one.end()
    return ended
