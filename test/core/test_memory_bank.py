import pytest
import torch
from decoder_outputs import decoder_output

from tar_vis_core.tracking.memory_bank import MemoryBankTracker, detections

DIM = 8


def direction(i, length=6.0):
    return length * torch.eye(DIM)[i]


def frame(*objects, cells=20):
    """One frame; an object is (embedding, class logit, cells of its mask). The no-object logit is 0."""
    logits = torch.zeros(1, len(objects), 3)
    logits[..., 1] = -20
    masks = -torch.ones(1, len(objects), cells)
    for i, (_, logit, shown) in enumerate(objects):
        logits[0, i, 0] = logit
        masks[0, i, shown] = 1
    reid = torch.stack([embedding for embedding, _, _ in objects])[None]
    return decoder_output(logits, masks, reid, reid), torch.eye(cells)[None, :, None]


def at(i):
    return slice(4 * i, 4 * i + 4)


def run(frames, tracker=None, memory=None):
    tracker = tracker or MemoryBankTracker()
    slots = []
    for output, features in frames:
        tracked, memory = tracker.track(output, features, memory)
        slots.append(tracked.slots[0].tolist())
    return slots, memory


def test_a_mask_that_one_of_higher_score_covers_has_no_slot():
    output, features = frame(
        (direction(0), 1.0, slice(0, 10)), (direction(1), 5.0, slice(0, 7)),   # IoU 0.7
        (direction(2), 4.0, slice(5, 10)),                                     # IoU 2/10 with the best
        (direction(3), 3.0, slice(5, 13)))                                     # IoU 5/8 with the one before
    rows, scores = detections(output.logits[0], output.mask_embeddings[0], features[0])
    assert rows.tolist() == [1, 2]
    assert scores[0] > scores[1]
    assert run([(output, features)])[0] == [[-1, 0, 1, -1]]


def test_a_suppressed_mask_suppresses_none():
    chain = [(direction(i), 5.0 - i, slice(2 * i, 2 * i + 10)) for i in range(3)]  # neighbours 8/12, ends 6/14
    assert run([frame(*chain)])[0] == [[0, -1, 1]]


def test_of_empty_masks_the_best_stays():
    empty = [(direction(i), 3.0 - i, slice(0)) for i in range(3)]
    assert run([frame((direction(5), 1.0, at(1)), *empty)])[0] == [[1, 0, -1, -1]]


def test_what_scores_too_low_begins_no_track_but_the_best_may_go_on():
    sure, unsure = (direction(0), 3.0, at(0)), (direction(0), -9.0, at(0))
    other = (direction(1), -9.5, at(1))
    assert run([frame(unsure, other)])[0] == [[-1, -1]]
    assert run([frame(sure, other), frame(other, unsure)])[0] == [[0, -1], [-1, 0]]


def test_tracks_follow_the_embedding_and_not_the_place_or_the_query():
    a, b = (direction(0), 3.0, at(0)), (direction(1), 2.0, at(1))
    a_elsewhere, b_elsewhere = (direction(0), 3.0, at(1)), (direction(1), 2.0, at(0))
    assert run([frame(a, b), frame(b_elsewhere, a_elsewhere)])[0] == [[0, 1], [1, 0]]


def test_an_object_unlike_all_tracks_begins_one():
    """Three tracks and one detection unlike all: 1/3 over the tracks, little over the detections."""
    known = [(direction(i), 5.0 - i, at(i)) for i in range(3)]
    new = (direction(7), 1.0, at(3))
    frames = [frame(*known), frame(*known, new)]
    assert run(frames)[0] == [[0, 1, 2], [0, 1, 2, 3]]


def test_the_threshold_decides_what_goes_on():
    known = [(direction(i), 5.0 - i, at(i)) for i in range(2)]
    halves = (direction(0) / 2 + direction(1) / 2, 3.0, at(0))
    # alone in its frame: (1/2 over both tracks + 1 over the detections) / 2 = 0.75
    assert run([frame(*known), frame(halves)], MemoryBankTracker(0.7))[0][1] == [0]
    assert run([frame(*known), frame(halves)], MemoryBankTracker(0.8))[0][1] == [2]


