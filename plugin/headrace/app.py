"""The facade: one Headrace per configuration, and everything hangs off it.

It wires and orders; the work is done below. `Reloader` holds what is in force, `Readings` reads it, `Metrics` shows it,
`Watcher` notices edits, `Housekeeping` does what is due, `install` says which URLs are governed.

The module is over 400 lines long because start, close, the fork and their undoing are one protocol. An interrupt may
come between any two steps, and each step has its undoing, in an order that can only be checked with all of them in
view. The rest is the public face, method by method, and most of its lines are documentation.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from headrace.adapters import install
from headrace.adapters.handles import Handle, Session, close_plain, governed_session, stock_pools
from headrace.config import Sections, default_files, load, mode_override
from headrace.errors import ConfigError, HeadraceError
from headrace.forks import current_pid, pid_page
from headrace.observe.events import HeadraceStarted, HeadraceStopped, ModeOverridden
from headrace.observe.isolation import carry_out, each
from headrace.observe.logs import emit
from headrace.observe.metrics import Metrics, Registry
from headrace.policy.plan import Configuration
from headrace.runtime import process
from headrace.runtime.deadlines import deadlines
from headrace.runtime.inbound import inbound_var
from headrace.runtime.late_patch import LatePatch
from headrace.runtime.readings import Readings
from headrace.runtime.reload import Reloader, ReloadResult
from headrace.runtime.service import ServiceCounters
from headrace.runtime.snapshot import Snapshot
from headrace.runtime.threads import Housekeeping
from headrace.runtime.upstream import Upstream
from headrace.runtime.watch.watcher import NO_LIFE, Watcher

File = str | os.PathLike[str]


class Headrace:
    """The rules of one configuration, in force from `start()` to `close()`.

    The constructor reads, validates and compiles, so that a bad file stops the
    boot; it starts no thread, opens no socket and patches nothing.

    `_lock` guards the lifecycle (start, close) only. It is held while threads are
    started and joined, and it is never taken on the path of a call.

    Args:
        file: The YAML file, or several (later wins). None: HEADRACE_FILE
            (several separated as in PATH), else `upstreams.yaml`.
        registry: Where Prometheus metrics go; None: prometheus_client's default.

    Attributes:
        started_in: The process that `start()` was last called in, or 0. `close()` leaves it as it is. The
            middlewares start the instance where this is another process.
        in_force: Has what `snapshot` and `service` answer as plain attributes, for what reads them with each request.

    Raises:
        ConfigError: The files have problems; all of them are in the text.
    """

    def __init__(
        self, file: File | Sequence[File] | None = None, *, registry: Registry | None = None
    ) -> None:
        self.files: tuple[str, ...] = absolute(file)
        self.started_in: int = 0  # pid
        self._mode_override = mode_override(os.environ)
        self._cwd = Path.cwd()
        self._sections = Sections()
        self._lock = threading.Lock()
        self._running_in: int | None = None  # pid
        self._closed = False
        self._reloader = Reloader(
            load=self._load, override=self._mode_override, files=self.files, publish=self._publish
        )
        self.in_force = self._reloader
        self._readings = Readings(self._reloader)
        self._metrics = Metrics(self._readings.read, registry=registry, key=self.files)
        self._late_patch = LatePatch()
        self._housekeeping = self._new_housekeeping()
        self._watcher: Watcher | None = None
        self._handles: dict[str, Handle] = {}
        self._stock = stock_pools()
        self._is_suspended = False
        _instances.add(self)

    @property
    def is_open(self) -> bool:
        """Whether it claims URLs or keeps connections."""
        return self._running_in is not None or self._is_suspended

    @property
    def snapshot(self) -> Snapshot:
        """The configuration in force, with its upstreams. One immutable object; replaced as a whole."""
        return self._reloader.snapshot

    @property
    def service(self) -> ServiceCounters:
        """Counters that belong to no single upstream."""
        return self._reloader.service

    def start(self) -> None:
        """Take the rules into force: URLs, metrics, watching. Blocks shortly; thread-safe; idempotent.

        After a `close()` it starts over from the files, and knows what it had learned of its upstreams. If it
        raises, an interrupt included, everything is as it was before.

        Raises:
            ConfigError: Another instance in this process claims one of the URLs, or (after a
                close) the files have problems.
        """
        if self._running_in == os.getpid():
            return
        if os.getpid() != process.pid:
            process.renew()
        each(_before_start, lambda act: act(self), doing="make room for a start")
        undo: tuple[Callable[[], object], ...] = ()
        try:
            with self._lock:
                if self._running_in == os.getpid():
                    return
                undo = self._undoing_start()
                try:
                    self._put_in_force()
                except BaseException:
                    steps, undo = undo, ()
                    carry_out(steps, doing="undo a start that failed")
                    raise
            self._announce()
        except BaseException:  # an interrupt, perhaps when all was done: the caller never learns of the start
            if undo:
                with self._lock:
                    carry_out(undo, doing="undo a start that was interrupted")
            raise

    def close(self) -> None:
        """Govern nothing any more; end threads, close connections. Blocks shortly; idempotent.

        It undoes whatever is there, also after an interrupted start or close. What one step raises is logged, and
        the other steps are done all the same. An interrupt is raised when all are done.
        """
        self._end(functools.partial(atexit.unregister, self.close), self._reloader.close)
        self._is_suspended = False

    def suspend(self) -> None:
        """As `close`, except that idle connections stay open for the next `start()`. Blocks shortly; idempotent.

        For a lifespan that comes again and again in one process (AWS Lambda). Nobody looks after the connections
        meanwhile; each is looked at before it is used. `close()`, or the end of the process, closes them.
        """
        self._is_suspended = True
        self._end(self._reloader.suspend)

    def _end(self, *pools: Callable[[], object]) -> None:
        # The steps are made after the renewal. Made before, they would wait for threads of the parent.
        if os.getpid() != process.pid:
            process.renew()
        was_running = False
        try:
            with self._lock:
                was_running = self._running_in is not None
                self._closed = True
                self._running_in = None
                carry_out(self._undoing_all(*pools), doing="close")
        finally:
            if was_running:
                emit(HeadraceStopped(files=self.files))

    def _undoing_all(self, *pools: Callable[[], object]) -> tuple[Callable[[], object], ...]:
        """The steps that make everything as it was before the first start, except for the files that have been read.

        Args:
            pools: The steps that see to the pools.
        """
        return (
            functools.partial(install.withdraw, self),
            self._end_watching,
            self._housekeeping.stop,
            *pools,
            # Again: a reload that was under way may have published in between.
            functools.partial(install.withdraw, self),
            self._close_plain,
            self._metrics.uninstall,
            _end_deadlines,
        )

    def _put_in_force(self) -> None:
        """All that a start does. Called under `_lock`."""
        if self._closed:
            self._reloader.replace()
        install.publish(self, self.snapshot)
        self._metrics.install()
        self._housekeeping.start()
        atexit.unregister(self.close)  # of a suspended instance, it is there
        atexit.register(self.close)
        # The watcher comes last. It looks at once, and a reload publishes only where this start has published.
        configuration = self.snapshot.configuration
        if (
            self._watcher is not None and self._watcher.is_alive
        ):  # it outlives a close: no second one beside it
            self._watcher.set_files(self._watched(), known=configuration.prints, plan=configuration.reload)
        else:
            self._watcher = Watcher(
                self._watched(), self._files_changed, configuration.reload, known=configuration.prints
            )
        self._watcher.start()
        self._closed = self._is_suspended = False
        self._running_in = self.started_in = os.getpid()

    def _undoing_start(self) -> tuple[Callable[[], object], ...]:
        """The steps that make everything as it is now, however far `_put_in_force` will have got."""
        running_in, started_in, was_closed = self._running_in, self.started_in, self._closed

        def forget() -> None:
            self._running_in, self.started_in, self._closed = running_in, started_in, was_closed

        steps = (forget, self._end_watching, self._housekeeping.stop, self._reloader.rest)
        if running_in is not None:  # a forked child: what its parent has published governs it already
            return steps
        return (
            *steps,
            functools.partial(atexit.unregister, self.close),
            self._metrics.uninstall,
            functools.partial(install.withdraw, self),
            *((self._reloader.close,) if was_closed else ()),
        )

    def _announce(self) -> None:
        emit(
            HeadraceStarted(
                files=self.files,
                digest=self.snapshot.digest[:12],
                upstreams=len(self.snapshot.upstreams),
                mode_override=self._mode_override,
            )
        )
        if self._mode_override is not None:
            emit(ModeOverridden(mode=self._mode_override))
        for event in self._reloader.announcements():
            emit(event)

    def _end_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()

    def show_metrics(self) -> None:
        """Show its metrics before the start, so that a scrape before the first request finds them. Idempotent.

        The middlewares call it. In prometheus_client's multiprocess mode they come with the start: the process that
        builds an application may be one that serves nothing.
        """
        if self._running_in is None:
            self._metrics.foretell()

    def forget(self) -> None:
        """Fresh circuits and budgets; connections and counts stay. Thread-safe. Calls under way end with the old ones.

        For tests that share an instance (`headrace.testing.isolated`).
        """
        self._reloader.forget()

    def reload(self) -> ReloadResult:
        """Take what the files say now into force. Blocks; thread-safe.

        Returns:
            `applied`, or `unchanged` when the files say what is in force.

        Raises:
            ConfigError: The files have problems; what was in force still is.
        """
        if self._closed:
            raise HeadraceError("this Headrace is closed; start() takes the files into force again")
        result = self._reloader.reload()
        # What has just been read need not be read again. Not where the watcher itself has asked for the load: it knows.
        self._rewatch(known=self.snapshot.configuration.prints)
        return result

    def reread(self) -> None:
        """Take what the files say now into force if this runs, else see whether the next request can start it.

        One more application is going to be served by it. Also where it was closed by hand.

        Raises:
            ConfigError: The files have problems; what was in force still is.
        """
        if self._running_in == os.getpid():
            self.reload()
        else:
            self._load()
            self.started_in = 0

    def upstream(self, name: str) -> Handle:
        """A handle on the upstream called *name*; it follows reloads.

        Raises:
            UnknownUpstream: The file in force has no such name.
        """
        handle = self._handles.get(name)
        if handle is None:
            self.snapshot.upstream(name)
            handle = self._handles.setdefault(
                name,
                Handle(name, self._resolve, self._reloader, self._find, self._stock, self._reloader.reset),
            )
        return handle

    def session(self) -> Session:
        """A new `requests.Session` governed by URL, whether or not `install.requests` is on.

        It can be copied and pickled. Loaded in another process, it is governed by the instance of the same files
        there, else by the only one that runs.
        """
        return governed_session(_Finder(self.files, self))

    def status(self) -> dict[str, Any]:
        """What is in force and what it is doing: plain data, fit for JSON, without secrets."""
        refused, service = self._reloader.refused, self._readings.service()
        return {
            "files": list(self.files),
            "running": self._running_in == os.getpid(),
            "mode_override": self._mode_override,
            "digest": service.digest,
            "loaded_at": service.last_success_timestamp_s,
            "rejected": None if refused is None else {"at": refused.at, "problems": refused.text},
            "held": self._reloader.is_holding,
            "reloads": service.reloads,
            "ungoverned": service.ungoverned,
            "inbound_deadlines": service.inbound_deadlines,
            "threads": self._signs_of_life(),
            "unknown_hosts": [
                {"host": host, "calls": calls} for host, calls in install.busiest_unknown_hosts()
            ],
            "upstreams": self._readings.status(),
        }

    def __enter__(self) -> Self:
        _started(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not hasattr(
            self, "_reloader"
        ):  # its file is bad, and a crash reporter shows the locals of the frames
            return "<Headrace without a configuration>"
        state = "running" if self._running_in == os.getpid() else "closed" if self._closed else "not started"
        override = f" HEADRACE_MODE={self._mode_override}" if self._mode_override else ""
        snapshot = self.snapshot
        return (
            f"<Headrace {', '.join(self.files)} {state} digest={snapshot.digest[:12]}{override} "
            f"upstreams={len(snapshot.upstreams)}>"
        )

    def _new_housekeeping(self) -> Housekeeping:
        return Housekeeping([self._reloader.tick, self._flush, install.follow_imports, self._late_patch.look])

    def _forget_inherited(self) -> None:
        """In a forked child: touch nothing of the parent's. The child is governed; `start()` makes the threads anew."""
        self._lock = threading.Lock()
        # The parent has the same descriptor: a watch that is removed here would be removed there.
        self._watcher = None
        self._housekeeping = self._new_housekeeping()
        self._reloader.forget_inherited()
        self._stock = stock_pools()
        each(
            list(self._handles.values()),
            lambda handle: handle.forget_inherited(self._stock),
            doing="renew a handle in a forked child",
        )

    def _close_plain(self) -> None:
        """Close the idle connections that no rule governs: of `observe` and `off`, and of redirects that led away."""
        self._stock.clear()
        each(list(self._handles.values()), close_plain, doing="close the plain connections of a handle")

    def _signs_of_life(self) -> dict[str, Mapping[str, Any]]:
        """The signs of life of every thread that may serve this instance, by name."""
        watcher = self._watcher
        return {
            "headrace-watch": NO_LIFE if watcher is None else watcher.life(),
            "headrace-housekeeping": self._housekeeping.life(),
            "headrace-deadline": deadlines.life(),
            **self._reloader.lives(),
        }

    def _load(self) -> Configuration:
        return load(self.files, env=os.environ, cwd=self._cwd, sections=self._sections)

    def _publish(self, snapshot: Snapshot) -> None:
        # The question is not "started in this process": a forked child that never starts is governed all the same.
        if self in install.owners():
            install.publish(self, snapshot)

    def _files_changed(self) -> None:
        """The watcher found other contents."""
        watcher = self._watcher
        wanted: Sequence[str] = ()
        if watcher is not None and self._reloader.renew(watcher.news):
            return
        try:
            self._reloader.reload(patient=True)
        except ConfigError as error:
            # The reloader has reported it, and the last good configuration stays. The files of the refused one are
            # watched as well: a secret that was missing may yet arrive.
            wanted = error.watched
        self._rewatch(wanted)

    def _rewatch(self, wanted: Sequence[str] = (), *, known: Mapping[str, bytes] | None = None) -> None:
        watcher = self._watcher
        if watcher is not None:
            plan = self.snapshot.configuration.reload
            watcher.set_files((*self._watched(), *wanted), known=known, plan=plan)

    def _watched(self) -> tuple[str, ...]:
        return self.snapshot.configuration.watched

    def _flush(self, now: float) -> None:
        self._metrics.flush()

    def _find(self, request: Any) -> Upstream | None:
        found = self._snapshot_of_call().routes.match_url(request.url or "")
        return None if found is None else found[1]

    def _resolve(self, name: str) -> Upstream:
        # Flat: every call of a handle comes through here.
        if (pid_page[0] or current_pid()) != process.pid:
            process.renew()
        inbound = inbound_var.get()
        ours = inbound is not None and inbound.headrace is self and not inbound.is_over
        snapshot = inbound.snapshot if ours else self._reloader.snapshot  # type: ignore[union-attr]
        upstream = snapshot.upstreams.get(name) or snapshot.upstream(name)
        if upstream.endpoint.pool.leases.stopped:
            if self._closed:
                raise HeadraceError(f'upstream "{name}": this Headrace is closed')
            return self.snapshot.upstream(name)
        return upstream

    def _snapshot_of_call(self) -> Snapshot:
        if (pid_page[0] or current_pid()) != process.pid:
            process.renew()
        inbound = inbound_var.get()
        if inbound is not None and inbound.headrace is self and not inbound.is_over:
            return inbound.snapshot
        return self._reloader.snapshot


