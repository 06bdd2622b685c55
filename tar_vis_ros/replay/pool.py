"""Replay several bags at once, each in its own process on its own ROS domain."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict

from tqdm import tqdm

from tar_vis_ros.process.children import ChildProcess, StopRequest, free_domain
from tar_vis_ros.replay.outcome import Job

PATIENCE_S = 20.0       # for a process that ends its node first


class Replaying:
    """One bag that is being replayed."""

    def __init__(self, job: Job, domain: int | None) -> None:
        self.job, self.domain = job, domain
        self.asked = False
        environment = {} if domain is None else {
            'ROS_DOMAIN_ID': str(domain),
            'ROS_AUTOMATIC_DISCOVERY_RANGE': os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')}
        self.child = ChildProcess(job.bag, 'tar_vis_ros.replay.worker', [json.dumps(asdict(job))], environment)

    @property
    def images(self) -> int:
        """Return the number of images played so far."""
        for line in reversed(list(self.child.lines)):
            if found := re.fullmatch(r'image (\d+)', line):
                return int(found[1]) + 1
        return 0

    @property
    def last_words(self) -> str:
        """Return the lines that it printed about its end."""
        said = list(self.child.lines)
        start = max((n for n, line in enumerate(said, 1) if line.startswith('image ')), default=0)
        return '\n'.join(said[start:])


def replay_all(jobs: Sequence[Job], at_once: int, images: int, interrupt: StopRequest) -> dict[Job, tuple[int, str]]:
    """Return exit code and last words of each job that was begun; ``images`` is the total of the progress bar.

    Each job has a free ROS domain, but a job that drives a running node keeps that of this process. After an
    interruption nothing new begins, and the jobs that run end in order.
    """
    waiting, running, ended = list(jobs), [], {}
    played = 0
    bar = tqdm(total=images, unit='image', dynamic_ncols=True, disable=None, desc='replaying')
    try:
        while running or (waiting and not interrupt()):
            while waiting and len(running) < at_once and not interrupt():
                job = waiting.pop(0)
                running.append(Replaying(job, None if job.node else _unused(running)))
            for one in list(running):
                if interrupt() and not one.asked:
                    one.child.interrupt()
                    one.asked = True
                if one.child.code is not None:
                    one.child.end()
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
                one.child.end(PATIENCE_S)
    return ended


def _unused(running: Sequence[Replaying]) -> int:
    """Return a free domain that none of the others was given: theirs may not be in use yet."""
    while (domain := free_domain()) in {one.domain for one in running}:
        pass
    return domain
