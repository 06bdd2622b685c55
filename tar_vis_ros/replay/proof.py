"""Proof that two replays gave the same answers: their SHA-256, image by image and bag by bag."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tar_vis_core.errors import DataError
from tar_vis_core.instances import FrameResult
from tar_vis_core.io.json_files import read_json
from tar_vis_ros.replay.outcome import BagOutcome, ImageOutcome


def answer_sha256(result: FrameResult, first_epoch: int) -> str:
    """Return the SHA-256 of all that a node answered about an image but times.

    Epochs count from ``first_epoch``, that of the replay's first answer: a node begins with the clock's seconds.
    """
    digest = hashlib.sha256(repr((
        result.height, result.width, result.frame_index, result.track_epoch - first_epoch, result.reset_reason,
        [bool(ran) for ran in result.routing.executed], bool(result.encoder_reused))).encode())
    for one in result.instances:
        digest.update(repr((one.track_id, int(one.status), one.age, one.class_id, one.class_name,
                            float(one.score).hex(), tuple(map(int, one.box)), int(one.area))).encode())
        digest.update(one.runs.astype('<u4').tobytes())
    return digest.hexdigest()


def answers_sha256(images: Sequence[ImageOutcome]) -> str:
    """Return the SHA-256 of a bag's answers in the order of its images; an image without an answer counts, too."""
    return hashlib.sha256('\n'.join(image.answer or 'none' for image in images).encode()).hexdigest()


def read_reference(path: Path) -> dict[str, dict]:
    """Return the bags of a report.json by name. Raise DataError if it is none, or one without SHA-256 of answers."""
    try:
        bags = {bag['name']: bag for bag in read_json(path)['bags'] if bag['answers_sha256']}
    except (OSError, DataError, KeyError, TypeError) as error:
        raise DataError(f'{path}: not a report of answers with their SHA-256 ({type(error).__name__}: {error}); '
                        'expected the report.json of a lossless replay') from error
    if not bags:
        raise DataError(f'{path}: no bag with answers in it')
    return bags


def differences(reference: Mapping[str, dict], folder: Path, outcomes: Sequence[BagOutcome]) -> Iterator[str]:
    """Yield a line for each bag whose answers are not those of the reference.

    ``folder`` is that of the reference. If its frames.json is there, the line names the first image that differs.
    """
    for outcome in outcomes:
        if outcome.name not in reference:
            yield f'{outcome.name}: not in the reference, which has {", ".join(reference)}'
            continue
        before = reference[outcome.name]
        if before['answers_sha256'] == outcome.answers_sha256:
            continue
        reasons = []
        if sorted(before['sha256'].values()) != sorted(outcome.sha256.values()):
            reasons.append('the bag is another one')
        reasons += [f'{name} was {before["parameters"].get(name)!r} and is {value!r}'
                    for name, value in outcome.parameters.items()
                    if not name.startswith('qos_overrides') and before['parameters'].get(name) != value]
        try:
            there = BagOutcome.read(folder / outcome.name).frames
            first = next((ours.index for ours, theirs in zip(outcome.frames, there, strict=False)
                          if ours.answer != theirs.answer), min(len(there), len(outcome.frames)))
            reasons.insert(0, f'first at image {first}')
        except (OSError, ValueError, TypeError):
            pass
        yield f'{outcome.name}: the answers differ' + (f' ({"; ".join(reasons)})' if reasons else '')
    done = {outcome.name for outcome in outcomes}
    yield from (f'{name}: in the reference, and not replayed' for name in reference if name not in done)
