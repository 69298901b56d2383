"""The lease layer against a naive model, over arbitrary histories.

Waiters run the real `acquire` in threads of their own, but their gates are ours:
each stays shut until the pool opens it, or until the machine says that its time
is up or that it is interrupted. So every history is deterministic.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.transport.lease import Lease, LeaseClosed, LeaseTimeout
from support.leases import Conn, rig
from support.waiting import wait_until

SIZE = 3
IDLE_TIMEOUT_S = 60.0
picks = st.integers(min_value=0, max_value=1000)


class Cancelled(BaseException):
    """What a killed greenlet or Ctrl-C is to a waiter."""


class Gate:
    """Stands in for the waiter's lock; opened by the pool, timed out or interrupted by the machine."""

    def __init__(self) -> None:
        self.commands: queue.SimpleQueue[bool | type[BaseException]] = queue.SimpleQueue()

    def acquire(self, timeout: float = -1) -> bool:
        command = self.commands.get()
        if isinstance(command, bool):
            return command
        raise command

    def release(self) -> None:
        self.commands.put(True)


class Caller:
    """A thread that waits in `acquire`."""

    def __init__(self, machine: LeaseMachine) -> None:
        self.result: Any = None
        self.thread = threading.Thread(target=self.run, args=(machine.rig.pool,))
        ahead = len(machine.rig.pool._waiters)
        self.thread.start()
        wait_until(lambda: len(machine.rig.pool._waiters) == ahead + 1)
        self.gate: Any = next(reversed(machine.rig.pool._waiters.values()))

    def run(self, pool: Any) -> None:
        try:
            self.result = pool.acquire(30.0)
        except BaseException as error:
            self.result = error

    def outcome(self) -> Any:
        self.thread.join(10.0)
        assert not self.thread.is_alive(), "a waiter was not woken"
        return self.result


class LeaseMachine(RuleBasedStateMachine):
    """`held`, `idle` and `waiting` are the model; the pool must agree after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = rig(max_connections=SIZE, idle_timeout_s=IDLE_TIMEOUT_S, max_waiting=100)
        self.held: list[Lease[Conn]] = []
        self.ended: list[Lease[Conn]] = []
        self.idle: list[tuple[Conn, float]] = []
        self.waiting: list[Caller] = []
        self.retired = self.stopped = False
        self.made = 0
        pool = self.rig.pool
        slot_or_gate = pool._slot_or_gate

        def with_our_gate(lease: Lease[Conn], *args: Any) -> Any:
            if slot_or_gate(lease, *args) is None:
                return None
            gate: Any = Gate()
            pool._waiters[lease] = gate
            return gate

        pool._slot_or_gate = with_our_gate  # type: ignore[method-assign]

    @rule()
    @precondition(lambda self: not self.stopped)
    def checkout(self) -> None:
        if len(self.held) < SIZE:
            self.leased(self.rig.pool.acquire(30.0))
        elif len(self.waiting) < 5:
            self.waiting.append(Caller(self))

    @rule(times=st.integers(1, SIZE + 3))
    @precondition(lambda self: not self.stopped)
    def rush(self, times: int) -> None:
        for _ in range(times):
            self.checkout()

    def leased(self, lease: Lease[Conn]) -> None:
        while self.idle:
            conn, since = self.idle.pop()
            if conn.alive and self.rig.now - since < IDLE_TIMEOUT_S:
                assert lease.conn is conn, "not the newest connection that is alive and young"
                break
            assert conn in self.rig.closed
        else:
            assert lease.conn is None
            self.made += 1
            lease.conn = Conn(str(self.made))
        assert lease.conn not in self.rig.closed
        self.held.append(lease)

    @rule(pick=picks, reusable=st.booleans(), lock_held=st.booleans())
    @precondition(lambda self: self.held)
    def give_back(self, pick: int, reusable: bool, lock_held: bool) -> None:
        lease = self.held.pop(pick % len(self.held))
        conn = lease.conn
        if lock_held:  # a finalizer, in the thread that holds the lock
            with self.rig.pool._lock:
                self.rig.pool.give_back(lease, reusable=reusable)
            self.rig.pool.view()  # what every holder does after the release
        else:
            self.rig.pool.give_back(lease, reusable=reusable)
        self.ended.append(lease)
        assert conn is not None
        if reusable and not self.retired:
            self.idle.append((conn, self.rig.now))
        else:
            assert conn in self.rig.closed
        if self.waiting:
            served = self.waiting.pop(0).outcome()  # FIFO: the first, and at once
            assert isinstance(served, Lease)
            self.leased(served)

    @rule(pick=picks, reusable=st.booleans())
    @precondition(lambda self: self.ended)
    def give_back_again(self, pick: int, reusable: bool) -> None:
        self.rig.pool.give_back(self.ended[pick % len(self.ended)], reusable=reusable)

    @rule(pick=picks, cancel=st.booleans())
    @precondition(lambda self: self.waiting)
    def leave_the_queue(self, pick: int, cancel: bool) -> None:
        caller = self.waiting.pop(pick % len(self.waiting))
        caller.gate.commands.put(Cancelled if cancel else False)
        assert isinstance(caller.outcome(), Cancelled if cancel else LeaseTimeout)

    @rule(pick=picks)
    @precondition(lambda self: self.idle)
    def peer_hangs_up(self, pick: int) -> None:
        self.idle[pick % len(self.idle)][0].alive = False

    @rule(seconds=st.sampled_from([1.0, 20.0, 59.0]))
    def time_passes(self, seconds: float) -> None:
        self.rig.now += seconds

    @rule()
    def housekeeping(self) -> None:
        self.rig.pool.tend(self.rig.now)
        for conn, since in self.idle[:]:
            if self.rig.now - since >= IDLE_TIMEOUT_S:
                self.idle.remove((conn, since))
                assert conn in self.rig.closed

    @rule(sure=st.integers(0, 40))
    def retire(self, sure: int) -> None:
        if sure == 23:  # not 0, which Hypothesis likes: most histories should go on
            self.rig.pool.retire()
            self.retired = True
            self.idle_is_closed()

    @rule(sure=st.integers(0, 40))
    def stop(self, sure: int) -> None:
        if sure == 23:  # not 0, which Hypothesis likes: most histories should go on
            self.rig.pool.stop()
            self.retired = self.stopped = True
            self.idle_is_closed()
            assert all(lease.conn in self.rig.aborted for lease in self.held)
            while self.waiting:
                assert isinstance(self.waiting.pop().outcome(), LeaseClosed)

    def idle_is_closed(self) -> None:
        assert all(conn in self.rig.closed for conn, _ in self.idle)
        self.idle.clear()

    @invariant()
    def the_pool_agrees(self) -> None:
        view = self.rig.pool.view()
        assert (view.inuse, view.idle, view.waiting) == (len(self.held), len(self.idle), len(self.waiting))

    @invariant()
    def no_more_connections_than_allowed(self) -> None:
        assert len(self.held) + len(self.idle) <= SIZE

    @invariant()
    def nobody_waits_while_a_slot_is_free(self) -> None:
        assert not self.waiting or len(self.held) == SIZE

    @invariant()
    def no_connection_is_in_two_places(self) -> None:
        conns = [lease.conn for lease in self.held] + [conn for conn, _ in self.idle]
        assert len(conns) == len(set(conns))
        assert len(self.rig.closed) == len(set(self.rig.closed))

    def teardown(self) -> None:
        self.rig.pool.stop()
        for caller in self.waiting:
            caller.outcome()


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
