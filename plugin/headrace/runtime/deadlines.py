"""The deadline thread: an attempt ends in time whatever its peer does.

A socket's own limit is a limit on silence. A peer that sends a byte now and then, or takes one, is never silent
(failures.md 27). So every attempt is written into one table with the instant at which its time is up, and the thread
`headrace-deadline` shuts the sockets of late attempts.

**What is owned.** `deadlines` is the one table of the process. `Deadlines.table` has no lock: a `pop` decides who ends
an attempt. `Deadlines._lock` guards which thread looks at the table and what it was roused for. `_cut` and `_graces`
belong to that thread.

**Who ends an attempt.** The owner and the thread both end an attempt by a `pop`, and only one of them gets it:
`dict.pop` is one atomic step. An owner that finds the attempt gone was cut off. What that owner holds is not an
answer, however whole it looks: when we shut the socket, a body that ends with its connection ends as usual, and so
does a head that was broken off. A thread that finds the attempt gone does nothing. Between the pop and the shutdown
the connection may have been given back and leased anew; the lease pool sees that (`LeasePool.abort`).

**A later end.** Once a head has come that is not retried, the owner takes its attempt out and writes it in again with
the end of the call, which bounds the body. It takes the attempt out first. To write over an entry that the thread has
just taken would make an answer of what was cut off.

**What it costs.** A call pays for two stores, two comparisons and two pops: no lock, no call of Python code, no
wake-up. The thread sleeps until the first end that it knows of. Usually that attempt is over by then, and the thread
looks again: with limits of four seconds, every four seconds. `wake_at` is the instant of the next look, less the
slack. It is infinite during a look: an attempt with an earlier end rouses the thread.

**Late looks.** A thread that wakes late has not watched: the process was stopped or throttled, or C code held the GIL.
The owners have slept as long. What has arrived may not be read yet, or it is read and its attempt is still in the
table. So a late look cuts no attempt that is overdue: it gives each a grace of `GRACE_S`. So do the looks that follow,
`MOST_GRACES` in all, since every thread wants to run then, and a busy machine has no processor for some of them for
long. A look in time gives one grace, where something lies unread. An attempt that is cut after a grace is `excused`:
its end is held against no upstream (failures.md 67).

**Without the GIL** this holds by the table's own lock, which CPython takes for a store, a pop and a copy. A store
after the copy of a look is followed by a read of `wake_at`, which was made infinite before that copy. A store before
the copy is in the copy.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from headrace.clock import monotonic
from headrace.observe.isolation import is_ending, stumbled, undisturbed
from headrace.policy.frozen import slotted
from headrace.runtime import process
from headrace.runtime.threads import AutoResetEvent, Life, life
from headrace.transport.attempt import Attempt
from headrace.transport.standstill import GRACE_S, LATE_S, MOST_GRACES

SLACK_S = 0.005
"""Seconds past its end that an attempt is cut. A silent peer is the business of the socket's own limit, which ends at
the same instant and raises the library's own error. Ends within this time are taken together when many attempts
hang."""

AGAIN_S = 0.01
LONGEST_AGAIN_S = 0.2
"""Seconds between looks at attempts that were cut and go on: they had no connection yet that could be shut."""

_NEVER = float("inf")

_log = logging.getLogger("headrace")


@slotted
class _Grace:
    """More time for an overdue attempt.

    Attributes:
        instead_of: The end of the attempt, as the table has it.
        ends_at: When the grace is over.
        nth: How many graces in a row that makes; >= 1.
        is_late: A look that came late gave one of these.
    """

    instead_of: float
    ends_at: float
    nth: int
    is_late: bool


class Deadlines:
    """The attempts under way and when the time of each is up. Thread-safe.

    Attributes:
        table: Each attempt with its end, monotonic seconds. What takes an entry out has ended the attempt.
        wake_at: The thread meets ends from here on by itself, at its next look. With an earlier end, call `rouse`.
        looked_at: When the thread last looked, on the clock; None: never.
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
        self._cut: list[Attempt] = []  # the thread's: those that go on, as far as it knows
        self._again_s = AGAIN_S
        self._graces: dict[Attempt, _Grace] = {}  # the thread's
        self._begin()

    def _begin(self) -> None:
        self._thread: threading.Thread | None = None
        self.looked_at: float | None = None
        self._ending = False
        self._gate = AutoResetEvent()
        self._lock = threading.RLock()  # while the thread is started, a finalizer may make a call
        self._is_told = False  # that no thread could be started
        self._asked_at = _NEVER  # the first end that the thread was roused for and that is yet to come

    def rouse(self, ends_at: float) -> None:
        """Have the thread look at the table by *ends_at*; start it if there is none. Blocks shortly for a start."""
        new: threading.Thread | None = None
        with self._lock:
            self._asked_at = min(self._asked_at, ends_at)
            if self._thread is None or not self._thread.is_alive():
                self._ending = False
                # A thread that was made before, and is not known to be alive yet, wakes and sees that it was replaced.
                self._gate.set()
                self._gate = gate = AutoResetEvent()
                self._thread = new = threading.Thread(
                    target=self._run, args=(gate,), name="headrace-deadline", daemon=True
                )
        if new is None:
            self._gate.set()
        else:
            self._start(new)

    def _start(self, thread: threading.Thread) -> None:
        # Without the lock: `undisturbed` starts it from another thread, where a finalizer may make a call.
        try:
            undisturbed(thread.start)
        except RuntimeError as error:  # no thread can be started
            with self._lock:
                if self._thread is thread:
                    self._thread = None
                is_told, self._is_told = self._is_told, True
            if not (is_told or is_ending(error)):
                _log.warning("no deadline thread: only silence ends an attempt", exc_info=True)

    def life(self) -> Life:
        """The sign of life of the thread. It runs from the first attempt on, and sleeps until one may be late."""
        thread = self._thread
        is_alive = thread is not None and thread.is_alive()
        return life(is_alive=is_alive, looked_at=self.looked_at, now=self._clock())

    def stop(self) -> None:
        """End the thread as soon as nothing is in flight; the next attempt makes a new one. Blocks for 1 s at most."""
        thread = self._thread
        if thread is not None:
            self._ending = True
            self._gate.set()
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(1.0)

    def forget_inherited(self) -> None:
        """In a forked child: the thread is the parent's.

        The table stays. The attempt of the thread that forked is in it. The others do no harm: the child has given
        up their connections.
        """
        self.wake_at = _NEVER
        self._begin()

    def cut_late(self, now: float, late_s: float = 0.0) -> float:
        """Cut the attempts whose time is up. Blocks for locks of lease pools only.

        Args:
            late_s: How long after its time this look comes; negative when the thread was roused before.

        Returns:
            When to look again, on the clock.
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
            if cut_at <= now and self._gets_grace(attempt, grace, late_s):
                cut_at = now + GRACE_S
                nth, was_late = (1, False) if grace is None else (grace.nth + 1, grace.is_late)
                self._graces[attempt] = _Grace(ends_at, cut_at, nth, was_late or late_s > LATE_S)
            if cut_at > now:
                next_at = min(next_at, cut_at)
            else:
                self._end(attempt)
        if self._cut:
            self._cut = [attempt for attempt in self._cut if _break_off(attempt)]
        if self._cut:
            next_at = min(next_at, now + self._again_s)
            self._again_s = min(2 * self._again_s, LONGEST_AGAIN_S)
        return next_at

    def _gets_grace(self, attempt: Attempt, grace: _Grace | None, late_s: float) -> bool:
        """Whether *attempt*, which is overdue, gets a grace, or another one."""
        if late_s > LATE_S or (grace is not None and grace.is_late):
            # Whatever the socket says: the owner may have read the answer and come no further.
            return grace is None or grace.nth < MOST_GRACES
        return grace is None and _has_arrived(attempt)

    def _end(self, attempt: Attempt) -> None:
        """Take *attempt* out, unless its owner was faster."""
        # Before the pop: an owner that finds itself cut off looks at this.
        attempt.excused = attempt in self._graces
        if self.table.pop(attempt, None) is not None:
            attempt.cut = True  # before the shutdown: its owner must not take another lease next
            self._cut.append(attempt)
            self._again_s = AGAIN_S

    def _run(self, gate: AutoResetEvent) -> None:
        try:
            self._keep_looking(gate)
        except Exception as error:
            stumbled("go on with the deadline thread, so that the next attempt starts another", error)
        finally:
            if self._thread is threading.current_thread():
                self.wake_at = _NEVER  # the next attempt rouses, and so starts, a thread

    def _keep_looking(self, gate: AutoResetEvent) -> None:
        me = threading.current_thread()
        planned_at = _NEVER
        while self._thread is me:
            self.wake_at = _NEVER  # before the look: an attempt that is written from now on rouses the thread
            self.looked_at = now = self._clock()
            next_at = now + LONGEST_AGAIN_S
            try:
                # A thread that was roused for an end and then stopped is late, too.
                next_at = self.cut_late(now, now - min(planned_at, self._asked_at + SLACK_S))
            except Exception as error:
                stumbled("look for attempts whose time is up", error)
            with self._lock:
                # The attempt that it was roused for may be over already. Its end is kept all the same: else the next
                # call would rouse the thread again, and so would every call.
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
            # The next look meets later ends in time. Without the slack, each call that begins within 5 ms of the
            # first one would rouse the thread: a dozen calls on a fast machine.
            self.wake_at = next_at - SLACK_S
            gate.wait(max(next_at - self._clock(), 0.0))

    def __repr__(self) -> str:
        return f"<Deadlines: {len(self.table)} in flight, {len(self._cut)} cut and not over>"


def _has_arrived(attempt: Attempt) -> bool:
    """Whether something has come for *attempt* that its owner has not read yet. Never raises."""
    try:
        return bool(attempt.pool.has_arrived(attempt.token))
    except Exception as error:
        stumbled("look whether an attempt whose time is up has an answer", error)
        return False


def _break_off(attempt: Attempt) -> bool:
    """Shut what *attempt* holds; False when it holds nothing any more, or cannot be shut. Never raises."""
    token = attempt.token
    try:
        return token is not None and attempt.pool.leases.abort(token)
    except Exception as error:
        stumbled("cut off an attempt whose time is up", error)
        return False


deadlines = Deadlines()
"""Those of this process."""

process.after_fork(deadlines.forget_inherited)
