"""Clients that wait get equal shares of the engine, whatever they send."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from controller.engine_status import NO_CLIENT
from server.engine.admission import InvalidRequestError
from server.engine.fair_queue import FairQueue
from server.engine.queue_terms import QueueTerms
from server.engine.sequence import GenerationRequest, Sequence
from server.engine.waiting_room import QueueFullError, QueuePlace, WaitingRoom
from tests.support.driving import TOKENIZER, runner_of, submit, variants_of, weights_of
from tests.support.tiny import tiny_model

from server.engine.detokenizer import Detokenizer  # isort: skip


def waiting(client=NO_CLIENT, work=1.0, tokens=10, name="one") -> Sequence:
    request = GenerationRequest(
        name,
        (5,) * tokens,
        4,
        None,
        terms=QueueTerms(client, work),  # type: ignore[arg-type]
    )
    return Sequence(request, Detokenizer(TOKENIZER, request.stop, ()), lambda _: None, lambda: None)


def taken(queue: FairQueue, count: int | None = None) -> list[Sequence]:
    return [queue.take() for _ in range(len(queue) if count is None else count)]


def test_one_client_is_served_in_the_order_of_its_requests():
    queue, work = FairQueue(), random.Random(0)
    sequences = [waiting(work=work.uniform(0.1, 9)) for _ in range(30)]
    for sequence in sequences:
        queue.add(sequence)
    assert list(queue) == sequences
    assert taken(queue) == sequences
    assert not queue
    with pytest.raises(IndexError):
        queue.first()


def test_clients_get_equal_work_done_whatever_the_number_and_size_of_their_requests():
    queue, choose = FairQueue(), random.Random(1)
    sizes = {"many small": (0.1, 0.3), "few large": (4, 6), "mixed": (0.1, 6)}
    for client, (low, high) in sizes.items():
        for _ in range(400 if client == "many small" else 80):
            queue.add(waiting(client, choose.uniform(low, high)))
    done: Counter[str] = Counter()
    worst = 0.0
    while min(Counter(s.request.terms.client for s in queue).get(name, 0) for name in sizes) > 1:
        terms = queue.take().request.terms
        done[terms.client] += terms.work  # type: ignore[assignment]
        worst = max(worst, max(done.values()) - min(done[name] for name in sizes))
    assert min(done[name] for name in sizes) > 50
    assert worst < 3 * 6, "no more than a few of the largest requests apart, at any time"


def test_a_client_that_comes_late_waits_for_one_turn_not_for_the_whole_queue():
    queue = FairQueue()
    for _ in range(100):
        queue.add(waiting("greedy"))
    taken(queue, 5)
    queue.add(waiting("late"))
    clients = [s.request.terms.client for s in taken(queue, 4)]
    assert "late" in clients


def test_the_next_one_stays_next_until_it_is_taken_and_the_first_of_two_clients_begins():
    queue = FairQueue()
    first, second = waiting("a"), waiting("b", work=0.1)
    queue.add(first)
    queue.add(second)
    assert queue.first() is first
    queue.add(waiting("c", work=0.01))
    assert queue.first() is first
    assert queue.take() is first


def test_who_was_preempted_goes_first_and_who_leaves_is_not_charged():
    queue = FairQueue()
    running, leaves, other, mine = waiting("a"), waiting("a", 5.0), waiting("b"), waiting("a")
    for sequence in (leaves, other, mine):
        queue.add(sequence)
    queue.put_back(running)
    assert queue.take() is running
    queue.remove(leaves)
    queue.remove(leaves)
    assert {queue.take(), queue.take()} == {other, mine}
    assert len(queue) == 0


def place(requests=1, tokens=10, client=NO_CLIENT, work=1.0) -> QueuePlace:
    return QueuePlace(requests, tokens, client, work)


def test_places_that_are_kept_count_until_they_are_given_up():
    room = WaitingRoom(most=2, most_tokens=1000, rows=1)
    kept = [place() for _ in range(3)]
    for one in kept:
        room.keep(one, [], 0)
    with pytest.raises(QueueFullError, match="3 requests"):
        room.make_room(place(), [], 0)
    kept[0].give_up()
    room.make_room(place(), [], 0)
    with pytest.raises(QueueFullError):
        room.make_room(place(requests=2), [], 0)


def test_tokens_that_are_kept_count_too():
    room = WaitingRoom(most=20, most_tokens=100, rows=1)
    room.keep(place(tokens=500), [], 0)  # alone, any prompt may wait
    with pytest.raises(QueueFullError, match="500 tokens"):
        room.keep(place(), [], 0)


def test_the_client_with_most_work_gives_way_until_shares_are_equal():
    room, line = WaitingRoom(most=6, most_tokens=10_000, rows=1), list[Sequence]()

    def come(client: str) -> bool:
        try:
            leaving = room.make_room(place(client=client), line, running=1)
        except QueueFullError:
            return False
        for one in leaving:
            one.displaced = True
        line[:] = [one for one in line if one not in leaving]
        line.append(waiting(client))
        return True

    assert [come("greedy") for _ in range(8)] == [True] * 6 + [False] * 2
    oldest = line[0]
    assert [come("other") for _ in range(4)] == [True] * 3 + [False]
    assert Counter(s.request.terms.client for s in line) == {"greedy": 3, "other": 3}
    assert oldest in line, "the newest go"
    assert not come("greedy")


def test_what_has_started_or_cannot_help_does_not_give_way():
    room = WaitingRoom(most=1, most_tokens=10_000, rows=1)
    line = [waiting("greedy"), waiting("greedy")]
    for sequence in line:
        sequence.started_at = 1.0  # and was preempted
    with pytest.raises(QueueFullError):
        room.make_room(place(client="other"), line, running=1)


def test_what_could_not_even_wait_alone_is_refused_for_good():
    room = WaitingRoom(most=6, most_tokens=100, rows=2)
    room.check_fits(8, 100)
    room.check_fits(1, 5000)  # one prompt is as long as the context lets it be
    with pytest.raises(InvalidRequestError, match="at most 8 can run and wait"):
        room.check_fits(9, 50)
    with pytest.raises(InvalidRequestError, match="at most 100 may wait"):
        room.check_fits(2, 101)


def test_the_scheduler_admits_clients_in_turn():
    runner = runner_of(weights_of(tiny_model()), running=1)
    base = variants_of(runner.decoder.weights)["base"]
    ended: list[str] = []
    for number, client in enumerate(["a", "a", "a", "a", "b", "b"]):
        sequence, _ = submit(
            runner, [number + 3] * 5, base, 2, terms=replace(QueueTerms(), client=client)
        )
        sequence.emit = lambda delta, c=client: (
            ended.append(c) if delta.finish_reason is not None else None
        )
    while runner.step():
        pass
    assert ended == ["a", "b", "a", "b", "a", "a"]
