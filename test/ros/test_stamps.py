"""Messages meet by equal stamps only, in whatever order they come, and memory stays bounded."""

from __future__ import annotations

import random
from itertools import product
from types import SimpleNamespace

import pytest

from tar_vis_ros.conversions.stamps import ExactStamps, stamp_of

TOPICS = ('masks', 'depth', 'info')


def message(stamp: tuple[int, int], text: str = '') -> SimpleNamespace:
    return SimpleNamespace(header=SimpleNamespace(stamp=SimpleNamespace(sec=stamp[0], nanosec=stamp[1])), text=text)


def joiner(keep: int = 10) -> ExactStamps:
    return ExactStamps(dict.fromkeys(TOPICS, keep))


@pytest.mark.parametrize('seed', range(20))
def test_every_stamp_that_all_topics_have_is_matched_once(seed):
    """Topics run ahead of each other and lose messages, as cameras and models do."""
    dice = random.Random(seed)
    sent = {topic: [(1 + n // 3, n % 3 * 333_333_333) for n in range(40) if dice.random() < 0.8] for topic in TOPICS}
    queues, stamps, matched = {topic: list(queue) for topic, queue in sent.items()}, joiner(40), []
    while any(queues.values()):
        topic = dice.choice([topic for topic, queue in queues.items() if queue])
        found = stamps.add(topic, message(queues[topic].pop(0), topic))
        if found:
            assert {topic: got.text for topic, got in found.items()} == {topic: topic for topic in TOPICS}
            assert len({stamp_of(got) for got in found.values()}) == 1
            matched.append(stamp_of(found['masks']))
    assert matched == sorted(set.intersection(*map(set, sent.values())))
    assert stamps.matched == len(matched)
    assert stamps.received == {topic: len(queue) for topic, queue in sent.items()}


def test_a_nanosecond_is_a_difference():
    stamps = joiner()
    assert not any(stamps.add(topic, message((1, n))) for n, topic in enumerate(TOPICS))
    assert stamps.matched == 0


def test_no_topic_keeps_more_than_it_may():
    stamps = joiner(keep=3)
    for n, topic in product(range(1, 50), TOPICS[1:]):
        stamps.add(topic, message((n, 0)))
    assert stamps.oldest('depth') == (47, 0)
    assert stamps.add('masks', message((46, 0))) is None
    assert stamps.add('masks', message((47, 0))) is not None


def test_a_match_lets_go_of_all_that_is_older():
    stamps = joiner()
    for n, topic in product(range(5), TOPICS[1:]):
        stamps.add(topic, message((n, 0)))
    assert stamps.add('masks', message((3, 0)))
    assert stamps.oldest('depth') == stamps.oldest('info') == (4, 0)


def test_messages_of_two_rounds_of_a_bag_do_not_meet():
    stamps = joiner()
    for topic in TOPICS[1:]:
        stamps.add(topic, message((5, 0), 'first round'))
        stamps.add(topic, message((9, 0), 'first round'))
    stamps.add('depth', message((1, 0), 'second round'))
    assert stamps.add('masks', message((5, 0), 'second round')) is None
    stamps.add('info', message((1, 0), 'second round'))
    for topic in TOPICS:
        found = stamps.add(topic, message((7, 0), 'second round'))
    assert {got.text for got in found.values()} == {'second round'}


@pytest.mark.parametrize('stamp', [(0, 0), (7, 5)])
@pytest.mark.parametrize('late', [1, 2, 4])
def test_stamps_that_are_none_join_nothing(stamp, late):
    """Masks come some pictures after their depth, and all have one stamp."""
    stamps, matched = joiner(), []
    for n in range(12):
        for topic in ('depth', 'info'):
            matched.append(stamps.add(topic, message(stamp, f'{topic} {n}')))
        if n >= late:
            matched.append(stamps.add('masks', message(stamp, f'masks {n - late}')))
    assert not any(matched)
    assert 'all 0' in stamps.problem('masks') if stamp == (0, 0) else 'do not change' in stamps.problem('masks')


def test_one_stamp_of_two_different_messages_is_none():
    stamps = joiner()
    for topic, text in (('depth', 'a'), ('info', 'a'), ('depth', 'b')):
        stamps.add(topic, message((3, 0), text))
    assert stamps.add('masks', message((3, 0))) is None
    for topic in TOPICS:
        found = stamps.add(topic, message((4, 0)))
    assert found


def test_a_message_that_comes_twice_is_one():
    stamps = joiner()
    for topic in ('depth', 'depth', 'info', 'info'):
        stamps.add(topic, message((3, 0), 'same'))
    assert stamps.add('masks', message((3, 0)))


def test_two_neighbours_in_the_wrong_order_lose_nothing():
    stamps, order = joiner(), (1, 2, 3, 5, 4, 6)
    for n in order:
        stamps.add('depth', message((n, 0)))
        stamps.add('info', message((n, 0)))
    assert all(stamps.add('masks', message((n, 0))) for n in (1, 2, 3, 4, 5, 6))