def test_no_track_is_taken_twice_and_the_higher_score_chooses_first():
    twins = [(direction(0), 2.0, at(0)), (direction(0), 4.0, at(1))]
    assert run([frame((direction(0), 3.0, at(0))), frame(*twins)])[0] == [[0], [1, 0]]


def test_of_two_tracks_of_one_object_the_established_one_goes_on():
    """Track 1 was begun by a second detection of the object in one frame, and is a little nearer to it later."""
    old, doubled = direction(0, 3.0), direction(0, 3.05)
    slots, memory = run([frame((old, 3.0, at(0)))] * 3 + [frame((old, 3.0, at(0)), (doubled, 2.0, at(1)))],
                        MemoryBankTracker(0.5))
    assert slots[-1] == [0, 1]
    assert memory.embeddings[1] @ old > memory.embeddings[0] @ old
    assert run([frame((old, 3.0, at(0)))], memory=memory)[0] == [[0]]


def test_the_memory_moves_by_the_likeness_to_what_was_seen():
    slots, memory = run([frame((direction(0), 3.0, at(0)))] * 2 + [frame((direction(1), 3.0, at(0)))])
    assert slots == [[0], [0], [0]]  # alone against one track: similarity 1
    torch.testing.assert_close(memory.embeddings[0], direction(0))  # at right angles: not moved at all
    half = direction(0) / 2 ** 0.5 + direction(2) / 2 ** 0.5
    _, memory = run([frame((half, 3.0, at(0)))], memory=memory)
    b = (2 * 0.5 ** 0.5 + 0) / 3  # mean cosine to the three before
    torch.testing.assert_close(memory.embeddings[0], (1 - b) * direction(0) + b * half)


def test_ten_embeddings_are_remembered():
    _, memory = run([frame((direction(1), 3.0, at(0)))] * 4 + [frame((direction(0), 3.0, at(0)))] * 10)
    before = memory.embeddings[0]
    _, memory = run([frame((direction(0, 2.0), 3.0, at(0)))], memory=memory)
    torch.testing.assert_close(memory.embeddings[0], direction(0, 2.0))  # cosine 1 to all ten
    assert not torch.allclose(before, direction(0))


def away(count):
    """Frames with another object, which goes on as track 0."""
    return [frame((direction(5), 3.0, at(4)))] * count


def test_a_track_returns_after_twenty_frames_and_is_forgotten_after_more():
    both = frame((direction(5), 3.0, at(4)), (direction(0), 2.0, at(0)))
    for missing, number in ((20, 1), (21, 2)):
        slots, _ = run([both, *away(missing), both])
        assert slots[0] == [0, 1]
        assert slots[-1] == [0, number]


def test_a_call_leaves_the_memory_given_as_it_was():
    a, b = frame((direction(0), 3.0, at(0))), frame((direction(1), 3.0, at(0)))
    _, memory = run([a])
    assert run([b, a], memory=memory)[0] == run([b, a], memory=memory)[0]
    assert memory.seen.tolist() == [1]


def test_without_reidentification_it_says_what_to_use():
    output, features = frame((direction(0), 3.0, at(0)))
    output.reid = None
    with pytest.raises(ValueError, match='matching'):
        MemoryBankTracker().track(output, features, None)


def test_passers_by_do_not_fill_the_memory():
    generator, tracker, memory, most = torch.Generator().manual_seed(0), MemoryBankTracker(0.9), None, 0
    for _ in range(100):
        passers = [(embedding, 3.0, at(i)) for i, embedding in enumerate(torch.randn(5, 64, generator=generator))]
        _, memory = tracker.track(*frame(*passers), memory)
        most = max(most, len(memory.numbers))
    assert memory.next_number > 200
    assert most <= 5 * 21
