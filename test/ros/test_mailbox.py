"""A slow worker gets the newest item, every other one is counted, and stopping waits for the item at hand."""

import threading
import time

from tar_vis_ros.node.image_input import Arrivals
from tar_vis_ros.node.mailbox import Mailbox, Worker


def test_the_newest_replaces_the_rest_and_they_are_counted():
    box = Mailbox()
    for item in range(5):
        box.put(0, item)
    assert box.take() == (0, 4, 4)
    box.put(0, 5, missed=3)
    assert box.take() == (0, 5, 3)


def test_cameras_take_turns_and_each_gives_its_newest():
    box = Mailbox(3)
    for item in range(4):
        box.put(0, f'a{item}')
    box.put(2, 'c0')
    assert box.take() == (0, 'a3', 3)
    box.put(0, 'a4')
    box.put(1, 'b0')
    assert box.take() == (1, 'b0', 0)
    box.put(1, 'b1')
    assert [box.take() for _ in range(3)] == [(2, 'c0', 0), (0, 'a4', 0), (1, 'b1', 0)]


def test_no_camera_waits_longer_than_a_round():
    box, taken = Mailbox(3), []
    for _ in range(30):       # camera 0 always has a new image, the others now and then
        for slot in (0, 0, 1, 0, 2):
            box.put(slot, slot)
        taken.append(box.take()[0])
    assert [taken.count(slot) for slot in range(3)] == [10, 10, 10]


def test_closing_tells_what_was_never_taken():
    box = Mailbox(2)
    for _ in range(3):
        box.put(1, 'x', missed=1)
    assert box.close() == [0, 6] and box.take() is None
    assert box.close() == [0, 0]


def test_closing_ends_a_take_that_waits():
    box = Mailbox()
    got = []
    waiting = threading.Thread(target=lambda: got.append(box.take()))
    waiting.start()
    box.close()
    waiting.join(10)
    assert got == [None]
    box.put(0, 1)
    assert box.take() is None


def test_a_busy_worker_skips_to_the_newest_and_nothing_is_uncounted():
    begun, go_on, handled = threading.Event(), threading.Event(), []

    def handle(slot, item, replaced):
        handled.append((item, replaced))
        begun.set()
        assert go_on.wait(10)

    worker = Worker(handle, 'test')
    worker.put(0, 0)
    assert begun.wait(10)
    for item in range(1, 8):
        worker.put(0, item)
    begun.clear()
    go_on.set()
    assert begun.wait(10)
    assert worker.stop() == [0]
    assert handled == [(0, 0), (7, 6)]


def test_stop_lets_the_item_at_hand_finish():
    begun, go_on, finished = threading.Event(), threading.Event(), []

    def handle(slot, item, replaced):
        begun.set()
        assert go_on.wait(10)
        finished.append(item)

    worker = Worker(handle, 'test')
    worker.put(0, 'first')
    assert begun.wait(10)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    assert not finished
    go_on.set()
    stopping.join(10)
    assert not stopping.is_alive()
    count = len(finished)
    worker.put(0, 'late')
    assert finished[0] == 'first' and len(finished) == count


def numbered(*numbers):
    arrivals = Arrivals()
    return [arrivals.missed({'publication_sequence_number': n}, publishers=1) for n in numbers]


def test_gaps_in_the_publishers_numbers_are_missed_images():
    assert numbered(7, 8, 12, 13) == [0, 0, 3, 0]


def test_a_publisher_that_starts_anew_or_gives_no_numbers_misses_nothing():
    assert numbered(50, 1, 2, 4) == [0, 0, 0, 1]
    assert numbered(5, None, 9, 0, 3) == [0, 0, 0, 0, 0]


def test_several_publishers_cannot_be_followed():
    arrivals = Arrivals()
    assert [arrivals.missed({'publication_sequence_number': n}, publishers=2) for n in (1, 90, 2)] == [0, 0, 0]


def test_arrival_is_when_dds_got_the_message():
    received = time.time_ns() - 200_000_000
    assert 0.2 <= time.perf_counter() - Arrivals.arrived({'received_timestamp': received}) < 10
    for odd in (0, time.time_ns() + 10**12, 1):      # no stamp, a clock set back, a clock set forward
        before = time.perf_counter()
        assert Arrivals.arrived({'received_timestamp': odd}) >= before
