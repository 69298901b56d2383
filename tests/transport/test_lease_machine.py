"""The lease layer against a naive model, over arbitrary histories.

Waiters run the real `acquire` in threads of their own, but their gates are ours:
each stays shut until the pool opens it, or until the machine says that its time
is up or that it is interrupted. So every history is deterministic.
"""

from __future__ import annotations

import queue
import threading
from typing import Any
from weakref import ref

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.policy.counters import copied
from headrace.transport.lease.pool import Lease, LeaseClosed, LeaseTimeout
from support.leases import Conn, rig
from support.waiting import wait_until

MAX_IDLE = 3
IDLE_TIMEOUT_S = 60.0
LIFETIME_S = 80.0
sizes = st.integers(min_value=1, max_value=5)
picks = st.integers(min_value=0, max_value=1000)
people = st.sampled_from([None, None, 0, 1, 2])


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


class Person:
    """An owner that a peer may authenticate a connection for.

    Attributes:
        own_only: Takes its own connections alone, as a caller with a connection class of its own does.
    """

    def __init__(self, *, own_only: bool = False) -> None:
        self.own_only = own_only


def is_exclusive(who: Person | None) -> bool:
    return who is not None and who.own_only


class Caller:
    """A thread that waits in `acquire`."""

    def __init__(self, machine: LeaseMachine, *, fresh: bool, who: Person | None) -> None:
        self.fresh = fresh
        self.who = who
        self.result: Any = None
        self.thread = threading.Thread(target=self.run, args=(machine.rig.pool,))
        ahead = len(machine.rig.pool._waiters)
        self.thread.start()
        wait_until(lambda: len(machine.rig.pool._waiters) == ahead + 1)
        self.gate: Any = next(reversed(machine.rig.pool._waiters.values()))

    def run(self, pool: Any) -> None:
        try:
            self.result = pool.acquire(
                30.0, fresh=self.fresh, owner=self.who, own_only=is_exclusive(self.who)
            )
        except BaseException as error:
            self.result = error

    def outcome(self) -> Any:
        self.thread.join(10.0)
        assert not self.thread.is_alive(), "a waiter was not woken"
        result, self.result = self.result, None  # or it would keep the lease that another rule drops
        return result


