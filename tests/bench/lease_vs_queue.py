"""Checkout + return: the lease layer against the queue that urllib3 pools use. Prints ratios; asserts nothing.

Run: python tests/bench/lease_vs_queue.py [rounds]

Both sides do what a pool does with a warm connection: take one, look whether it
is still alive, put it back. Rounds are interleaved, so that a slow moment of the
machine hits both; the ratio is the median over the rounds, of CPU time
uncontended and of wall time contended (where the holder yields, as a call that waits for its answer does).
"""

from __future__ import annotations

import queue
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable

from urllib3.util.connection import is_connection_dropped

from headrace.policy.counters import UpstreamCounters
from headrace.policy.plan import PoolPlan
from headrace.transport.lease import LeasePool
from headrace.transport.liveness import is_alive


class _Conn:
    """As much of a connection as both sides look at."""

    def __init__(self) -> None:
        self.sock, self._peer = socket.socketpair()

    @property
    def is_connected(self) -> bool:
        from urllib3.util.wait import wait_for_read

        return not wait_for_read(self.sock, timeout=0.0)

    def close(self) -> None:
        self.sock.close()
        self._peer.close()


def _lease_side(size: int, *, probe: bool, hold: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    pool: LeasePool[_Conn] = LeasePool(
        PoolPlan(max_connections=size, when_full="wait", max_waiting=1024, idle_timeout_s=60.0),
        UpstreamCounters(lock=threading.Lock()),
        is_alive=(lambda conn: is_alive(conn.sock)) if probe else (lambda conn: True),
        close=_Conn.close,
        abort=_Conn.close,
    )
    leases = [pool.acquire(1.0) for _ in range(size)]
    for lease in leases:
        lease.conn = _Conn()
        pool.give_back(lease, reusable=True)

    def turn() -> None:
        lease = pool.acquire(30.0)
        if hold:
            time.sleep(0)
        pool.give_back(lease, reusable=True)

    return turn, pool.retire


def _queue_side(size: int, *, probe: bool, hold: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    slots: queue.LifoQueue[_Conn] = queue.LifoQueue(size)
    conns = [_Conn() for _ in range(size)]
    for conn in conns:
        slots.put(conn)

    def turn() -> None:  # HTTPConnectionPool._get_conn and _put_conn, block=True
        conn = slots.get(block=True, timeout=30.0)
        if probe:
            is_connection_dropped(conn)  # type: ignore[arg-type]
        if hold:
            time.sleep(0)
        slots.put(conn, block=False)

    def close() -> None:
        for conn in conns:
            conn.close()

    return turn, close


def _alone(turn: Callable[[], None], turns: int) -> float:
    started = time.process_time()
    for _ in range(turns):
        turn()
    return (time.process_time() - started) / turns


def _crowded(turn: Callable[[], None], turns: int, threads: int = 32) -> float:
    def run() -> None:
        for _ in range(turns // threads):
            turn()

    crowd = [threading.Thread(target=run) for _ in range(threads)]
    started = time.perf_counter()
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    return (time.perf_counter() - started) / turns


def main(rounds: int) -> None:
    """Measure and print."""
    for title, size, measure, turns, probe, hold in (
        ("uncontended, bookkeeping only", 4, _alone, 5_000, False, False),
        ("uncontended, with liveness check", 4, _alone, 5_000, True, False),
        ("32 threads on 4 slots, bookkeeping only", 4, _crowded, 3_200, False, True),
        ("32 threads on 4 slots, with liveness check", 4, _crowded, 3_200, True, True),
    ):
        lease, close_lease = _lease_side(size, probe=probe, hold=hold)
        stock, close_stock = _queue_side(size, probe=probe, hold=hold)
        pairs = [(measure(lease, turns), measure(stock, turns)) for _ in range(rounds)]
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{title:45} {ours * 1e6:7.2f} µs  queue {theirs * 1e6:7.2f} µs  ratio {ratio:.2f}")
        close_lease()
        close_stock()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
