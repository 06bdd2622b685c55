"""The ground truth of a bag: one video of a YouTube-VIS file, its frames found by stamp or by their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tar_vis_core.data.ytvis import VideoRecord, load_ytvis
from tar_vis_core.errors import DataError
from tar_vis_core.evaluation.results_json import categories_of
from tar_vis_core.evaluation.tubes import TubePrediction
from tar_vis_ros.bags.maker import truth_path
from tar_vis_ros.bags.reader import ImageBag


@dataclass(frozen=True)
class Truth:
    """The labels of a bag."""

    path: Path
    record: VideoRecord
    categories: dict[int, str]      # all of the file, by id

    @cached_property
    def _frames(self) -> dict[int, int]:
        return {stamp: frame for frame, stamp in enumerate(self.record.stamps_ns)}

    def frame(self, index: int, stamp_ns: int) -> int:
        """Return the labelled frame of an image, -1 if there is none."""
        return self._frames.get(stamp_ns, -1) if self._frames else index


def find_truth(bag: ImageBag, given: Path | None, alone: bool) -> Truth | None:
    """Return the truth of a bag, from the ``given`` file or from NAME.truth.json beside it; None without either.

    In a file of several videos it is the one with the bag's name. ``alone`` says that there is no other bag; then the
    only video of a file belongs to this one. Raise DataError if it does not fit.
    """
    path = given or truth_path(bag.path)
    if given is None and not path.is_file():
        return None
    records = load_ytvis(path, pictures=False)
    named = [record for record in records if record.name == bag.name]
    if not named and len(records) == 1 and (alone or given is None):
        named = records
    if len(named) != 1:
        held = ', '.join(record.name for record in records[:8]) + (', ...' if len(records) > 8 else '')
        raise DataError(f'{path}: {len(named) or "no"} video{"s" * (len(named) > 1)} named {bag.name} in it for '
                        f'{bag.path}; it has {held or "none"}')
    record = named[0]
    if not record.stamps_ns and len(record.paths) != bag.count:
        raise DataError(f'{path}: video {record.name} has {len(record.paths)} frames, {bag.path} {bag.count} images; '
                        'expected as many, or a list of stamps with the video')
    return Truth(path, record, categories_of(path))


def only_frames(record: VideoRecord, tubes: Sequence[TubePrediction],
                frames: Sequence[int]) -> tuple[VideoRecord, list[TubePrediction]]:
    """Return a video and its predictions at these frames only. Objects that no such frame shows are left out."""
    tracks = [replace(track, rles=[track.rles[t] for t in frames]) for track in record.tracks]
    return (replace(record, paths=[record.paths[t] for t in frames], stamps_ns=(),
                    tracks=[track for track in tracks if any(track.rles)]),
            [replace(tube, rles=[tube.rles[t] for t in frames]) for tube in tubes])
