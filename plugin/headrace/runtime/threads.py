"""The threads of one instance: how each is started, guarded and ended, and the one that keeps house.

    headrace-housekeeping   here
    headrace-watch          `watch.watcher`: ends in a way of its own, since what it calls may end it
    headrace-warmup         `warmup`: lives while there are connections to make
    headrace-heartbeat      `heartbeat`: lives for one round
    headrace-foretell       `foretelling`: lives while there are handshakes to try
    headrace-deadline       `deadlines`: belongs to the process, not to an instance
    headrace-resolve        `transport.dial.resolve`: one for each name that is being looked up; the process's, too

`ServiceThread` owns one thread and has no lock: one thread at a time starts and stops it. `AutoResetEvent` is a lock,
and guards nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from headrace.clock import monotonic
from headrace.observe.events import ThreadLingers
from headrace.observe.isolation import each, stumbled, undisturbed
from headrace.observe.logs import emit

TICK_S = 0.5
"""Seconds between rounds: half the smallest idle timeout that makes sense, and the lag of multiprocess metrics."""

Life = dict[str, bool | float | None]
"""Whether a thread is alive, and how many seconds ago it last looked; fit for JSON."""


def life(*, is_alive: bool, looked_at: float | None, now: float) -> Life:
    """The sign of life of one thread: `alive`, and `looked_ago` in seconds, None before its first look."""
    return {"alive": is_alive, "looked_ago": None if looked_at is None else max(0.0, now - looked_at)}


class AutoResetEvent:
    """An event that one thread waits for and others set. A `wait` that sees it set resets it.

    `threading.Event` will not do. Its lock is taken by Python code (`Condition.__enter__`), so an interrupt during
    `set` or `wait` may leave it locked for good, and the next `close()` would hang; and a finalizer that sets it may
    run while its own thread does the same. This one is a single lock, taken and given in C.

    Attributes:
        was_set: Ever, whether or not a `wait` saw it.
    """

    __slots__ = ("_gate", "was_set")

    def __init__(self) -> None:
        self.was_set = False
        self._gate = threading.Lock()
        self._gate.acquire()

    @property
    def is_set(self) -> bool:
        """Whether the next `wait` returns at once."""
        return not self._gate.locked()

    def set(self) -> None:
        """Let the present `wait` return, or else the next one. Any thread may call this, and a finalizer."""
        self.was_set = True
        try:
            self._gate.release()
        except RuntimeError:
            pass  # it is set already

    def wait(self, timeout_s: float) -> bool:
        """Whether it is set within *timeout_s*, or was set since the last `wait`. Blocks."""
        return self._gate.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX))


class ServiceThread:
    """One daemon thread called *name*, which may be ended and started again. What its body raises is logged once.

    Each start has an event of its own that ends it. An interrupt during a start may leave a thread behind; that
    thread then never takes the next start for its own. One thread at a time calls `start` and `stop`.

    A thread that outlives the patience of `stop` is not forgotten: `is_alive` and `life` tell of it until it ends, and
    who asks `is_alive` before a start makes no second one beside it.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = monotonic) -> None:
        self.name = name
        self._clock = clock
        self._ended = AutoResetEvent()
        self._thread: threading.Thread | None = None
        self._told_of: threading.Thread | None = None
        self._looked_at: float | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, body: Callable[[AutoResetEvent], object]) -> None:
        """Run *body* with the event that ends it.

        Raises:
            RuntimeError: No thread can be started; none is left behind.
        """
        self._ended = ended = AutoResetEvent()
        self._thread = threading.Thread(target=self._run, args=(body, ended), name=self.name, daemon=True)
        try:
            undisturbed(self._thread.start)
        except BaseException:
            ended.set()  # an interrupt may come when the thread runs already
            raise

    def stop(self, *, timeout_s: float | None = None) -> None:
        """End it. Blocks until it has ended, or for *timeout_s*, and then says once that it lingers. Idempotent."""
        self._ended.set()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        try:
            thread.join(timeout_s)
        except RuntimeError:
            pass  # it was never started, or that was interrupted: it ends by itself
        if not thread.is_alive():
            self._thread = None
        elif thread is not self._told_of:
            self._told_of = thread
            emit(ThreadLingers(thread_name=self.name, waited_s=timeout_s or 0.0))

    def looked(self) -> None:
        """Note, for the sign of life, that a round begins."""
        self._looked_at = self._clock()

    def life(self) -> Life:
        """Its sign of life."""
        return life(is_alive=self.is_alive, looked_at=self._looked_at, now=self._clock())

    def _run(self, body: Callable[[AutoResetEvent], object], ended: AutoResetEvent) -> None:
        if ended.was_set:
            return
        self.looked()
        try:
            body(ended)
        except Exception as error:
            stumbled(f"go on with the thread {self.name}", error)


class Housekeeping:
    """Runs *tasks* every TICK_S on the daemon thread `headrace-housekeeping`.

    A task that raises is logged once and runs again next time. One thread at a time calls `start` and `stop`: the
    owner's lifecycle lock sees to that.
    """

    def __init__(self, tasks: Sequence[Callable[[float], None]]) -> None:
        self._tasks = tuple(tasks)
        self._thread = ServiceThread("headrace-housekeeping")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start(self._run)

    def stop(self) -> None:
        """End the thread. Blocks until the round under way is over. Idempotent."""
        self._thread.stop()

    def life(self) -> Life:
        """The sign of life of the thread."""
        return self._thread.life()

    def _run(self, ended: AutoResetEvent) -> None:
        while True:  # the first round comes at once: there may be connections to keep warm
            self._thread.looked()
            now = monotonic()
            each(self._tasks, lambda task: task(now), doing="keep house")  # noqa: B023 - done with at once
            if ended.wait(TICK_S):
                return
