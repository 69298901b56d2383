"""Tells when the content of a watched file has changed. The only user of watchdog.

An event of the file system is a poke and nothing more. What decides is the digest of the content, which is read after
no poke has come for `debounce`. A poke that is missed (NFS, a renamed parent directory, a queue that overflowed) costs
at most `poll`.

What is watched is every *look-up* that resolving a path depends on: the directory and the name of each symlink on the
way, and of the file itself. Kubernetes swaps the `..data` link, two directories away from the file that the
application names.

    thread "headrace-watch"                     thread of watchdog
    ----------------------                      ------------------
    wait -> arm -> read -> judge -> changed()   event -> poke()

`Watcher` owns the watching thread. `Watcher._lock` guards what both threads touch: `_settling`, `_files`, `_lost` and
the name sets of `_armed`; and whether the watching thread ends or goes on, which it and a start have to agree on.
Nothing that blocks, and no call into watchdog, happens under it. `_armed` and `_events` belong to the watching thread.

Of watchdog only what it documents is used: its `Observer`, whatever that is on this system. It does not tell that a
watched directory was itself renamed, nor that the kernel dropped events. Both cost at most `poll`.

The module is longer than most, because no other one may import watchdog: the source of events is here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from watchdog.events import (
    DirAttribEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)

# Now, not on our thread: a process that forks while a thread imports leaves the lock of that import to its child.
try:
    from watchdog.observers import Observer
except Exception:
    Observer = None  # type: ignore[assignment]  # then only the poll is left

from headrace.clock import monotonic
from headrace.observe.events import ThreadLingers, WatchDegraded
from headrace.observe.isolation import each, is_ending, stumbled, undisturbed
from headrace.observe.logs import emit
from headrace.runtime.threads import AutoResetEvent, Life, life
from headrace.runtime.watch.fingerprint import Prints, fingerprint, lookups
from headrace.runtime.watch.settling import Settling

if TYPE_CHECKING:
    from headrace.policy.plan import ReloadPlan

logger = logging.getLogger("headrace")

ARM_ROUNDS = 5
"""How often look-ups that change while they are armed are walked again."""
STOP_PATIENCE_S = 5.0
"""Seconds that a stop waits for a `changed()` that is running."""
STUMBLE_PAUSE_S = 1.0
"""Seconds from a look that raised to the next: half of `reload.poll`. Every look may raise."""

NO_LIFE: Life = {**life(is_alive=False, looked_at=None, now=0.0), "polling": False}
"""The sign of life where there is no watcher."""

_HEARD: list[type[FileSystemEvent]] = [
    DirAttribEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]
"""All but FileOpenedEvent and FileClosedNoWriteEvent: each reading of ours would ask for the next."""
_OBSERVER_THREADS = 3
"""Threads of watchdog's observer of one directory on Linux, the platform that has the most."""


def _is_news(record: logging.LogRecord) -> bool:
    """False for what watchdog's inotify thread logs as an error when it sees too late that it was stopped."""
    return "called when the thread is inactive" not in str(record.msg)


class EventSource(Protocol):
    """Tells of events in directories by `on_event(directory, name)`; name None: the directory itself has gone."""

    def arm(self, directory: str) -> object:
        """Begin to watch *directory*. Raises OSError."""

    def disarm(self, armed: Any) -> None:
        """Stop watching what `arm` returned. Never raises for one that is gone."""

    def close(self) -> None:
        """Stop, and join the threads."""


OnEvent = Callable[[str, str | None], None]


