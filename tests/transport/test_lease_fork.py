"""A forked child and the pool it was born with, whether or not anybody told it of the fork."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from headrace.policy.counters import UpstreamCounters
from headrace.transport.dial.liveness import is_alive
from headrace.transport.lease.pool import LeasePool
from support.plans import pool_plan

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


class Wire:
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


def in_child(fork: Callable[[], int], act: Callable[[], object]) -> int:
    """Exit status of a child that runs *act*: 0, 1 when it raised, or minus the signal (SIGALRM: it hung)."""
    pid = fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(10)
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def bare_fork() -> int:
    """fork(2) itself, as uWSGI does: none of Python's hooks run. PyDLL keeps the GIL, so that the child has it."""
    return int(ctypes.PyDLL(None).fork())


@pytest.mark.parametrize("fork", [pytest.param(os.fork, id="os.fork"), pytest.param(bare_fork, id="fork(2)")])
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

    assert in_child(fork, child) == 0

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
        status = in_child(bare_fork, lambda: pool.give_back(pool.acquire(0.0), reusable=True))
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
        assert in_child(bare_fork, lambda: pool.acquire(0.0)) == 0  # and a grandchild

    assert in_child(bare_fork, child) == 0
    wire.sock.close()
    wire.peer.close()


def test_counts_go_on_in_a_child() -> None:
    pool = wired_pool()
    pool.give_back(pool.acquire(1.0), reusable=False)

    def child() -> None:
        pool.give_back(pool.acquire(1.0), reusable=False)
        pool.view()
        assert pool._counters.acquires == {"miss": 2}

    assert in_child(bare_fork, child) == 0


@pytest.mark.parametrize("fork", [pytest.param(os.fork, id="os.fork"), pytest.param(bare_fork, id="fork(2)")])
def test_a_request_that_ends_in_a_child_does_not_end_the_parents_answers(fork: Callable[[], int]) -> None:
    """failures.md 26."""
    pool = wired_pool()
    lease = pool.acquire(1.0)
    lease.conn = wire = Wire()
    token = lease.token
    assert token is not None

    def child() -> None:
        assert not pool.end(token, "abandoned")
        assert pool.view().inuse == 0

    assert in_child(fork, child) == 0
    wire.peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        wire.peer.recv(10)  # neither a word nor an end
    assert pool.view().inuse == 1
    wire.sock.close()
    wire.peer.close()
