"""The outcome of one replayed bag: what became of every image, and where the files are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tar_vis_core.io.whole_files import write_text
from tar_vis_core.options import Options, option

ANSWERS, FRAMES, RESULTS, PICTURES = 'answers', 'frames.json', 'results.json', 'pictures'   # in a bag's own folder
NODE = '/tar_vis'       # the node that is started for a bag


@dataclass(slots=True)      # there is one for every image
class ImageOutcome:
    """What became of one image; unknown figures are None."""

    index: int                           # in the bag, from 0
    stamp_ns: int
    recorded_ns: int
    sent: int = 1                        # times that it was published
    late_ms: float | None = None         # published after its time; real time only
    published_ms: float | None = None    # since the replay began; real time only
    round_trip_ms: float | None = None   # from publishing to the answer, here; None: not answered
    # what the node says of it
    latency_ms: float | None = None      # from the image's arrival to its answer
    step_ms: float | None = None         # the model
    executed: list[bool] = field(default_factory=list)
    frame_mse: float | None = None
    dropped: int = 0                     # images that the node passed over before it
    reset_reason: str = ''
    instances: int = 0                   # visible ones
    answer: str = ''                     # SHA-256 of its answer, times left out
    # against the ground truth
    frame: int = -1                      # of the labelled video; -1: none
    quality: float | None = None         # 0..1, see scoring.frame_quality

    @property
    def answered(self) -> bool:
        return self.round_trip_ms is not None


@dataclass
class BagOutcome:
    """One bag, replayed as far as it went. Written to FRAMES of its folder, beside ANSWERS, RESULTS and PICTURES."""

    name: str
    path: str
    topic: str
    storage: str
    sha256: dict[str, str]               # of the bag's files
    images: int                          # that the bag says it holds
    size: list[int] = field(default_factory=list)    # width and height of the first answered image
    parameters: dict = field(default_factory=dict)   # of the node
    answers_sha256: str = ''             # of all answers, times left out
    truth: str = ''                      # the file
    video_id: int = 0                    # in the truth, or the bag's number
    categories: dict[int, str] = field(default_factory=dict)   # names by id in RESULTS
    problem: str = ''                    # why it ended early
    exit_code: int = 0
    frames: list[ImageOutcome] = field(default_factory=list)
    worst: list[int] = field(default_factory=list)   # images, the worst first

    def write(self, folder: Path) -> None:
        write_text(folder / FRAMES, json.dumps(asdict(self), default=float, allow_nan=False))

    @classmethod
    def read(cls, folder: Path) -> BagOutcome:
        """Raise OSError if there is none."""
        content = json.loads((folder / FRAMES).read_text())
        content['frames'] = [ImageOutcome(**image) for image in content['frames']]
        content['categories'] = {int(number): name for number, name in content['categories'].items()}
        return cls(**content)


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(Options):
    """How bags are replayed."""

    topic: str = option('', 'topic of the images; empty: the only one in the bag')
    mode: str = option('lossless', 'how the images go out', choices=('lossless', 'realtime'))
    rate: float = option(1.0, 'realtime: so many times as fast as recorded', low=0.001, high=1000)
    node: str = option('', 'drive this active node instead of starting one, such as /tar_vis; one camera of several: '
                           '/tar_vis/front')
    to: str = option('', "with --node: its topic of images; empty: the bag's")
    patience: float = option(60.0, 'lossless: seconds that an answer may take', low=0.1, high=86400)
    pictures: int = option(200, 'pictures in the report at most', low=0, high=100000)


@dataclass(frozen=True, kw_only=True)
class Job(ReplayOptions):
    """One bag to replay, as the command passes it to its process."""

    bag: str
    folder: str                          # of its outcome
    number: int = 1                      # among the bags of the command
    alone: bool = True
    parameters: tuple[str, ...] = ()     # NAME:=VALUE of the node that is started
    params_file: str = ''
    truth: str = ''

    @classmethod
    def from_json(cls, values: Mapping) -> Job:
        return cls(**{**values, 'parameters': tuple(values['parameters'])})
