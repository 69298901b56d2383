"""Totals that belong to no upstream, under threads."""

from __future__ import annotations

import threading
from collections import Counter

from headrace.runtime.service import DeadlineVerdict, ServiceCounters


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
