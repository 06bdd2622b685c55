"""Identities: which detection of this frame is which object of the frames before; ids with NEW, TRACKED, LOST.

The trackers of MinVIS, DVIS++ and CTVIS give every object a slot, and the slot identifies the object (``by_slot``). A
small model's slots follow an object only roughly: its embeddings change little from image to image, and an object that
moves may be found by another slot. Then the slot is one hint of several. The others are the place of the mask at
constant velocity, its size, the colours inside it, and its embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tar_vis_core.detection import Detection
from tar_vis_core.instances import Instance, TrackStatus
from tar_vis_core.masks import mask_ious
from tar_vis_core.runtime.assignment import linear_sum_assignment

# Similarity is a weighted sum of terms in 0..1; together the weights are 1.
OVERLAP, NEARNESS, COLOURS, SIZE, EMBEDDING, SLOT, CLASS = 0.30, 0.25, 0.20, 0.05, 0.05, 0.05, 0.10
MIN_SIMILARITY = 0.30           # for a track seen in the frame before
# Below both cosines it is another object: a cat does not go on as the person who was there before a cut. One of them
# alone may flicker.
MIN_CLASS_AGREEMENT, MIN_COLOUR_AGREEMENT = 0.15, 0.8
MIN_SIMILARITY_LOST = 0.40      # for one that is lost: someone else may have come
# Farthest jump of the centre from the predicted one, in object sizes; it widens while an object is out of sight.
REACH, REACH_PER_FRAME, MAX_REACH = 0.9, 0.1, 1.8
MAX_LOST_TRACKS = 64
MIN_ELAPSED_S = 1e-3       # stamps that are closer give no velocity
VELOCITY_GAIN = 0.5        # share of the newest measurement in the running velocity
VELOCITY_DECAY = 0.85      # per frame out of sight: nobody walks on for ever
APPEARANCE_GAIN = 0.1      # share of the newest frame in the running colours and embedding
AREA_GAIN = 0.2            # share of the newest frame in the running area
VOTE_DECAY = 0.9           # of the class votes per frame


@dataclass
class TrackedObject:
    """One object that has been seen; positions are in source pixels, time in seconds."""

    track_id: int
    first_frame: int
    detection: Detection       # the last one
    slot: int                  # of the tracker, at the last sighting
    votes: np.ndarray          # (classes,) decaying sum of class scores
    embedding: np.ndarray      # running mean
    colours: np.ndarray        # running mean
    centre: np.ndarray         # (x, y) of the box, as predicted for now
    velocity: np.ndarray       # (x, y) per second
    area: float                # running mean of the mask's area
    sightings: int = 1
    frames_lost: int = 0

    @property
    def class_id(self) -> int:
        return int(self.votes.argmax())


def _centre(box: tuple[int, int, int, int]) -> np.ndarray:
    return np.array([box[0] + box[2] / 2, box[1] + box[3] / 2])


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-6) for v in (a, b))
    return a @ b.T


def _same_slot(tracks: list[TrackedObject], detections: list[Detection], slots: np.ndarray) -> np.ndarray:
    """Return ``(tracks, detections)``, True if both have the same slot."""
    return np.array([t.slot for t in tracks])[:, None] == slots[[d.query for d in detections]][None]


def _on_grid(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask on a grid of another size, if the network's input size was changed meanwhile."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, mask.shape, strict=True))
    return mask if mask.shape == shape else mask[rows[:, None], columns]


def _shifted(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Return the mask moved by whole cells; cells that leave the image are lost."""
    out = np.zeros_like(mask)
    h, w = mask.shape
    if abs(dx) < w and abs(dy) < h:
        out[max(dy, 0):h + min(dy, 0), max(dx, 0):w + min(dx, 0)] = \
            mask[max(-dy, 0):h - max(dy, 0), max(-dx, 0):w - max(dx, 0)]
    return out


