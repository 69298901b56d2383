"""The threads of one instance: how each is started, guarded and ended, and the one that keeps house.

headrace-housekeeping   here
headrace-watch          `watch.watcher`: has its own way to end, from within what it calls, too
headrace-warmup         `warmup`: lives while there are connections to make
headrace-heartbeat      `heartbeat`: lives for one round
headrace-deadline       `deadlines`: the process's, not an instance's
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from headrace.clock import monotonic
from headrace.observe.isolation import each, stumbled, undisturbed

TICK_S = 0.5
"""Seconds between rounds: half the smallest idle timeout that makes sense, and the lag of multiprocess metrics."""

Life = dict[str, bool | float | None]
"""Whether a thread is alive, and how many seconds ago it last looked; fit for JSON."""


def life(*, is_alive: bool, looked_at: float | None, now: float) -> Life:
    """The sign of life of one thread: `alive`, and `looked_ago` in seconds, None before its first look."""
    return {"alive": is_alive, "looked_ago": None if looked_at is None else max(0.0, now - looked_at)}


class Bell:
    """What one thread waits for and others ring; rung before, or often, it is heard once.

    Not `threading.Event`, whose lock an interrupt amid `set` or `wait` may leave locked for good
    (`Condition.__enter__` is Python code): the next `close()` would hang. This is a single lock, taken and given in C.

    Attributes:
        has_rung: Ever, heard or not.
    """

    __slots__ = ("_gate", "has_rung")

    def __init__(self) -> None:
        self.has_rung = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def ring(self) -> None:
        """Have the one who waits, or waits next, go on. Any thread, a finalizer too."""
        self.has_rung = True
        try:
            self._gate.release()
        except RuntimeError:
            pass  # it has rung already

    def wait(self, timeout_s: float) -> bool:
        """Whether it rings within *timeout_s*, or has rung since the last `wait`. Blocks."""
        return self._gate.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX))


class ServiceThread:
    """One daemon thread called *name*, which may be ended and started again. What its body raises is logged once.

    Each start has an end of its own: a thread that an interrupt amid its start has left behind never takes the
    next start for its own. `start` and `stop` are called by one thread at a time.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = monotonic) -> None:
        self.name = name
        self._clock = clock
        self._ended = Bell()
        self._thread: threading.Thread | None = None
        self._looked_at: float | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, body: Callable[[Bell], object]) -> None:
        """Run *body* with the bell that ends it. RuntimeError when there is no thread to be had; none is left then."""
        self._ended = ended = Bell()
        self._thread = threading.Thread(target=self._run, args=(body, ended), name=self.name, daemon=True)
        try:
            undisturbed(self._thread.start)
        except BaseException:
            ended.ring()  # an interrupt may come when it runs already
            raise

    def stop(self, *, timeout_s: float | None = None) -> None:
        """End it. Blocks until it has ended, or for *timeout_s*. Idempotent."""
        self._ended.ring()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            try:
                thread.join(timeout_s)
            except RuntimeError:
                pass  # it was never started, or that was interrupted: it ends by itself
        self._thread = None

    def looked(self) -> None:
        """It begins a round: for its sign of life."""
        self._looked_at = self._clock()

    def life(self) -> Life:
        """Its sign of life."""
        return life(is_alive=self.is_alive, looked_at=self._looked_at, now=self._clock())

    def _run(self, body: Callable[[Bell], object], ended: Bell) -> None:
        if ended.has_rung:
            return
        self.looked()
        try:
            body(ended)
        except Exception as error:
            stumbled(f"go on with the thread {self.name}", error)


class Housekeeping:
    """Runs *tasks* every TICK_S on the daemon thread `headrace-housekeeping`.

    A task that raises is logged once and runs again next time. `start` and `stop` are
    called by one thread at a time (the owner's lifecycle lock).
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

    def _run(self, ended: Bell) -> None:
        while True:  # the first round at once: connections to be kept warm
            self._thread.looked()
            now = monotonic()
            each(self._tasks, lambda task: task(now), doing="keep house")  # noqa: B023 - done with at once
            if ended.wait(TICK_S):
                return
