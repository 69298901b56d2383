"""Checkout + return: the lease layer against the pool of urllib3. Prints ratios; asserts nothing.

Run: PYTHONPATH=tests python tests/bench/lease_vs_queue.py [rounds]

A turn is what a pool does around one request over a warm connection: hand it out, take it back. All
connections are real sockets to a listener in this process; no request is sent.

Uncontended (one thread, CPU time per turn):
  lease            acquire + give_back at the default rules, the look at the connection included
  lease, blind     the same without the look
  urllib3 best     HTTPConnectionPool(maxsize=4, block=True)._get_conn + _put_conn, is_connection_dropped included
  urllib3 default  the same at maxsize=1, block=False
  LifoQueue        get + put of the bare queue inside it: no probe, no counters, no limits of any kind

Contended (32 threads on 4 slots, each holding its connection for a while as a call does, or not at all):
  wall   per turn, over all threads; no pool can be below hold / 4, so it tells whether slots are left idle
  cpu    per turn
  p50, p99, longest   of a turn's time spent in checkout and return, waiting included
  opened sockets; urllib3's default does not wait but opens more, and closes them on return
Rounds are interleaved, so that a slow moment of the machine hits all; ratios are medians over the rounds.
"""

from __future__ import annotations

import logging
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import LifoQueue
from typing import Any

from interleaved import cpu_s, percentile, ratio, rounds_of
from urllib3.connectionpool import HTTPConnectionPool

from headrace.policy.counters import UpstreamCounters
from headrace.transport.dial.liveness import is_alive
from headrace.transport.lease.pool import LeasePool
from support.leases import End
from support.plans import pool_plan

SLOTS, THREADS = 4, 32
logging.getLogger("urllib3").setLevel(logging.ERROR)  # "Connection pool is full": that is what is measured


class Listener:
    """Accepts, counts, and says nothing."""

    def __init__(self) -> None:
        self._sock = socket.socket()
        self._sock.bind(("127.0.0.1", 0))
        self._sock.listen(512)
        self.port = self._sock.getsockname()[1]
        self.accepted: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self.accepted.append(self._sock.accept()[0])


@dataclass
class Side:
    """One way to hand out connections; `opened` counts sockets."""

    take: Callable[[], Any]
    put: Callable[[Any], None]
    opened: Callable[[], int]
    waits_s: list[float] = field(default_factory=list)

    def turn(self) -> None:
        self.put(self.take())


def lease_side(listener: Listener, *, looks: bool = True) -> Side:
    """Ours, warm."""
    pool: LeasePool[Any] = LeasePool(
        pool_plan(max_connections=SLOTS, max_idle=SLOTS),
        UpstreamCounters(lock=threading.Lock()),
        is_alive=is_alive if looks else bool,
        close=End.close,
        abort=End.close,
        discard=End.close,
    )
    for _ in range(SLOTS):
        pool.offer(End(socket.create_connection(("127.0.0.1", listener.port))))
    pool.view()
    return Side(
        lambda: pool.acquire(60.0),
        lambda lease: pool.give_back(lease, reusable=True),
        lambda: SLOTS,
    )


def stock_side(listener: Listener, *, maxsize: int, block: bool) -> Side:
    """urllib3's pool, warm."""
    pool = HTTPConnectionPool("127.0.0.1", listener.port, maxsize=maxsize, block=block)
    warm = [pool._get_conn() for _ in range(maxsize)]
    for conn in warm:
        conn.connect()
        pool._put_conn(conn)

    def take() -> Any:
        conn = pool._get_conn(60.0 if block else None)
        if conn.is_closed:
            conn.connect()
        return conn

    return Side(take, pool._put_conn, lambda: pool.num_connections)


def queue_side(listener: Listener) -> Side:
    """The bare queue."""
    slots: LifoQueue[Any] = LifoQueue(SLOTS)
    for _ in range(SLOTS):
        slots.put(socket.create_connection(("127.0.0.1", listener.port)))
    return Side(
        lambda: slots.get(block=True, timeout=60.0), lambda conn: slots.put(conn, block=False), lambda: SLOTS
    )


