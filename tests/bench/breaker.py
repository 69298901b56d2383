"""What a closed circuit costs around a function that does nothing, beside other breakers.

    python tests/bench/breaker.py [--rounds 9] [--turns 30000]        (the dependency group `bench`)

Each is used as its documentation has it, with one thread and with eight; the bare call is measured in the same
round and subtracted. CPU time of the process, median over the rounds; the ratio is to the
cheapest peer of the round. What each keeps is not the same, and is printed: pybreaker,
circuitbreaker, aiobreaker and purgatory count failures in a row; interlock-cb and headrace
keep a window. Then: with eight threads every call must have been counted, and the memory of a
default circuit. Asserts nothing but the count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import aiobreaker
import circuitbreaker
import interlock
import purgatory
import pybreaker
from interleaved import ratio, rounds_of
from prometheus_client import CollectorRegistry

import headrace
from headrace.policy.breaker.circuit import Circuit
from headrace.policy.plan import CircuitPlan

FILE = """
version: 1
upstreams:
  by_time:
    base_url: http://127.0.0.1:1
    circuit_breaker: {slow_call: {duration: 1s, rate_threshold: 0.5}, half_open: {ramp: 10s}}
  by_count:
    base_url: http://127.0.0.1:2
    circuit_breaker:
      window: {type: count, size: 100, max_age: 1m}
      slow_call: {duration: 1s, rate_threshold: 0.5}
      half_open: {ramp: 10s}
"""

Act = Callable[[], object]


def nothing() -> None:
    """What is protected."""


def peers() -> dict[str, Act]:
    """Each peer's own way of protecting `nothing`."""
    return {
        "pybreaker": pybreaker.CircuitBreaker()(nothing),
        "circuitbreaker": circuitbreaker.circuit(nothing),
        "aiobreaker": aiobreaker.CircuitBreaker()(nothing),
        "purgatory": purgatory.SyncCircuitBreakerFactory()("bench")(nothing),
        "interlock-cb": interlock.CircuitBreaker(name="bench")(nothing),
    }


def cost_s(act: Act, *, turns: int, threads: int) -> float:
    """CPU seconds of this process per call, over all threads."""

    def work() -> None:
        for _ in range(turns):
            act()

    if threads == 1:
        began = time.process_time()
        work()
        return (time.process_time() - began) / turns
    workers = [threading.Thread(target=work) for _ in range(threads)]
    began = time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.process_time() - began) / turns / threads


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turns", type=int, default=30_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "upstreams.yaml")
        file.write_text(FILE)
        hr = headrace.Headrace(file, registry=CollectorRegistry())
    ours = {
        "headrace, time window": hr.upstream("by_time").protect(nothing),
        "headrace, count window": hr.upstream("by_count").protect(nothing),
    }
    others = peers()
    sides = {"bare": nothing, **ours, **others}
    for threads in (1, 8):
        turns = options.turns // threads
        costs = rounds_of(
            {name: partial(cost_s, act, turns=turns, threads=threads) for name, act in sides.items()},
            rounds=options.rounds,
        )
        bare = costs.pop("bare")
        net = {name: [one - two for one, two in zip(of, bare, strict=True)] for name, of in costs.items()}
        cheapest = [min(net[name][number] for name in others) for number in range(options.rounds)]
        print(f"{threads} thread(s){'':14}{'µs':>8}{'/ cheapest peer':>18}")
        for name, of in sorted(net.items(), key=lambda one: statistics.median(one[1])):
            print(f"  {name:22}{statistics.median(of) * 1e6:8.2f}{ratio(of, cheapest):18.2f}")
    return 0 if _is_exact(hr) and _print_memory() else 1


def _is_exact(hr: headrace.Headrace) -> bool:
    """Whether eight threads' calls were all counted, as what they were."""
    wide = hr.snapshot.upstream("by_count").learned.counters.protected
    before = {outcome: wide[outcome].total() for outcome in ("success", "failure")}
    per_thread = 20_000

    def odd(number: int) -> None:
        if number % 5 == 0:
            raise ValueError

    act = hr.upstream("by_count").protect(odd, failure_on=ValueError)

    def work() -> None:
        for number in range(per_thread):
            try:
                act(number)
            except ValueError:
                pass

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    made = {outcome: wide[outcome].total() - count for outcome, count in before.items()}
    right = made == {"success": 8 * per_thread * 4 // 5, "failure": 8 * per_thread // 5}
    print(f"8 threads, {8 * per_thread} calls: counted {made}: {'exact' if right else 'WRONG'}")
    return right


def _print_memory() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "upstreams.yaml")
        file.write_text("upstreams: {a: {base_url: 'http://127.0.0.1:1'}}")
        plan: CircuitPlan = (
            headrace.Headrace(file, registry=CollectorRegistry()).snapshot.upstream("a").plan.circuit_breaker
        )
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    circuits = [Circuit(plan, rng=lambda: 0.5, lock=threading.Lock()) for _ in range(100)]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"memory of a default circuit: {(after - before) / len(circuits):.0f} bytes")
    return True


if __name__ == "__main__":
    sys.exit(main())
