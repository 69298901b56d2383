"""The deadline thread: an attempt ends in time whatever its peer does.

A socket's own limit is a limit on silence: a peer that sends a byte now and then, or takes one,
is never silent (failures.md 27). So every attempt is written into one table with the instant at
which its time is up, and the thread `headrace-deadline` shuts the sockets of those that are late.

**Who ends an attempt.** Its owner and the thread both end it by taking it out of the table,
which only one of them can: `dict.pop` is one atomic step. An owner who finds it gone was
cut off, and what he holds is not an answer, however whole it looks: a body that ends with
the connection, or a head broken off, ends the same way when we shut the socket. A thread
that finds it gone does nothing. And between that and the shutdown the connection may have been
given back and leased anew: that is the lease pool's to see (`LeasePool.abort`).

**When it is put off.** Once a head has come that is not retried, its owner takes his attempt out and writes
it in again with the end of the call: the body is bounded by that. Out first: to write over an entry that the thread has
just taken would make an answer of what was cut off.

**What it costs.** A call pays for two stores, two comparisons and two pops: no lock, no call of
Python code, no wake-up. The thread sleeps until the first end that it knows of, even if
that attempt is long over (usually it is by the time the thread is awake), and then looks again:
with limits of four seconds, every four seconds. `wake_at` is when that will be, less the slack, and infinite
while it is looking: whoever registers an earlier end rouses it.

**Whose time it was.** A thread that wakes late (the process was stopped or throttled, somebody's C code held the
GIL) has not watched, and the owners have slept as long: what has arrived may not be read yet, or be read and not
yet taken out of the table. So a late look cuts nobody who is overdue: it gives each `GRACE_S`, and so do the looks
that follow, `MOST_GRACES` in all, for everybody runs at once then, on a busy machine without a processor for long. A
look in time gives it once, where something lies there unread. Who is cut after a grace is `excused`: that end is held
against nobody (failures.md 67).

**Without the GIL** this holds by the table's own lock, which CPython takes for a store, a pop and a copy: who
stores after the copy of a look sees the infinite `wake_at` that was set before that copy; who stores before is in it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from headrace.clock import monotonic
from headrace.observe.isolation import stumbled, undisturbed
from headrace.runtime import process
from headrace.runtime.threads import Life, life
from headrace.transport.attempt import Attempt
from headrace.transport.standstill import GRACE_S, LATE_S, MOST_GRACES

SLACK_S = 0.005
"""Seconds past its end that an attempt is cut: a silent peer is the business of the socket's own
limit, which ends at the same instant and says so in the library's words. Also how many ends are
taken together when many attempts hang."""

AGAIN_S = 0.01
LONGEST_AGAIN_S = 0.2
"""Seconds between looks at attempts that were cut and have not ended: there was no connection to shut yet."""

_NEVER = float("inf")

_log = logging.getLogger("headrace")


@dataclass(slots=True)
class _Grace:
    """What an overdue attempt was given: the *nth* on end, until *ends_at*, where *instead_of* was its end.

    *is_late*: of them, one was given by a look that came late.
    """

    instead_of: float
    ends_at: float
    nth: int
    is_late: bool


class Deadlines:
    """The attempts under way and when the time of each is up. Thread-safe.

    Attributes:
        table: Each attempt with its end, monotonic seconds. Whoever takes an entry out has ended the attempt.
        wake_at: Ends from here on the thread meets by itself, when it looks at the table next; with an earlier
            end, call `rouse`.
        looked_at: When it last looked, on the clock; None: never.
    """

    __slots__ = (
        "_again_s",
        "_asked_at",
        "_clock",
        "_cut",
        "_ending",
        "_gate",
        "_graces",
        "_is_told",
        "_lock",
        "_thread",
        "looked_at",
        "table",
        "wake_at",
    )

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.table: dict[Attempt, float] = {}
        self.wake_at = _NEVER
        self._cut: list[Attempt] = []  # the thread's: not over yet, as far as it knows
        self._again_s = AGAIN_S
        self._graces: dict[Attempt, _Grace] = {}  # the thread's
        self._begin()

    def _begin(self) -> None:
        self._thread: threading.Thread | None = None
        self.looked_at: float | None = None
        self._ending = False
        self._gate = _shut_gate()
        self._lock = threading.RLock()  # a finalizer may make a call amid the start of the thread
        self._is_told = False  # of a thread that was not to be had
        self._asked_at = _NEVER  # the first end that the thread was roused for and that is yet to come

    def rouse(self, ends_at: float) -> None:
        """Have the thread look at the table by *ends_at*; start it if there is none. Blocks shortly for a start."""
        new: threading.Thread | None = None
        with self._lock:
            self._asked_at = min(self._asked_at, ends_at)
            if self._thread is None or not self._thread.is_alive():
                self._ending = False
                # One that was made and is not known to be alive yet finds out that it is not the one, if its gate
                # is opened.
                _open(self._gate)
                self._gate = gate = _shut_gate()
                self._thread = new = threading.Thread(
                    target=self._run, args=(gate,), name="headrace-deadline", daemon=True
                )
        if new is None:
            _open(self._gate)
        else:
            self._start(new)

    def _start(self, thread: threading.Thread) -> None:
        # Without the lock: a finalizer may make a call in the thread that `undisturbed` has do it.
        try:
            undisturbed(thread.start)
        except RuntimeError:  # no thread to be had, or the interpreter is ending
            with self._lock:
                if self._thread is thread:
                    self._thread = None
                is_told, self._is_told = self._is_told, True
            if not is_told:
                _log.warning("no deadline thread: only silence ends an attempt", exc_info=True)

    def life(self) -> Life:
        """The sign of life of the thread, which runs from the first attempt on and sleeps until one may be late."""
        thread = self._thread
        is_alive = thread is not None and thread.is_alive()
        return life(is_alive=is_alive, looked_at=self.looked_at, now=self._clock())

    def stop(self) -> None:
        """End the thread as soon as nothing is in flight; the next attempt makes a new one. Blocks for 1 s at most."""
        thread = self._thread
        if thread is not None:
            self._ending = True
            _open(self._gate)
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(1.0)

    def forget_inherited(self) -> None:
        """In a forked child: the thread is the parent's.

        The table stays. The attempt of the thread that forked is in it, and no other can do harm: the child
        has given up the connections.
        """
        self.wake_at = _NEVER
        self._begin()

    def cut_late(self, now: float, late_s: float = 0.0) -> float:
        """Cut the attempts whose time is up; when to look again, on the clock. Blocks for locks of lease pools only.

        Args:
            late_s: How long after its time this look comes; negative where it was roused before.
        """
        next_at = _NEVER
        table = self.table.copy()
        if self._graces:
            self._graces = {
                one: grace for one, grace in self._graces.items() if table.get(one) == grace.instead_of
            }
        for attempt, ends_at in table.items():
            grace = self._graces.get(attempt)
            cut_at = ends_at + SLACK_S if grace is None else grace.ends_at
            if cut_at <= now and self._is_let_go_on(attempt, grace, late_s):
                cut_at = now + GRACE_S
                nth, was_late = (1, False) if grace is None else (grace.nth + 1, grace.is_late)
                self._graces[attempt] = _Grace(ends_at, cut_at, nth, was_late or late_s > LATE_S)
            if cut_at > now:
                next_at = min(next_at, cut_at)
            else:
                self._end(attempt)
        if self._cut:
            self._cut = [attempt for attempt in self._cut if _is_broken_off(attempt)]
        if self._cut:
            next_at = min(next_at, now + self._again_s)
            self._again_s = min(2 * self._again_s, LONGEST_AGAIN_S)
        return next_at

    def _is_let_go_on(self, attempt: Attempt, grace: _Grace | None, late_s: float) -> bool:
        """Whether *attempt*, which is overdue, gets a grace, or another one."""
        if late_s > LATE_S or (grace is not None and grace.is_late):
            # Whatever the socket says: its owner may have read it and not come any further.
            return grace is None or grace.nth < MOST_GRACES
        return grace is None and _has_arrived(attempt)

    def _end(self, attempt: Attempt) -> None:
        """Take *attempt* out, unless its owner was faster."""
        # Before the pop: an owner who finds that he was cut off looks at it.
        attempt.excused = attempt in self._graces
        if self.table.pop(attempt, None) is not None:
            attempt.cut = True  # before the shutdown: what it does next must not take another lease
            self._cut.append(attempt)
            self._again_s = AGAIN_S

    def _run(self, gate: threading.Lock) -> None:
        try:
            self._look_on(gate)
        except Exception as error:
            stumbled("go on with the deadline thread, so that the next attempt starts another", error)
        finally:
            if self._thread is threading.current_thread():
                self.wake_at = _NEVER  # whoever registers from now on rouses, and so starts, one

    def _look_on(self, gate: threading.Lock) -> None:
        me = threading.current_thread()
        planned_at = _NEVER
        while self._thread is me:
            self.wake_at = _NEVER  # before it looks: who registers from now on rouses it
            self.looked_at = now = self._clock()
            next_at = now + LONGEST_AGAIN_S
            try:
                # Or it was roused for an end, and stopped before it got here: that is late, too.
                next_at = self.cut_late(now, now - min(planned_at, self._asked_at + SLACK_S))
            except Exception as error:
                stumbled("look for attempts whose time is up", error)
            with self._lock:
                # An attempt that it was roused for may be over already. To forget its end would mean to be roused
                # by the next one, and so by every call.
                asked_at = self._asked_at + SLACK_S
                if asked_at > self._clock():
                    next_at = min(next_at, asked_at)
                else:
                    self._asked_at = _NEVER
                if self._thread is not me:
                    return
                if self._ending:
                    if not self.table and not self._cut:
                        self._thread = None
                        return
                    next_at = min(next_at, self._clock() + AGAIN_S)
            planned_at = next_at
            # An end that is later than this is met in time by that look. Without the slack each call that began
            # within 5 ms of the first one would rouse the thread: a dozen on a fast machine.
            self.wake_at = next_at - SLACK_S
            if next_at == _NEVER:
                gate.acquire()
            else:
                gate.acquire(timeout=min(max(next_at - self._clock(), 0.0), threading.TIMEOUT_MAX))

    def __repr__(self) -> str:
        return f"<Deadlines: {len(self.table)} in flight, {len(self._cut)} cut and not over>"


def _has_arrived(attempt: Attempt) -> bool:
    """Whether something has come for *attempt* that its owner has not read yet. Never raises."""
    try:
        return bool(attempt.pool.has_arrived(attempt.token))
    except Exception as error:
        stumbled("look whether an attempt whose time is up has an answer", error)
        return False


def _is_broken_off(attempt: Attempt) -> bool:
    """Shut what *attempt* holds; False when it holds nothing any more, or cannot be shut. Never raises."""
    token = attempt.token
    try:
        return token is not None and attempt.pool.leases.abort(token)
    except Exception as error:
        stumbled("cut off an attempt whose time is up", error)
        return False


def _shut_gate() -> threading.Lock:
    # A lock as a flag that can be waited for. An Event would take a lock of its own to be set, in the middle of
    # which a finalizer could want it again.
    gate = threading.Lock()
    gate.acquire()
    return gate


def _open(gate: threading.Lock) -> None:
    try:
        gate.release()
    except RuntimeError:
        pass  # open already


deadlines = Deadlines()
"""Those of this process."""

process.after_fork(deadlines.forget_inherited)