class ObserverEvents:
    """watchdog's observer: inotify, FSEvents, kqueue or Windows' notifications. Starts its threads.

    Raises:
        OSError: The kernel has no inotify instance left.
        RuntimeError: No threads can be started.
    """

    def __init__(self, on_event: OnEvent) -> None:
        if Observer is None:
            raise OSError("watchdog has no observer for this system")
        _try_threads(_OBSERVER_THREADS)
        # Each stop may log it, in the application's log, and there is nothing wrong. The same filter is added once.
        logging.getLogger("watchdog.observers.inotify").addFilter(_is_news)
        self._on_event = on_event
        self._observer = _observer()
        try:
            self._observer.start()
        except BaseException:
            self._observer.stop()  # on Linux it has descriptors and a thread since its constructor
            raise

    def arm(self, directory: str) -> object:
        if not os.access(directory, os.R_OK) and os.path.isdir(directory):
            raise PermissionError(
                f"may not watch {directory}"
            )  # inotify's EACCES, which watchdog does not report
        return self._observer.schedule(_Handler(directory, self._on_event), directory, event_filter=_HEARD)

    def disarm(self, armed: Any) -> None:
        with contextlib.suppress(KeyError):  # it has stopped by itself
            self._observer.unschedule(armed)

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()


def _observer() -> Any:
    """An observer whose queue works, also where gevent has replaced `queue.Queue`.

    watchdog's queue is a subclass of that. It compares `maxsize` with 0, and gevent calls no limit None.
    """
    if queue.Queue.__module__ == "queue":
        return Observer()
    plain: Any = queue.Queue()

    class OverPlainQueue(Observer):  # type: ignore[misc, valid-type]  # the class depends on the system
        @property
        def event_queue(self) -> Any:
            return plain

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # gevent's, of the queue that is not used
        return OverPlainQueue()


class _Handler(FileSystemEventHandler):
    """Passes the events of one directory on; called on watchdog's thread."""

    def __init__(self, directory: str, on_event: OnEvent) -> None:
        self._directory = directory
        self._on_event = on_event

    def on_any_event(self, event: FileSystemEvent) -> None:
        for path in (event.src_path, event.dest_path):
            if path and (text := os.fsdecode(path)) != self._directory:
                self._on_event(self._directory, os.path.basename(text))
        if event.event_type == "deleted" and os.fsdecode(event.src_path) == self._directory:
            # A new one of the same name may have the same inode number.
            self._on_event(self._directory, None)


def _try_threads(number: int) -> None:
    """Raise RuntimeError unless *number* more threads can be started.

    watchdog opens its descriptors before it starts its threads, and nobody could close them if that failed.
    """
    over, started = threading.Event(), []
    try:
        for _ in range(number):
            thread = threading.Thread(target=over.wait, name="headrace-watch-trial", daemon=True)
            thread.start()
            started.append(thread)
    finally:
        over.set()
        for thread in started:
            thread.join()


class _Armed:
    """One watched directory."""

    __slots__ = ("handle", "identity", "names")

    def __init__(self, handle: object, identity: tuple[int, int]) -> None:
        self.handle = handle
        self.identity = identity
        self.names: frozenset[str] = frozenset()