class _Finder:
    """Which upstream a request of a session belongs to: what the session has of its instance.

    A copy goes by the same instance. A pickle keeps the files alone.
    """

    __slots__ = ("_files", "_instance")

    def __init__(self, files: tuple[str, ...], instance: Headrace | None = None) -> None:
        self._files = files
        self._instance = instance

    def __call__(self, request: Any) -> Upstream | None:
        if self._instance is None:
            self._instance = _running(self._files)
        return self._instance._find(request)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Finder, (self._files,)

    def __deepcopy__(self, memo: object) -> _Finder:
        return self


def _running(files: tuple[str, ...]) -> Headrace:
    """The instance of *files* that runs in this process, else the only one that does.

    Raises:
        HeadraceError: There is none, or more than one of other files.
    """
    running = [one for one in install.owners() if isinstance(one, Headrace)]
    for one in running:
        if one.files == files:
            return one
    if len(running) == 1:
        return running[0]
    raise HeadraceError(
        f"a session that was pickled belongs to the Headrace of {', '.join(files)}, and none of these files runs in "
        f"this process; call headrace.install(…) before it is used"
    )


def _end_deadlines() -> None:
    """The deadline thread belongs to the process, not to an instance: the last instance that runs ends it."""
    if not install.owners():
        deadlines.stop()


