"""A finalizer may make a call, on a thread that is counting another one at this moment.

The collector runs it wherever something is allocated, under our locks as well (failures.md 25).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.policy.breaker.permit import Permit, Verdict
from headrace.runtime import inbound
from support.faultserver import FaultServer
from support.governed import rules, running

LOCKS: dict[str, Callable[[Any], Any]] = {
    "circuit": lambda learned: learned.circuit._lock,
    "budget": lambda learned: learned.budget._lock,
    "counters": lambda learned: learned.counters.lock,
    "inbound": lambda learned: inbound._making,
}


@pytest.mark.parametrize("how", ["as made", "after a reset", "after a reload", "in a child"])
@pytest.mark.parametrize("held", LOCKS)
def test_a_call_by_a_finalizer_does_not_wait_for_its_own_thread(tmp_path: Path, held: str, how: str) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        if how == "after a reset":
            hr.upstream("billing").reset()
        elif how == "after a reload":
            (tmp_path / "upstreams.yaml").write_text(rules(server.url, "    retry: {max_attempts: 2}\n"))
            hr.reload()
        elif how == "in a child":
            hr.snapshot.upstream("billing").forget_inherited()
            inbound._forget_inherited()
        learned = hr.snapshot.upstream("billing").learned

        def call() -> None:
            with LOCKS[held](learned):
                assert hr.upstream("billing").get("/").status_code == 200
                permit = learned.circuit.acquire(time.monotonic())
                assert isinstance(permit, Permit)
                learned.circuit.record(permit, Verdict.FAILURE, time.monotonic())
                learned.budget.deposit(time.monotonic())
                learned.counters.copy()
                request = inbound.Inbound.__new__(inbound.Inbound)
                request.snapshot = hr.snapshot
                assert request.allowance is request.allowance

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(timeout=20.0)
        assert not thread.is_alive()