class LeaseMachine(RuleBasedStateMachine):
    """`held`, `idle` and `waiting` are the model; the pool must agree after every step.

    `capacity` is of the connections with several places: `busy` are those of them in use, in the order in which they
    became so, and `ending` those that lend no more. Here there are none.
    """

    when_full = "wait"

    def __init__(self) -> None:
        super().__init__()
        self.size = 3
        self.rig = rig(
            max_connections=self.size,
            max_idle=MAX_IDLE,
            idle_timeout_s=IDLE_TIMEOUT_S,
            max_lifetime_s=LIFETIME_S,
            max_waiting=100,
            when_full=self.when_full,
        )
        self.held: list[Lease[Conn]] = []
        self.one_off: list[Lease[Conn]] = []
        self.ended: list[Lease[Conn]] = []
        self.tokens: list[Any] = []  # of every lease there was, weak
        self.idle: list[tuple[Conn, float]] = []
        self.people = [Person(), Person(), Person(own_only=True)]
        self.owner_of: dict[Conn, Any] = {}  # weak
        self.waiting: list[Caller] = []
        self.expires_at: dict[Conn, float] = {}
        self.past_sizes = [self.size]
        self.size_when_taken: dict[int, int] = {}  # id of a held lease -> index into past_sizes
        self.retired = self.stopped = False
        self.made = self.lost = 0
        self.capacity_of_new: int | None = None
        self.capacity: dict[Conn, int] = {}
        self.busy: list[Conn] = []
        self.ending: set[Conn] = set()
        self.gone_by: dict[Conn, float] = {}
        self.to_share: list[Lease[Conn]] = []
        pool = self.rig.pool
        slot_or_gate = pool._slot_or_gate

        def with_our_gate(lease: Lease[Conn], *args: Any) -> Any:
            if slot_or_gate(lease, *args) is None:
                return None
            gate: Any = Gate()
            pool._waiters[lease] = gate
            return gate

        pool._slot_or_gate = with_our_gate  # type: ignore[method-assign]

    @rule(fresh=st.lists(st.booleans(), min_size=1, max_size=6), nth=people)
    @precondition(lambda self: not self.stopped)
    def checkout(self, fresh: list[bool], nth: int | None) -> None:
        for one in fresh:
            self.checkout_one(fresh=one, who=None if nth is None else self.people[nth])

    def checkout_one(self, *, fresh: bool, who: Person | None) -> None:
        if self.would_lease(fresh=fresh, who=who):
            self.leased(
                self.rig.pool.acquire(30.0, fresh=fresh, owner=who, own_only=is_exclusive(who)),
                fresh=fresh,
                who=who,
            )
            self.share_new()
        elif self.when_full == "new":
            lease = self.rig.pool.acquire(30.0, fresh=fresh, owner=who, own_only=is_exclusive(who))
            self.pass_dead_places(fresh=fresh, who=who)
            assert (lease.conn, lease.one_off) == (None, True)
            lease.conn = self.new_conn()
            self.rig.pool.share(lease, 4)  # has no effect
            self.one_off.append(lease)
            self.tokens.append(lease.token)
        elif len(self.waiting) < 5:
            caller = Caller(self, fresh=fresh, who=who)
            self.pass_dead_places(fresh=fresh, who=who)
            if fresh or not any(self.is_for(conn, who) for conn in self.busy if conn not in self.ending):
                self.drain_one()
            self.waiting.append(caller)

    def on(self, conn: Conn) -> int:
        """Leases on *conn*."""
        return sum(lease.conn is conn for lease in self.held)

    def used(self) -> int:
        """Connections in use."""
        return sum(lease.conn not in self.capacity for lease in self.held) + len(self.busy)

    def is_for(self, conn: Conn, who: Person | None) -> bool:
        if conn not in self.owner_of:
            return not is_exclusive(who)
        return who is not None and self.owned_by(conn, who)

    def free_places(self, who: Person | None) -> list[Conn]:
        """Connections with several places of which *who* may have one, in the order in which they are tried."""
        return [
            conn
            for conn in self.busy
            if self.on(conn) < self.capacity[conn]
            and conn not in self.ending
            and self.rig.now < self.expires_at[conn]
            and self.is_for(conn, who)
        ] + [
            conn
            for conn, _ in reversed(self.idle)
            if self.capacity.get(conn, 0) > 0 and self.is_for(conn, who)
        ]

    def is_good(self, conn: Conn) -> bool:
        """Whether *conn* passes the look at it."""
        since = next((since for one, since in self.idle if one is conn), self.rig.now)
        return conn.alive and self.rig.now < self.expires_at[conn] and self.rig.now - since < IDLE_TIMEOUT_S

    def would_lease(self, *, fresh: bool, who: Person | None) -> bool:
        """Whether a call gets a lease of the pool at once."""
        if self.used() < self.size:
            return True
        return not fresh and any(self.is_good(conn) for conn in self.free_places(who))

    def pass_dead_places(self, *, fresh: bool, who: Person | None) -> Conn | None:
        """What a call that has tried all those places has found; those that are dead are given up."""
        for conn in [] if fresh or self.mine(fresh=fresh, who=who) else self.free_places(who):
            if self.is_good(conn):
                return conn
            if conn in self.busy:
                assert conn not in self.rig.closed, "a connection that others use"
                self.ending.add(conn)
            else:
                self.idle = [one for one in self.idle if one[0] is not conn]
                assert conn in self.rig.closed
        return None

    def drain_one(self) -> None:
        """The one with the fewest leases ends with them."""
        staying = [conn for conn in self.busy if conn not in self.ending]
        if staying:
            self.ending.add(min(staying, key=self.on))

    def new_conn(self) -> Conn:
        self.made += 1
        conn = Conn(str(self.made))
        self.expires_at[conn] = self.rig.now + LIFETIME_S
        return conn

    def own(self, who: Person | None) -> list[tuple[Conn, float]]:
        """Idle connections of one place that are *who*'s, oldest first; of None: everybody's."""
        return [
            one
            for one in self.idle
            if one[0] not in self.capacity
            and (one[0] not in self.owner_of if who is None else self.owned_by(one[0], who))
        ]

    def owned_by(self, conn: Conn, who: Person) -> bool:
        return conn in self.owner_of and self.owner_of[conn]() is who

    def evict(self) -> None:
        """The longest idle is closed; of those with an owner or several places only when there are no others."""
        oldest = (self.own(None) or self.idle)[0]
        self.idle.remove(oldest)
        assert oldest[0] in self.rig.closed, "not the oldest made room"

    def mine(self, *, fresh: bool, who: Person | None) -> list[tuple[Conn, float]]:
        """Idle connections of one place that a call tries, the last one first."""
        everybodys = [] if is_exclusive(who) else self.own(None)
        return [] if fresh else everybodys + (self.own(who) if who is not None else [])

    def leased(self, lease: Lease[Conn], *, fresh: bool, who: Person | None) -> None:
        mine = self.mine(fresh=fresh, who=who)
        if not mine:
            place = self.pass_dead_places(fresh=fresh, who=who)
            if place is not None:
                assert lease.conn is place, "not the place that comes first"
                if place not in self.busy:
                    self.idle = [one for one in self.idle if one[0] is not place]
                    self.busy.append(place)
            elif self.idle and self.used() + len(self.idle) >= self.size:
                assert lease.conn is None
                self.evict()
        while mine:
            conn, since = mine.pop()
            self.idle.remove((conn, since))
            if conn.alive and self.rig.now - since < IDLE_TIMEOUT_S and self.rig.now < self.expires_at[conn]:
                assert lease.conn is conn, "not the newest connection that is alive and young"
                break
            assert conn in self.rig.closed
        else:
            if lease.conn not in self.busy:
                assert lease.conn is None
                lease.conn = self.new_conn()
                self.to_share.append(lease)
        assert lease.conn is not None
        assert lease.conn not in self.rig.closed
        if lease.conn in self.owner_of:
            assert who is not None
            assert self.owned_by(lease.conn, who), "somebody else's connection"
        self.held.append(lease)
        self.tokens.append(lease.token)
        self.size_when_taken[id(lease)] = len(self.past_sizes) - 1

    def share_new(self) -> None:
        """Those who have dialled say how many places there are."""
        while self.to_share:
            lease = self.to_share.pop(0)
            if self.capacity_of_new is not None and lease.conn is not None:
                self.rig.pool.share(lease, self.capacity_of_new)
                self.capacity[lease.conn] = self.capacity_of_new
                self.busy.append(lease.conn)
                self.serve_once()

    def serve(self) -> None:
        """What the pool owes the waiters now."""
        self.serve_once()
        self.share_new()

    def serve_once(self) -> None:
        """The first, and at once, if there is room; else the first that can have a place."""
        while self.waiting and self.used() < self.size:
            self.serve_one(self.waiting[0])
        for caller in self.waiting[:]:
            if not caller.fresh and self.free_places(caller.who):
                self.serve_one(caller)

    def serve_one(self, caller: Caller) -> None:
        self.waiting.remove(caller)
        served = caller.outcome()
        assert isinstance(served, Lease)
        self.leased(served, fresh=caller.fresh, who=caller.who)

    def fits(self, conn: Conn) -> bool:
        """Whether *conn*, just given back, is kept."""
        is_owned = conn in self.owner_of
        return (
            self.used() + len(self.idle) < self.size
            and not self.retired
            and conn not in self.ending
            and self.rig.now < self.expires_at[conn]
            and (not is_owned or self.owner_of[conn]() is not None)
        )

    def comes_back(self, conn: Conn, *, reusable: bool) -> None:
        """A lease on *conn* has ended, and is not among those held any more."""
        if conn in self.capacity:
            if not reusable or self.rig.now >= self.expires_at[conn]:
                self.ending.add(conn)
            if self.on(conn):
                assert conn not in self.rig.closed, "a connection that others use"
                return
            self.busy.remove(conn)
        if reusable and self.fits(conn):
            self.idle.append((conn, self.rig.now))
        else:
            self.rig.pool.view()
            assert conn in self.rig.closed

    @rule(pick=picks, nth=people)
    @precondition(lambda self: self.held)
    def authenticate(self, pick: int, nth: int | None) -> None:
        """The peer now knows who is on it; None: no owner that one could refer to."""
        lease = self.held[pick % len(self.held)]
        if lease.conn in self.capacity and self.waiting:
            return  # it wakes nobody
        self.authenticate_one(lease, nth)

    def authenticate_one(self, lease: Lease[Conn], nth: int | None) -> None:
        assert lease.conn is not None
        self.rig.pool.claim(lease, None if nth is None else self.people[nth])
        self.owner_of[lease.conn] = (lambda: None) if nth is None else ref(self.people[nth])

    @rule(
        users=st.lists(st.tuples(people, st.sampled_from(["asks", "authenticates"])), min_size=1, max_size=6),
        at_once=st.integers(1, 3),
    )
    @precondition(lambda self: not self.stopped)
    def uses(self, users: list[tuple[int | None, str]], at_once: int) -> None:
        """Some calls, *at_once* of them together, each over as soon as it has its answer."""
        mine: list[Lease[Conn]] = []
        for nth, what in users:
            who = None if nth is None else self.people[nth]
            if self.would_lease(fresh=False, who=who):
                self.checkout_one(fresh=False, who=who)
                mine.append(self.held[-1])
                if what == "authenticates" and nth is not None and not self.waiting:
                    self.authenticate_one(mine[-1], nth)
            if len(mine) == at_once or self.used() == self.size:
                for lease in mine:
                    self.held.remove(lease)
                    self.give_back_one(lease, reusable=True, lock_held=False)
                mine.clear()
        for lease in mine:
            self.held.remove(lease)
            self.give_back_one(lease, reusable=True, lock_held=False)

    @rule(nth=st.integers(0, 2))
    def an_owner_goes(self, nth: int) -> None:
        if any(caller.who is self.people[nth] for caller in self.waiting):
            return
        theirs = [one for one in self.idle if self.owned_by(one[0], self.people[nth])]
        self.people[nth] = Person(own_only=nth == 2)
        for conn, since in theirs:
            assert conn in self.rig.closed
            self.idle.remove((conn, since))

    @rule(times=st.integers(1, 3), pick=picks, reusable=st.booleans(), lock_held=st.booleans())
    @precondition(lambda self: self.held)
    def give_back(self, times: int, pick: int, reusable: bool, lock_held: bool) -> None:
        for _ in range(min(times, len(self.held))):
            self.give_back_one(self.held.pop(pick % len(self.held)), reusable=reusable, lock_held=lock_held)

    def give_back_one(self, lease: Lease[Conn], *, reusable: bool, lock_held: bool) -> None:
        conn = lease.conn
        reusable = reusable and (conn not in self.capacity or conn.alive)  # its holders all notice
        if lock_held:  # a finalizer, in the thread that holds the lock
            with self.rig.pool._lock:
                self.rig.pool.give_back(lease, reusable=reusable)
            self.rig.pool.view()  # what every holder does after the release
        else:
            self.rig.pool.give_back(lease, reusable=reusable)
        self.ended.append(lease)
        assert conn is not None
        self.comes_back(conn, reusable=reusable)
        self.serve()

    @rule(pick=picks, give_back=st.booleans())
    @precondition(lambda self: self.tokens)
    def abort(self, pick: int, give_back: bool) -> None:
        """A timer fires: for a lease in use, or too late, when its connection may be somebody else's by now."""
        token = self.tokens[pick % len(self.tokens)]
        holder = next((one for one in (*self.held, *self.one_off) if one.token is token), None)
        aborted, places = len(self.rig.aborted), len(self.rig.aborted_places)
        shares = holder is not None and holder.conn in self.capacity
        assert self.rig.pool.abort(token) is (holder is not None)
        assert self.rig.aborted[aborted:] == ([] if holder is None or shares else [holder.conn])
        assert self.rig.aborted_places[places:] == ([(holder.conn, token)] if holder and shares else [])
        if holder is None:
            return
        assert holder.conn is not None
        if not shares:
            self.expires_at[holder.conn] = self.rig.now  # not used again, whatever its holder thinks of it
        if holder in self.held and give_back:
            self.held.remove(holder)
            self.give_back_one(holder, reusable=True, lock_held=True)

    @rule(pick=picks, give_back=st.booleans())
    @precondition(lambda self: self.tokens)
    def end(self, pick: int, give_back: bool) -> None:
        """A request is over, and with it a lease of its: one in use, or too late; its holder may still be there."""
        token = self.tokens[pick % len(self.tokens)]
        holder = next((one for one in (*self.held, *self.one_off) if one.token is token), None)
        closed, places = len(self.rig.closed), len(self.rig.aborted_places)
        conn = None if holder is None else holder.conn
        if conn in self.capacity and not conn.alive:
            return  # the codec would have said so
        assert self.rig.pool.end(token, "abandoned") is (holder is not None)
        if holder is None or conn is None:
            assert self.rig.closed[closed:] == []
            return
        (self.held if holder in self.held else self.one_off).remove(holder)
        self.ended.append(holder)
        if conn in self.capacity:
            assert self.rig.aborted_places[places:] == [(conn, token)]
            self.comes_back(conn, reusable=True)
        else:
            assert conn in self.rig.aborted
            assert self.rig.closed[closed:] == [conn]
        if give_back:
            self.rig.pool.give_back(holder, reusable=True)  # nothing happens
        self.serve()

    @rule(pick=picks)
    @precondition(lambda self: self.held)
    def abort_what_was_given_back_and_not_looked_at_yet(self, pick: int) -> None:
        lease = self.held.pop(pick % len(self.held))
        token, conn, aborted = lease.token, lease.conn, len(self.rig.aborted)
        assert token is not None
        assert conn is not None
        reusable = conn not in self.capacity or conn.alive
        with self.rig.pool._lock:
            self.rig.pool.give_back(lease, reusable=reusable)
        assert self.rig.pool.abort(token) is False
        assert len(self.rig.aborted) == aborted
        self.ended.append(lease)
        self.comes_back(conn, reusable=reusable)
        self.serve()

    @rule()
    @precondition(lambda self: self.idle and self.used() + 1 < self.size)
    def lend_for_a_heartbeat(self) -> None:
        """A Lease object is used again then, and no token of its former life may find it."""
        lent = self.rig.pool.lend_idle(self.rig.now, idle_s=0.0, most=1)
        if not lent:
            return
        assert lent[0].conn not in self.owner_of, "a heartbeat on somebody's own connection"
        assert lent[0].conn not in self.capacity, "a heartbeat on a connection that others may join"
        aborted = len(self.rig.aborted)
        for token in self.tokens:
            if not any(one.token is token for one in (*self.held, *self.one_off)):
                assert self.rig.pool.abort(token) is False
                assert self.rig.pool.end(token, "abandoned") is False
        assert len(self.rig.aborted) == aborted
        self.rig.pool.give_back(lent[0], reusable=True)
        conn, since = next(one for one in self.idle if one[0] is lent[0].conn)
        self.idle.remove((conn, since))
        if self.rig.now < self.expires_at[conn]:
            self.idle.append((conn, self.rig.now))

    @rule(pick=picks)
    @precondition(lambda self: self.one_off)
    def give_back_one_off(self, pick: int) -> None:
        lease = self.one_off.pop(pick % len(self.one_off))
        self.rig.pool.give_back(lease, reusable=True)
        assert lease.conn in self.rig.closed
        self.ended.append(lease)

    @rule(pick=picks, reusable=st.booleans())
    @precondition(lambda self: self.ended)
    def give_back_again(self, pick: int, reusable: bool) -> None:
        self.rig.pool.give_back(self.ended[pick % len(self.ended)], reusable=reusable)

    @rule(pick=picks)
    @precondition(lambda self: self.held)
    def drop(self, pick: int) -> None:
        conn = self.held.pop(pick % len(self.held)).conn
        if conn in self.capacity:
            self.comes_back(conn, reusable=False)
        else:
            self.lost += 1
        self.serve()

    @rule(pick=picks, cancel=st.booleans())
    @precondition(lambda self: self.waiting)
    def leave_the_queue(self, pick: int, cancel: bool) -> None:
        caller = self.waiting.pop(pick % len(self.waiting))
        caller.gate.commands.put(Cancelled if cancel else False)
        assert isinstance(caller.outcome(), Cancelled if cancel else LeaseTimeout)

    @rule(size=sizes)
    @precondition(lambda self: not self.stopped)
    def resize(self, size: int) -> None:
        self.rig.pool.resize(size)
        self.size = size
        self.past_sizes.append(size)
        while self.idle and self.used() + len(self.idle) > size:
            self.evict()
        while self.used() - len(self.ending.intersection(self.busy)) > size and set(self.busy) - self.ending:
            self.drain_one()
        self.serve()

    @rule()
    @precondition(lambda self: not self.stopped)
    def make_ahead_of_need(self) -> None:
        conn = self.new_conn()
        welcome = not self.retired and self.used() + len(self.idle) < self.size
        assert self.rig.pool.offer(conn, capacity=self.capacity_of_new) is welcome
        if welcome:
            self.idle.append((conn, self.rig.now))
            if self.capacity_of_new is not None:
                self.capacity[conn] = self.capacity_of_new
        else:
            assert conn in self.rig.closed

    @rule(pick=picks)
    @precondition(lambda self: self.idle)
    def peer_hangs_up(self, pick: int) -> None:
        self.idle[pick % len(self.idle)][0].alive = False

    @rule(drain_s=st.sampled_from([0.0, 15.0, 30.0]))
    def rotate(self, drain_s: float) -> None:
        """New connections are made with other material. The old ones go, in use or not; nobody is broken off yet."""
        held = {lease.conn for lease in (*self.held, *self.one_off) if lease.conn is not None}
        aborted = [*self.rig.aborted]
        assert self.rig.pool.rotate(drain_s) == (len(self.idle), len(held))
        self.idle_is_closed()
        for conn in held:
            self.gone_by[conn] = min(self.gone_by.get(conn, self.rig.now + drain_s), self.rig.now + drain_s)
            self.expires_at[conn] = self.rig.now
        self.ending.update(self.busy)
        self.what_has_drained_is_broken_off(aborted)
        self.serve()

    def what_has_drained_is_broken_off(self, aborted: list[Conn]) -> None:
        """Of those in use, these alone; *aborted* are those that were before."""
        over = {
            lease.conn
            for lease in (*self.held, *self.one_off)
            if lease.conn is not None and self.gone_by.get(lease.conn, self.rig.now + 1) <= self.rig.now
        }
        assert over <= set(self.rig.aborted)
        assert set(self.rig.aborted[len(aborted) :]) <= over

    @rule(pick=picks, in_order=st.booleans())
    @precondition(lambda self: any(lease.conn not in self.capacity for lease in self.held))
    def rotate_while_one_is_on_its_way_back(self, pick: int, in_order: bool) -> None:
        """Its holder has seen that it is young, and has not appended it yet. It is never lent again."""
        alone = [lease for lease in self.held if lease.conn not in self.capacity]
        lease = alone[pick % len(alone)]
        assert lease.conn is not None
        self.rotate(30.0)
        if lease not in self.held:  # the rotation has served a waiter, which was given nothing of it
            return
        self.held.remove(lease)
        lease.connection.idle_since = self.rig.now
        self.rig.pool._kept.append(lease)
        if not in_order and not self.waiting and not self.stopped and self.used() < self.size:
            self.rig.pool.give_back(fresh := self.rig.pool.acquire(1.0), reusable=False)
            assert fresh.conn is not lease.conn
        self.rig.pool.view()
        assert lease.conn in self.rig.closed
        self.ended.append(lease)
        self.serve()

    @rule(seconds=st.sampled_from([1.0, 20.0, 59.0]))
    def time_passes(self, seconds: float) -> None:
        self.rig.now += seconds

    @rule()
    def housekeeping(self) -> None:
        aborted = [*self.rig.aborted]
        self.rig.pool.tend(self.rig.now)
        self.what_has_drained_is_broken_off(aborted)
        for conn, since in self.idle[:]:
            if self.rig.now - since >= IDLE_TIMEOUT_S or self.rig.now >= self.expires_at[conn]:
                self.idle.remove((conn, since))
                assert conn in self.rig.closed
        for _ in range((len(self.idle) - MAX_IDLE + 1) // 2):
            self.evict()

    @rule()
    @precondition(lambda self: not self.waiting)  # they would not exist in the child
    def wake_up_as_a_forked_child(self) -> None:
        """failures.md 26."""
        closed, inherited = len(self.rig.closed), [conn for conn, _ in self.idle]
        inherited += [lease.conn for lease in (*self.held, *self.one_off) if lease.conn is not None]
        self.rig.pool._pid = -1
        self.rig.pool._lock.acquire()  # held by a thread that does not exist any more
        self.rig.pool.view()
        assert len(self.rig.closed) == closed, "a connection of the parent was spoken on"
        assert set(inherited) <= set(self.rig.discarded)
        self.ended += self.held + self.one_off
        self.held, self.one_off, self.idle, self.busy = [], [], [], []

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
            assert all(self.rig.aborted.count(conn) == 1 for conn in self.busy if conn not in self.gone_by)
            while self.waiting:
                assert isinstance(self.waiting.pop().outcome(), LeaseClosed)

    def idle_is_closed(self) -> None:
        assert all(conn in self.rig.closed for conn, _ in self.idle)
        self.idle.clear()

    @invariant()
    def housekeeping_finds_nothing_in_a_pool_at_rest(self) -> None:
        """First of all: what comes after it looks at the pool."""
        pool = self.rig.pool
        assert pool.is_awake or pool.is_at_rest, "it is not looked at unless it says so"
        if pool.is_at_rest:
            before = self.rig.counters.copy()
            assert pool.tend() == 0
            assert copied(self.rig.counters.acquires) == before.acquires
            assert copied(self.rig.counters.closed) == before.closed
            assert self.rig.counters.wait.counts == before.wait.counts
            assert not pool.is_awake, "the next round of housekeeping passes it over"
            assert [*self.held, *self.one_off, *self.idle, *self.waiting] == []

    @invariant()
    def the_pool_agrees(self) -> None:
        view = self.rig.pool.view()
        assert (view.inuse, view.idle, view.waiting) == (self.used(), len(self.idle), len(self.waiting))
        assert (view.one_off, view.max_connections) == (len(self.one_off), self.size)

    @invariant()
    def no_more_connections_than_the_largest_size_since_the_oldest_lease(self) -> None:
        since = min(
            (self.size_when_taken[id(lease)] for lease in self.held), default=len(self.past_sizes) - 1
        )
        assert self.used() + len(self.idle) <= max(self.past_sizes[since:])

    @invariant()
    def nobody_waits_while_a_slot_is_free(self) -> None:
        assert not self.waiting or self.used() >= self.size
        assert not any(self.free_places(caller.who) for caller in self.waiting if not caller.fresh)

    @invariant()
    def no_connection_is_in_two_places(self) -> None:
        alone = [lease.conn for lease in (*self.held, *self.one_off) if lease.conn not in self.capacity]
        conns = alone + self.busy + [conn for conn, _ in self.idle]
        assert len(conns) == len(set(conns))
        assert len(self.rig.closed) == len(set(self.rig.closed))

    @invariant()
    def every_acquire_and_every_close_is_counted(self) -> None:
        # Of a lease that had its connection for itself and was lost, nothing is left to close.
        assert sum(self.rig.counters.closed.values()) == len(self.rig.closed) + self.lost

    def teardown(self) -> None:
        self.rig.pool.stop()
        for caller in self.waiting:
            caller.outcome()


class OneOffMachine(LeaseMachine):
    """The same where nobody waits: one-off connections, counted apart."""

    when_full = "new"


def with_parking(machine: ParkingMachine) -> None:
    """Have calls take and give back as the short way does, wherever that may be done.

    What is given back is nobody's: its holder forgets it, and its token.
    """
    pool = machine.rig.pool
    acquire, give_back = pool.acquire, pool.give_back

    def taken(timeout_s: float, **wishes: Any) -> Lease[Conn]:
        is_plain = not (wishes.get("fresh") or wishes.get("own_only") or wishes.get("owner"))
        return (pool.unpark(machine.rig.now) if is_plain else None) or acquire(timeout_s, **wishes)

    def given_back(lease: Lease[Conn], *, reusable: bool, reason: Any = "error") -> None:
        if reusable and any(lease is one for one in machine.held_alone):
            machine.held_alone.remove(lease)
            machine.tokens = [token for token in machine.tokens if token is not lease.token]
            pool.park([lease], machine.rig.now)
        else:
            give_back(lease, reusable=reusable, reason=reason)

    pool.acquire, pool.give_back = taken, given_back  # type: ignore[method-assign]


class ParkingMachine(LeaseMachine):
    """The same, with calls that go the short way among the others."""

    def __init__(self) -> None:
        super().__init__()
        self.held_alone: list[Lease[Conn]] = []
        with_parking(self)

    def leased(self, lease: Lease[Conn], *, fresh: bool, who: Person | None) -> None:
        super().leased(lease, fresh=fresh, who=who)
        self.tokens = [token for token in self.tokens if token is not lease.token]
        self.tokens.append(lease.token)

    def give_back_one(self, lease: Lease[Conn], *, reusable: bool, lock_held: bool) -> None:
        if lease.conn not in self.capacity and lease.conn not in self.owner_of and not lock_held:
            self.held_alone.append(lease)
        super().give_back_one(lease, reusable=reusable, lock_held=lock_held)
        self.ended = [one for one in self.ended if one.token is None]


class SharedParkingMachine(ParkingMachine):
    """The same, in the company of connections with several places."""

    @rule(places=st.sampled_from([None, 1, 2, 3, 4]))
    def what_is_dialled_from_now_on(self, places: int | None) -> None:
        self.capacity_of_new = places


class SharedMachine(LeaseMachine):
    """The same over connections with up to four places, among others that have one."""

    @rule(places=st.sampled_from([None, 1, 2, 3, 4]))
    def what_is_dialled_from_now_on(self, places: int | None) -> None:
        self.capacity_of_new = places

    @rule(pick=picks, places=st.integers(0, 4))
    @precondition(lambda self: self.busy)
    def the_peer_changes_how_many_there_may_be(self, pick: int, places: int) -> None:
        conn = self.busy[pick % len(self.busy)]
        if conn.alive:
            self.rig.pool.share(next(lease for lease in self.held if lease.conn is conn), places)
            self.capacity[conn] = places
            self.serve()

    @rule(pick=picks)
    @precondition(lambda self: self.busy and not self.waiting)
    def peer_hangs_up_on_several(self, pick: int) -> None:
        self.busy[pick % len(self.busy)].alive = False

    @invariant()
    def no_more_leases_than_places_when_they_were_lent(self) -> None:
        assert all(self.on(conn) <= 4 for conn in self.busy)
        assert all(self.on(conn) for conn in self.busy)


class SharedOneOffMachine(SharedMachine):
    """The same where nobody waits."""

    when_full = "new"


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestOneOffMachine = OneOffMachine.TestCase
TestOneOffMachine.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
TestParkingMachine = ParkingMachine.TestCase
TestParkingMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestSharedParkingMachine = SharedParkingMachine.TestCase
TestSharedParkingMachine.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
TestSharedMachine = SharedMachine.TestCase
TestSharedMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestSharedOneOffMachine = SharedOneOffMachine.TestCase
TestSharedOneOffMachine.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