class IdentityTracker:
    """The tracks of one stream. Its memory is bounded by the objects that are in sight or were a moment ago."""

    def __init__(self, grace_frames: int = 75, by_slot: bool = False):
        self.grace_frames, self.by_slot = grace_frames, by_slot
        self.tracks: list[TrackedObject] = []
        self._next_id = 1
        self._frame = 0

    def update(self, detections: list[Detection], slots: np.ndarray, new_score: float, max_instances: int,
               elapsed_s: float, height: int, width: int) -> list[tuple[TrackedObject, TrackStatus]]:
        """Associate a frame's detections. Return the tracks in sight by falling score, then the lost ones.

        ``slots[query]`` is the tracker's slot of a detection's row. A detection below ``new_score`` may continue a
        track but starts none. Of more than ``max_instances``, those already followed go first. ``elapsed_s`` is the
        time since the last frame; ``height, width`` the source's size. The first ``update`` after construction
        begins with id 1; no id comes twice.
        """
        for track in self.tracks:
            track.centre = track.centre + track.velocity * elapsed_s
        in_sight = [t for t in self.tracks if t.frames_lost == 0]
        out_of_sight = [t for t in self.tracks if t.frames_lost > 0]
        pairs: list[tuple[TrackedObject, Detection]] = []
        free = list(detections)
        # who was there a moment ago chooses first: a track that is lost must not take another's detection
        for tracks in (in_sight, out_of_sight):
            found = self._associate(tracks, free, slots, height, width)
            taken = {id(d) for _, d in found}
            free = [d for d in free if id(d) not in taken]
            pairs += found
        pairs.sort(key=lambda pair: -pair[1].score)
        status: dict[int, TrackStatus] = {}
        for track, detection in pairs[:max_instances]:
            self._see(track, detection, slots, elapsed_s)
            status[track.track_id] = TrackStatus.TRACKED
        for track in self.tracks:
            if track.track_id not in status:
                track.frames_lost += 1
                track.velocity = track.velocity * VELOCITY_DECAY
                status[track.track_id] = TrackStatus.LOST
        for detection in sorted(free, key=lambda d: -d.score)[:max(0, max_instances - len(pairs))]:
            if detection.score >= new_score:
                track = self._start(detection, slots)
                status[track.track_id] = TrackStatus.NEW
        self._forget()
        self._frame += 1
        return sorted(((t, status[t.track_id]) for t in self.tracks),
                      key=lambda pair: (pair[1] == TrackStatus.LOST, pair[0].frames_lost, -pair[0].detection.score))

    def end_all_but(self, slots: np.ndarray) -> None:
        """Forget the tracks whose slot is none of ``slots``: their tracker has ended them."""
        self.tracks = [track for track in self.tracks if track.slot in slots]

    def _associate(self, tracks: list[TrackedObject], detections: list[Detection], slots: np.ndarray, height: int,
                   width: int) -> list[tuple[TrackedObject, Detection]]:
        """Return the one-to-one assignment of the greatest total similarity, without pairs that are out of reach."""
        if not tracks or not detections:
            return []
        if self.by_slot:
            similarity = np.where(_same_slot(tracks, detections, slots), 1.0, -1.0)
        else:
            similarity = self._similarity(tracks, detections, slots, height, width)
        rows, columns = linear_sum_assignment(-np.maximum(similarity, 0))
        return [(tracks[r], detections[c]) for r, c in zip(rows, columns, strict=True) if similarity[r, c] > 0]

    @staticmethod
    def _similarity(tracks: list[TrackedObject], detections: list[Detection], slots: np.ndarray, height: int,
                    width: int) -> np.ndarray:
        """Return the similarity ``(tracks, detections)``; -1 if a pair is impossible."""
        cells = np.array([d.mask for d in detections])
        scale = np.array([cells.shape[2] / width, cells.shape[1] / height])
        before = np.array([_on_grid(t.detection.mask, cells.shape[1:]) for t in tracks])
        steps = [np.rint((t.centre - _centre(t.detection.box)) * scale).astype(int) for t in tracks]
        moved = np.array([_shifted(mask, dx, dy) for mask, (dx, dy) in zip(before, steps, strict=True)])
        # unmoved as well: a velocity can be wrong
        overlap = np.maximum(mask_ious(moved, cells), mask_ious(before, cells))
        boxes = [np.array([x.box[2:] for x in items], float) for items in ([t.detection for t in tracks], detections)]
        # the larger of both: who enters the picture grows from frame to frame
        size = np.maximum(boxes[0][:, None], boxes[1][None]).mean(-1)
        centres = np.array([_centre(d.box) for d in detections])
        predicted = np.array([t.centre for t in tracks])
        distance = np.linalg.norm(predicted[:, None] - centres[None], axis=-1) / size
        reach = np.array([min(REACH + REACH_PER_FRAME * t.frames_lost, MAX_REACH) for t in tracks])[:, None]
        areas = [np.array([d.area for d in items], float) for items in ([t.detection for t in tracks], detections)]
        ratio = np.minimum.outer(areas[0], areas[1]) / np.maximum.outer(areas[0], areas[1])
        votes, scores = (np.array(v) for v in ([t.votes for t in tracks], [d.class_scores for d in detections]))
        agreement = _cosines(votes, scores)
        colours = _cosines(np.array([t.colours for t in tracks]), np.array([d.colours for d in detections]))
        another = (agreement < MIN_CLASS_AGREEMENT) & (colours < MIN_COLOUR_AGREEMENT)
        similarity = (
            OVERLAP * overlap
            + NEARNESS * np.clip(1 - distance / reach, 0, 1)
            + COLOURS * colours
            + SIZE * np.sqrt(ratio)
            + EMBEDDING * np.clip(_cosines(
                np.array([t.embedding for t in tracks]), np.array([d.embedding for d in detections])), 0, 1)
            + SLOT * _same_slot(tracks, detections, slots)
            + CLASS * agreement)
        least = np.array([MIN_SIMILARITY_LOST if t.frames_lost else MIN_SIMILARITY for t in tracks])[:, None]
        possible = (similarity >= least) & ~another & ((distance <= reach) | (overlap > 0.2))
        return np.where(possible, similarity, -1)

    def _see(self, track: TrackedObject, detection: Detection, slots: np.ndarray, elapsed_s: float) -> None:
        centre = _centre(detection.box)
        if elapsed_s >= MIN_ELAPSED_S:
            # track.centre is the prediction: what it missed, spread over the time since the last sighting
            missed = (centre - track.centre) / (elapsed_s * (1 + track.frames_lost))
            # the centre of what is left of a half hidden object says little of how the object moves
            whole = min(1.0, detection.area / track.area)
            gain = 1.0 if track.sightings == 1 else VELOCITY_GAIN * whole ** 2
            track.velocity = track.velocity + gain * missed
        track.centre = centre
        track.detection = detection
        track.slot = int(slots[detection.query])
        track.votes = VOTE_DECAY * track.votes + detection.class_scores
        track.embedding = track.embedding + APPEARANCE_GAIN * (detection.embedding - track.embedding)
        track.colours = track.colours + APPEARANCE_GAIN * (detection.colours - track.colours)
        track.area += AREA_GAIN * (detection.area - track.area)
        track.sightings += 1
        track.frames_lost = 0

    def _start(self, detection: Detection, slots: np.ndarray) -> TrackedObject:
        track = TrackedObject(self._next_id, self._frame, detection, int(slots[detection.query]),
                      detection.class_scores.copy(), detection.embedding, detection.colours,
                      _centre(detection.box), np.zeros(2), float(detection.area))
        self._next_id += 1
        self.tracks.append(track)
        return track

    def _forget(self) -> None:
        """Drop tracks whose grace is over, and those lost for the longest time if too many are kept."""
        alive = [t for t in self.tracks if t.frames_lost <= self.grace_frames]
        lost = sorted((t for t in alive if t.frames_lost > 0), key=lambda t: t.frames_lost)
        surplus = {t.track_id for t in lost[MAX_LOST_TRACKS:]}
        self.tracks = [t for t in alive if t.track_id not in surplus]

    def instance(self, track: TrackedObject, status: TrackStatus, class_names: tuple[str, ...]) -> Instance:
        """Return the instance of a track for the user. A lost one keeps its last box and score, with an empty mask."""
        seen, class_id = track.detection, track.class_id
        lost = status == TrackStatus.LOST
        runs = np.array([seen.box[2] * seen.box[3]], np.uint32) if lost else seen.runs
        return Instance(
            track_id=track.track_id, status=status, age=self._frame - 1 - track.first_frame, class_id=class_id,
            class_name=class_names[class_id], score=seen.score, box=seen.box, area=0 if lost else seen.area, runs=runs)