class Watcher:
    """Calls `changed()` on its own thread whenever the content of a watched file has changed.

    Nothing happens before `start()`. A `changed()` that raises is logged, and the watching goes on (failures.md 36). A
    change during a `changed()` leads to another one. Thread-safe.

    Args:
        files: Absolute paths; they need not exist.
        changed: What to call. What has changed, `news` says.
        known: What the files held when they were last loaded (`fingerprints` taken before the load). A file that is
            not in it is reported once after the start, since it may have changed in between; None: no file is in it.
        events: Opens the source of events.
        degraded: Called once, with the reason, when only the poll is left.
    """

    def __init__(
        self,
        files: Iterable[str],
        changed: Callable[[], None],
        plan: ReloadPlan,
        *,
        known: Prints | None = None,
        clock: Callable[[], float] = monotonic,
        events: Callable[[OnEvent], EventSource] = ObserverEvents,
        degraded: Callable[[str], None] | None = None,
    ) -> None:
        self._files = tuple(dict.fromkeys(files))
        self._changed = changed
        self._plan = plan
        self._clock = clock
        self._open_events = events
        self._degraded = degraded if degraded is not None else _log_degraded
        self._settling = Settling(plan, now=clock(), known=known)
        self._forget_thread()

    def _forget_thread(self) -> None:
        self._lock = threading.Lock()
        self._wake = AutoResetEvent()
        self._stopping = False
        self._is_over = False  # the thread has seen that it is to end: no start can make it go on any more
        self._thread: threading.Thread | None = None
        self._told_of: threading.Thread | None = None
        self._pid = 0
        self._events: EventSource | None = None
        self._is_polling = False
        self._armed: dict[str, _Armed] = {}
        self._lost: set[str] = set()
        self._looked_at: float | None = None

    def __repr__(self) -> str:
        how = "stopped" if self._thread is None else "polling" if self._is_polling else "watching"
        return f"<Watcher {how} {len(self._files)} files in {len(self._armed)} directories>"

    @property
    def is_polling(self) -> bool:
        """Whether there are no events and only the poll is left."""
        return self._is_polling

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, also one that outlives the patience of `stop`."""
        thread = self._thread
        return thread is not None and self._pid == os.getpid() and thread.is_alive()

    @property
    def news(self) -> frozenset[str]:
        """Inside `changed()`: the files that have changed; none where it is called whether they have or not."""
        return self._settling.news

    def life(self) -> Life:
        """The sign of life of the thread, and whether it is `polling` because there are no events."""
        found = life(is_alive=self.is_alive, looked_at=self._looked_at, now=self._clock())
        return {**found, "polling": self._is_polling}

    def start(self) -> None:
        """Start the thread, which does the arming. Returns at once. Idempotent while the thread runs.

        A thread that was stopped inside `changed()`, and is still there, goes on: no second one comes beside it.

        In a forked child it starts anew and leaves the parent's descriptors alone: to remove an inherited inotify
        watch would remove the parent's.
        """
        thread = self._thread
        if thread is not None and self.is_alive:
            with self._lock:
                if not self._is_over:
                    if self._stopping:
                        self._stopping = self._is_polling = False
                        self._settling.look_at(self._clock())
                        self._wake.set()
                    return
            thread.join()  # it closes the events, and calls nobody any more
        self._forget_thread()
        self._settling.look_at(self._clock())
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="headrace-watch", daemon=True)
        undisturbed(self._thread.start)

    def stop(self) -> None:
        """Stop and join, watchdog's threads too. Idempotent.

        Inside `changed()` it cannot join its own thread, which ends when `changed()` returns. For a `changed()` that
        is running it waits STOP_PATIENCE_S, and then says once that the thread lingers.
        """
        thread = self._thread
        if thread is None or self._pid != os.getpid():
            return
        self._stopping = True
        self._wake.set()
        if thread is not threading.current_thread():
            try:
                thread.join(STOP_PATIENCE_S)
            except RuntimeError:
                pass  # it was never started, or that was interrupted: it ends by itself
            if not thread.is_alive():
                self._thread = None
            elif thread is not self._told_of:
                self._told_of = thread
                emit(ThreadLingers(thread_name=thread.name, waited_s=STOP_PATIENCE_S))

    def set_files(
        self, files: Iterable[str], *, known: Prints | None = None, plan: ReloadPlan | None = None
    ) -> None:
        """Watch *files* from now on. Those that are new and not in *known* are reported once."""
        with self._lock:
            self._files = tuple(dict.fromkeys(files))
            if known is not None:
                self._settling.known.update(known)
            if plan is not None:
                self._settling.replan(plan)
            self._settling.look_at(self._clock())
        self._wake.set()

    def poke(self) -> None:
        """Look after the debounce whether something has changed."""
        with self._lock:
            is_first = self._settling.poke(self._clock())
        if is_first:
            self._wake.set()

    def again(self, after_s: float) -> None:
        """Call `changed()` in *after_s* seconds even if nothing changes: for an edit that is held."""
        with self._lock:
            self._settling.again_at(self._clock() + after_s)
        self._wake.set()

    # -- watchdog's thread

    def _on_event(self, directory: str, name: str | None) -> None:
        with self._lock:
            armed = self._armed.get(directory)
            if name is None:
                self._lost.add(directory)
            elif name and armed is not None and name not in armed.names and "" not in armed.names:
                return
            is_first = self._settling.poke(self._clock())
        if is_first:
            self._wake.set()

    # -- our thread

    def _run(self) -> None:
        # One guard around all of it. A thread that ended by itself would leave edits unheard, without a log line.
        try:
            while not self._ends():
                try:
                    self._wait_and_look()
                except Exception as error:
                    stumbled("look at the watched files", error)
                    self._fall_back(error)
                    self._wake.wait(STUMBLE_PAUSE_S)
        finally:
            with self._lock:
                self._is_over = True
            self._close_events()

    def _ends(self) -> bool:
        with self._lock:
            self._is_over = self._stopping
        return self._is_over

    def _wait_and_look(self) -> None:
        with self._lock:
            self._settling.clip(now := self._clock())
            wait_s = self._settling.due_at() - now
        if wait_s > 0:
            self._wake.wait(wait_s)
        else:
            self._look()

    def _look(self) -> None:
        self._looked_at = self._clock()
        with self._lock:
            first_poke_at = self._settling.take(self._clock())
            files = self._files
        self._arm(files)
        prints = {}
        for file in files:
            prints[file] = fingerprint(file)
            if self._stopping:
                return
        with self._lock:
            if files is not self._files or self._stopping:
                self._settling.look_at(
                    self._clock()
                )  # what has been read is not judged, so that the next look tells
                return
            is_change = self._settling.judge(self._clock(), prints, first_poke_at=first_poke_at)
        if not is_change:
            return
        try:
            self._changed()
        except Exception:
            logger.exception("reload failed unexpectedly; the watching goes on")

    def _arm(self, files: tuple[str, ...]) -> None:
        """Watch the directories that *files* depend on now. Arm, then read: no edit falls between."""
        if self._is_polling:
            return
        for _ in range(ARM_ROUNDS):
            wanted: dict[str, set[str]] = {}
            for file in files:
                for directory, name in lookups(file):
                    wanted.setdefault(directory, set()).add(name)
            try:
                is_settled = self._arm_directories(wanted)
            except Exception as error:
                # There is no inotify, no descriptor or no thread, or watchdog has an error of its own.
                self._fall_back(error)
                return
            if is_settled:
                return

    def _arm_directories(self, wanted: Mapping[str, set[str]]) -> bool:
        """True when nothing had to be armed, so that the walk that led here still holds."""
        if self._events is None:
            self._events = self._open_events(self._on_event)
        with self._lock:
            lost, self._lost = self._lost, set()
        for directory in [*self._armed]:
            armed = self._armed[directory]
            if directory not in wanted or directory in lost or _identity(directory) != armed.identity:
                with self._lock:
                    del self._armed[directory]
                self._events.disarm(armed.handle)
        is_settled = True
        for directory, names in wanted.items():
            known = self._armed.get(directory)
            if known is None:
                identity = _identity(directory)
                if identity is None:
                    is_settled = False
                    continue
                try:
                    known = _Armed(self._events.arm(directory), identity)
                except (FileNotFoundError, NotADirectoryError):
                    is_settled = False
                    continue
                except (PermissionError, ValueError):
                    continue  # it may be read but not watched, or it is no path: that is left to the poll
                is_settled = False
            with self._lock:
                known.names = frozenset(names)
                self._armed[directory] = known
        return is_settled

    def _fall_back(self, error: Exception) -> None:
        """Only poll until the next start. ENOSPC: max_user_watches; EMFILE: max_user_instances, or our descriptors."""
        if self._is_polling or is_ending(error):
            return
        self._is_polling = True
        self._close_events()
        each((f"no file system events ({error})",), self._degraded, doing="tell that only the poll is left")

    def _close_events(self) -> None:
        source, self._events = self._events, None
        with self._lock:
            self._armed = {}
        if source is not None:
            each((source,), lambda one: one.close(), doing="end the file system events")


def _identity(directory: str) -> tuple[int, int] | None:
    try:
        status = os.stat(directory)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _log_degraded(reason: str) -> None:
    emit(WatchDegraded(reason=reason))
