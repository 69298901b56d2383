"""A forked child and the pool it was born with, whether or not anybody told it of the fork."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from headrace.policy.counters import UpstreamCounters
from headrace.transport.dial.liveness import Watched, is_alive
from headrace.transport.lease.pool import Lease, LeasePool
from support.forks import bare_fork, in_child, ordinary_fork
from support.leases import Conn, rig
from support.plans import pool_plan

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


class Wire(Watched):
    """A connection over a socket pair; `peer` is what the server would see."""

    def __init__(self) -> None:
        self.sock, self.peer = socket.socketpair()

    def close(self) -> None:
        self.sock.sendall(b"bye")  # like a TLS alert: it speaks
        self.sock.close()

    def discard(self) -> None:
        os.close(self.sock.detach())


def wired_pool() -> LeasePool[Wire]:
    return LeasePool(
        pool_plan(max_connections=4),
        UpstreamCounters(lock=threading.Lock()),
        is_alive=is_alive,
        close=Wire.close,
        abort=Wire.close,
        discard=Wire.discard,
    )


@pytest.mark.parametrize(
    "fork", [pytest.param(ordinary_fork, id="os.fork"), pytest.param(bare_fork, id="fork(2)")]
)
def test_a_child_gives_up_every_connection_at_its_first_checkout_without_a_word(
    fork: Callable[[], int],
) -> None:
    """failures.md 26."""
    pool = wired_pool()
    idle, busy, returned = (pool.acquire(1.0) for _ in range(3))
    wires = []
    for lease in (idle, busy, returned):
        lease.conn = Wire()
        wires.append(lease.conn)
    pool.give_back(idle, reusable=True)
    pool.view()  # settled
    pool.give_back(returned, reusable=True)  # not looked at yet

    def child() -> None:
        inherited = [wire.sock.fileno() for wire in wires]
        lease = pool.acquire(1.0)
        assert (lease.conn, lease.reused) == (None, False)
        for descriptor in inherited:
            with pytest.raises(OSError):
                os.fstat(descriptor)  # this process's copy is closed
        pool.give_back(busy, reusable=True)  # from before: nothing
        assert (pool.view().inuse, pool.view().idle) == (1, 0)
        lease.conn = Wire()
        pool.give_back(lease, reusable=True)
        assert pool.acquire(1.0).conn is lease.conn

    assert in_child(child, fork=fork) == 0

    for wire in wires:
        wire.peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            wire.peer.recv(10)  # neither a word nor an end
        wire.peer.sendall(b"answer")
        wire.sock.settimeout(1.0)
        assert wire.sock.recv(10) == b"answer"
        wire.sock.close()
        wire.peer.close()
    assert (pool.view().inuse, pool.view().idle) == (1, 2)


def test_a_lock_that_another_thread_held_at_a_bare_fork_does_not_hang_the_child() -> None:
    """failures.md 26."""
    pool = wired_pool()
    pool.acquire(1.0)
    with pool._lock:
        status = in_child(lambda: pool.give_back(pool.acquire(0.0), reusable=True), fork=bare_fork)
    assert status == 0


def test_threads_of_a_child_that_come_at_the_same_time_reset_the_pool_once() -> None:
    pool = wired_pool()
    wire = Wire()
    pool.offer(wire)

    def child() -> None:
        got = []
        threads = [threading.Thread(target=lambda: got.append(pool.acquire(5.0))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5.0)
        assert len(got) == 4
        assert all(lease.conn is None for lease in got)
        assert pool.view().inuse == 4
        signal.alarm(0)
        assert in_child(lambda: pool.acquire(0.0), fork=bare_fork) == 0  # and a grandchild

    assert in_child(child, fork=bare_fork) == 0
    wire.sock.close()
    wire.peer.close()


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda pool, held: pool.acquire(0.0), id="acquire"),
        pytest.param(lambda pool, held: pool.abort(held.token), id="abort"),
        pytest.param(lambda pool, held: pool.end(held.token, "abandoned"), id="end"),
        pytest.param(lambda pool, held: pool.tend(), id="tend"),
        pytest.param(lambda pool, held: pool.want_idle(), id="want_idle"),
        pytest.param(lambda pool, held: pool.offer(Conn()), id="offer"),
        pytest.param(lambda pool, held: pool.share(held, 2), id="share"),
        pytest.param(lambda pool, held: pool.lend_idle(2000.0, idle_s=0.0, most=1), id="lend_idle"),
        pytest.param(lambda pool, held: pool.close_idle("idle"), id="close_idle"),
        pytest.param(lambda pool, held: pool.follow(pool.plan), id="follow"),
        pytest.param(lambda pool, held: pool.resize(1), id="resize"),
        pytest.param(lambda pool, held: pool.busiest(0.0), id="busiest"),
        pytest.param(lambda pool, held: pool.retire(), id="retire"),
        pytest.param(lambda pool, held: pool.stop(), id="stop"),
        pytest.param(lambda pool, held: pool.view(), id="view"),
        pytest.param(lambda pool, held: pool.hit_rate(), id="hit_rate"),
    ],
)
def test_whatever_a_process_does_first_gives_up_what_the_pool_has_of_another_process(
    use: Callable[[LeasePool[Conn], Lease[Conn]], object],
) -> None:
    """failures.md 26."""
    r = rig(max_connections=4, min_idle=1)
    held = r.lease("held")
    r.fill_idle("idle")
    r.pool._pid = -1  # as if it had been used in another process so far: a bare fork that nobody told of

    use(r.pool, held)

    assert [conn.name for conn in r.discarded] == ["held", "idle"]
    assert (r.closed, r.aborted) == ([], [])


def test_counts_go_on_in_a_child() -> None:
    pool = wired_pool()
    pool.give_back(pool.acquire(1.0), reusable=False)

    def child() -> None:
        pool.give_back(pool.acquire(1.0), reusable=False)
        pool.view()
        assert pool._counters.acquires == {"miss": 2}

    assert in_child(child, fork=bare_fork) == 0


@pytest.mark.parametrize(
    "fork", [pytest.param(ordinary_fork, id="os.fork"), pytest.param(bare_fork, id="fork(2)")]
)
def test_a_request_that_ends_in_a_child_does_not_end_the_parents_answers(fork: Callable[[], int]) -> None:
    """failures.md 26."""
    pool = wired_pool()
    lease = pool.acquire(1.0)
    lease.conn = wire = Wire()
    token = lease.token
    assert token is not None

    def child() -> None:
        assert pool.end(token, "abandoned") is False
        assert pool.view().inuse == 0

    assert in_child(child, fork=fork) == 0
    wire.peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        wire.peer.recv(10)  # neither a word nor an end
    assert pool.view().inuse == 1
    wire.sock.close()
    wire.peer.close()


def test_a_lease_that_the_forking_thread_held_has_ended_and_has_no_connection_of_the_parent() -> None:
    """failures.md 26."""
    r = rig()
    lease = r.lease()
    conn = lease.conn
    r.pool._pid = -1  # as if it had been used in another process so far

    r.pool.view()

    assert (lease.token, lease.conn) == (None, None)
    assert r.discarded == [conn]
