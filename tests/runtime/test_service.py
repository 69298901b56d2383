"""Totals that belong to no upstream, under threads."""

from __future__ import annotations

import threading
from collections import Counter

from headrace.runtime.service import DeadlineVerdict, ServiceCounters
from support.interrupts import interrupted_at


def test_threads_together_refuse_no_more_than_a_fifth() -> None:
    service = ServiceCounters()
    verdicts: list[list[DeadlineVerdict]] = [[] for _ in range(8)]
    begin = threading.Barrier(8)

    def serve(mine: list[DeadlineVerdict]) -> None:
        begin.wait()
        for _ in range(500):
            service.deadline_came(1000.0)
            mine.append(service.deadline_past(1000.0))

    threads = [threading.Thread(target=serve, args=(mine,)) for mine in verdicts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    seen = Counter(verdict for mine in verdicts for verdict in mine)
    counted = service.copy().inbound_deadlines
    assert counted["refused"] == seen["refused"] == 800  # a fifth of 4,000, and every chance of it was used
    assert counted["excused"] == seen["excused"] + seen["distrusted"] == 3200


def test_every_served_request_is_in_the_totals_while_others_look_at_them() -> None:
    """Served requests are noted without the lock and added up later, by whoever serves or looks."""
    service = ServiceCounters()
    begin, over = threading.Barrier(9), threading.Event()
    looks: list[int] = []

    def serve() -> None:
        begin.wait()
        for number in range(1500):
            service.served((200, 404, 99)[number % 3], (0.004, 0.2, 60.0)[number % 3])

    def look() -> None:
        begin.wait()
        while not over.is_set():
            looks.append(sum(service.copy().served_by_class.values()))

    threads = [threading.Thread(target=serve) for _ in range(8)]
    looking = threading.Thread(target=look)
    for thread in (*threads, looking):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    looking.join()

    counted = service.copy()
    assert counted.served_by_class == {"2xx": 4000, "4xx": 4000, "other": 4000}
    assert counted.served_duration.counts[0] == counted.served_duration.counts[-1] == 4000
    assert sum(counted.served_duration.counts) == 12_000
    assert round(counted.served_duration.sum, 3) == 4000 * 60.204
    assert looks == sorted(looks)


def test_a_look_finds_a_request_that_was_just_served() -> None:
    service = ServiceCounters()
    service.served(201, 0.01)
    assert service.copy().served_by_class == {"2xx": 1}


def test_an_interrupt_while_requests_are_added_up_loses_none_and_adds_none_twice() -> None:
    for point in range(1, 200):
        service = ServiceCounters()
        for _ in range(10):
            service.served(200, 0.01)
        was_hit = interrupted_at(point, service.add_up)
        found = service.copy()
        assert (found.served_by_class["2xx"], sum(found.served_duration.counts)) == (10, 10)
        if not was_hit:
            break
    assert 10 < point < 199