@dataclass
class Crowded:
    """What 32 threads saw; times in seconds."""

    wall_s: float
    cpu_s: float
    p50_s: float
    p99_s: float
    longest_s: float


def crowded(side: Side, *, hold_s: float, turns: int) -> Crowded:
    """Each thread takes, holds, gives back, again and again."""
    spent: list[list[float]] = [[] for _ in range(THREADS)]

    def run(mine: list[float]) -> None:
        for _ in range(turns // THREADS):
            began = time.perf_counter()
            conn = side.take()
            took = time.perf_counter() - began
            if hold_s:
                time.sleep(hold_s)
            began = time.perf_counter()
            side.put(conn)
            mine.append(took + time.perf_counter() - began)

    threads = [threading.Thread(target=run, args=(mine,)) for mine in spent]
    began, cpu_began = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s, used_s = time.perf_counter() - began, time.process_time() - cpu_began
    every = sorted(one for mine in spent for one in mine)
    return Crowded(wall_s / turns, used_s / turns, percentile(every, 0.5), percentile(every, 0.99), every[-1])


def uncontended(listener: Listener, rounds: int) -> None:
    """Print CPU time per turn, and the ratios."""
    sides = {
        "lease": lease_side(listener),
        "lease, blind": lease_side(listener, looks=False),
        "urllib3 best": stock_side(listener, maxsize=SLOTS, block=True),
        "urllib3 default": stock_side(listener, maxsize=1, block=False),
        "LifoQueue": queue_side(listener),
    }
    measured = rounds_of(
        {name: lambda side=side: cpu_s(side.turn, turns=10_000) for name, side in sides.items()},  # type: ignore[misc]
        rounds=rounds,
    )
    print("uncontended, CPU per turn")
    for name, values in measured.items():
        print(f"  {name:16} {statistics.median(values) * 1e6:6.2f} µs")
    for ours in ("lease", "lease, blind"):
        against = ", ".join(
            f"{ratio(measured[ours], measured[theirs]):.2f} of {theirs}" for theirs in list(sides)[2:]
        )
        print(f"  {ours}: {against}")


def contended(listener: Listener, rounds: int, *, hold_s: float) -> None:
    """Print what the crowd saw, and the ratios."""
    seen: dict[str, list[Crowded]] = {"lease": [], "urllib3 best": [], "urllib3 default": []}
    opened = dict.fromkeys(seen, 0)
    turns = THREADS * (max(20, int(0.1 / hold_s)) if hold_s else 500)

    def run(name: str, side: Side) -> float:
        before = side.opened()
        seen[name].append(crowded(side, hold_s=hold_s, turns=turns))
        opened[name] = max(opened[name], side.opened() - before)
        return seen[name][-1].wall_s

    sides = {
        "lease": lease_side(listener),
        "urllib3 best": stock_side(listener, maxsize=SLOTS, block=True),
        "urllib3 default": stock_side(listener, maxsize=1, block=False),
    }
    rounds_of(
        {name: lambda name=name, side=side: run(name, side) for name, side in sides.items()},  # type: ignore[misc]
        rounds=rounds,
    )
    print(f"{THREADS} threads on {SLOTS} slots, held for {hold_s * 1e3:g} ms, {turns} turns a round")
    columns = ("wall_s", "cpu_s", "p50_s", "p99_s", "longest_s")
    for name, all_rounds in seen.items():
        medians = (statistics.median(getattr(one, column) for one in all_rounds) for column in columns)
        texts = " ".join(
            f"{column.removesuffix('_s')} {value * 1e6:9.0f}"
            for column, value in zip(columns, medians, strict=True)
        )
        print(f"  {name:16} {texts} µs, opened {opened[name]} more")
    for theirs in ("urllib3 best", "urllib3 default"):
        ratios = ", ".join(
            f"{column.removesuffix('_s')} "
            f"{ratio(*([getattr(one, column) for one in seen[name]] for name in ('lease', theirs))):.2f}"
            for column in columns
        )
        print(f"  lease / {theirs}: {ratios}")


def main(rounds: int) -> None:
    """Measure and print."""
    listener = Listener()
    uncontended(listener, rounds)
    for hold_s in (0.0, 0.001, 0.005):
        contended(listener, max(3, rounds // 3), hold_s=hold_s)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
