"""The command ``tar-vis doctor``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from tar_vis_ros.doctor.finding import Finding


def findings() -> Iterator[Finding]:
    """Yield everything, the quick things first."""
    from tar_vis_ros.doctor import computer, graph

    yield from computer.computer()
    ros = graph.installation()
    yield ros
    yield graph.domain()
    if not ros.wrong:
        yield from graph.graph()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings, line by line. Return 1 if something is wrong."""
    argparse.ArgumentParser('tar-vis doctor', description=(
        'Check this machine and print remedies: versions, processor, devices, weights, ROS, middleware, active image '
        "topics, this package's nodes. It listens for some seconds. Exit code 1: something is wrong.")).parse_args(argv)
    wrong = 0
    for finding in findings():
        print(finding, flush=True)
        wrong += finding.wrong
    print(f'{wrong} wrong' if wrong else 'nothing is wrong')
    return int(wrong > 0)