_instances: WeakSet[Headrace] = WeakSet()

_before_start: list[Callable[[Headrace], object]] = []


def before_start(act: Callable[[Headrace], object]) -> None:
    """Have *act* called with each instance that is going to start, from now on."""
    _before_start.append(act)


def _forget_inherited() -> None:
    each(list(_instances), Headrace._forget_inherited, doing="renew an instance in a forked child")


process.after_fork(_forget_inherited)


def instances() -> list[Headrace]:
    """Every instance that somebody holds, started or not, in no particular order."""
    return list(_instances)


def current() -> Headrace:
    """The instance bound to the inbound request, else the only one that runs in this process.

    Raises:
        LookupError: There is none, or more than one.
    """
    inbound = inbound_var.get()
    if inbound is not None:
        return inbound.headrace  # type: ignore[no-any-return]
    owners = install.owners()
    if len(owners) != 1:
        raise LookupError(
            f"{len(owners)} Headrace instances run in this process and no inbound request is bound to one; "
            f"add the middleware, call headrace.install(…), or keep the instance yourself"
        )
    return owners[0]  # type: ignore[return-value]


def start_from(file: File | Sequence[File] | None = None, *, registry: Registry | None = None) -> Headrace:
    """A started Headrace, for processes without middleware (Celery, cron, Jupyter). Also a context manager.

    Raises:
        ConfigError: The files have problems.
    """
    return _started(Headrace(file, registry=registry))


def _started(instance: Headrace) -> Headrace:
    """*instance*, started. It is closed if an interrupt means that the caller never gets it."""
    try:
        instance.start()
        return instance
    except Exception:
        raise
    except BaseException:
        instance.close()
        raise


def absolute(file: File | Sequence[File] | None) -> tuple[str, ...]:
    """The absolute names of *file*; None: of what HEADRACE_FILE names, else of `upstreams.yaml`.

    Raises:
        ValueError: It is an empty list.
    """
    if file is None:
        file = default_files(os.environ)
    files = [file] if isinstance(file, (str, os.PathLike)) else list(file)
    if not files:
        raise ValueError("no file given")
    return tuple(str(Path(one).absolute()) for one in files)
