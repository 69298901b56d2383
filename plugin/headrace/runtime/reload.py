"""Reload: read -> parse -> validate -> build everything -> swap one reference -> drain.

A file takes force as a whole or not at all. On any failure the last good configuration stays in force, and the failure
is loud. Events of the file system only say when to look: what counts is what the files contain.

`Reloader` owns the snapshot in force, the endpoints that drain, and a file that is held. `Reloader._lock` guards the
change of all three. Files are read and pools are built under it, so no call ever takes it: `snapshot` is one reference,
read without a lock and replaced as a whole, and so is the list of what drains. Events are logged after the lock is
released.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from math import inf
from typing import Literal

from headrace.clock import monotonic
from headrace.config.check.problems import Problem
from headrace.errors import ConfigError
from headrace.observe.events import (
    ConfigApplied,
    ConfigHeld,
    ConfigRejected,
    ConfigWarning,
    Event,
    TlsVerificationDisabled,
)
from headrace.observe.isolation import carry_out, each
from headrace.observe.logs import emit
from headrace.policy.breaker.window import LATEST_S
from headrace.policy.counters import UpstreamCounters
from headrace.policy.frozen import frozen, slotted
from headrace.policy.plan import Configuration
from headrace.runtime.ages import WARN_EVERY_S, Ages
from headrace.runtime.foretelling import Foreteller
from headrace.runtime.heartbeat import Heartbeats
from headrace.runtime.reports import report_leases
from headrace.runtime.rotation import Rotations
from headrace.runtime.secrets import Secrets
from headrace.runtime.service import ServiceCounters
from headrace.runtime.snapshot import Snapshot, build_snapshot, changed_upstreams, retired_endpoints
from headrace.runtime.state import Endpoint
from headrace.runtime.threads import Life
from headrace.runtime.upstream import Upstream, name_of
from headrace.runtime.warmup import Warmer
from headrace.transport.dial.tls import TlsChanged, TlsError

HOLD_S = 5.0
"""Seconds that a file which drops most upstreams must stand. A file that is half written looks the same."""

MOST_READINGS = 5
"""How often the files are read anew because TLS files were written while they were read."""

ReloadResult = Literal["applied", "unchanged", "held"]


@slotted
class _Held:
    """A file that waits for HOLD_S to pass, by its digest."""

    digest: str
    since: float


@slotted
class _Rejection:
    """The last refusal, for status."""

    text: str
    at: float


@frozen
class _Draining:
    """An endpoint of upstream *name* that was in force. It serves the calls under way until *stop_at*."""

    name: str
    endpoint: Endpoint
    stop_at: float


class _Chores:
    """Which upstreams of *snapshot* housekeeping has to ask what, so that it does not ask all of them at every tick.

    Pools that awake say so. To look at each of ten thousand, if only at one flag, takes a fiftieth of a core: what was
    not touched for half a second is in no cache.

    Attributes:
        to_size: Those whose pool's size follows what does not happen, too; each upstream at each of its origins.
        to_warm: Those that may want idle connections.
        beats: Whether any may want heartbeats.
        to_foretell: All, if any is only observed: the foreteller remembers the others for the day they will be.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        everywhere = [one for upstream in snapshot.upstreams.values() for one in upstream.everywhere()]
        enforced = [one for one in everywhere if one.mode == "enforce"]
        self.snapshot = snapshot
        self.to_size = [one for one in everywhere if one.endpoint.sizer is not None]
        self.to_warm = [one for one in enforced if one.plan.pool.min_idle]
        self.beats = any(one.plan.pool.heartbeat is not None for one in enforced)
        self.to_foretell = everywhere if any(one.mode == "observe" for one in everywhere) else []
        self._woken: deque[Upstream] = deque()  # any thread appends
        self._awake: dict[int, Upstream] = {}  # by the id of the endpoint

        def follow(one: Upstream) -> None:
            if one.endpoint.sizer is None:
                self._awake[id(one.endpoint)] = one  # for good, if it cannot say when
                one.endpoint.pool.leases.tell_when_awake(functools.partial(self._woken.append, one))
                del self._awake[id(one.endpoint)]

        each(everywhere, follow, doing="hear of a pool that awakes", of=name_of)

    def awake(self) -> list[Upstream]:
        """Those whose connections have to be looked after."""
        while self._woken:
            one = self._woken.popleft()
            self._awake[id(one.endpoint)] = one
        return [*self._awake.values(), *self.to_size]

    def looked_after(self, one: Upstream) -> None:
        """Do not name *one* again until it awakes, if it is at rest."""
        if not one.endpoint.pool.leases.is_awake:  # who awakes from here on is told of again
            self._awake.pop(id(one.endpoint), None)


class Reloader:
    """Owns the snapshot in force, and replaces it. Thread-safe.

    Args:
        load: Reads all sources; raises ConfigError.
        override: What HEADRACE_MODE says.
        publish: Makes URLs lead to the new snapshot, just before that is in force here. Raises ConfigError, and
            changes nothing, when another instance claims one of the URLs.
    """

    def __init__(
        self,
        *,
        load: Callable[[], Configuration],
        override: Literal["observe", "off"] | None,
        files: tuple[str, ...],
        publish: Callable[[Snapshot], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._load = load
        self._override = override
        self._files = files
        self._publish = publish
        self._clock = clock
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._draining: list[_Draining] = []
        self._chores: _Chores | None = None  # of the thread that keeps house
        self._ticked_at = -inf
        self._warmer = Warmer()
        self._heartbeats = Heartbeats()
        self._foreteller = Foreteller()
        self._is_stopped = False  # the pools of the snapshot were closed for good
        self.service = ServiceCounters()
        self.secrets = Secrets()
        self.ages = Ages()
        self._warned_at = -inf
        self.counters: dict[str, UpstreamCounters] = {}
        self.refused: _Rejection | None = None
        self.rotations = Rotations()
        self.snapshot = self._read(None)[1]
        self.rotations.follow(self.snapshot.upstreams, now=clock(), now_s=self.snapshot.loaded_at)
        self.secrets.adopt(self.snapshot.configuration.secret_texts, tell=lambda event: None)

    def announcements(self) -> list[Event]:
        """Events for what deserves a second look in the configuration in force."""
        texts: list[Event] = [ConfigWarning(text=text) for text in self.snapshot.configuration.warnings]
        return texts + [
            TlsVerificationDisabled(upstream=name)
            for name, upstream in self.snapshot.upstreams.items()
            if upstream.plan.tls is not None and not upstream.plan.tls.verify
        ]

    def reload(self, *, patient: bool = False) -> ReloadResult:
        """Read the files and take them into force. Blocks; thread-safe.

        Args:
            patient: Hold a file that drops more than half of four or more upstreams until it has stood for HOLD_S.
                If false, such a file takes force at once, too.

        Raises:
            ConfigError: The files have problems; the configuration in force is what it was.
        """
        events: list[Event] = []
        try:
            with self._lock:
                return self._reload(patient, events)
        finally:
            for event in events:
                emit(event)

    def renew(self, changed: Collection[str]) -> bool:
        """Whether *changed*, paths of watched files, are followed by nothing but headers, which go by them now.

        Then there is nothing to load. Reads those files; thread-safe, and takes no lock that a reload holds.
        """
        secrets = self.snapshot.configuration.secret_texts
        if not changed or self._held is not None or self.refused is not None:
            return False  # the file that waits, or was refused, may be another one with the secret
        return all(path in secrets for path in changed) and self.secrets.look(changed)

    def forget(self) -> None:
        """Forget what the upstreams have learned. Thread-safe."""
        with self._lock:
            each(
                self.snapshot.upstreams.values(),
                Upstream.forget_learned,
                doing="forget what an upstream has learned",
                of=name_of,
            )

    def reset(self, name: str) -> None:
        """What the upstream called *name* has learned is forgotten, by the application's wish: counted and logged.

        Thread-safe. Calls under way end with the circuit and the budget that they began with.

        Raises:
            UnknownUpstream: The configuration in force has no such name.
        """
        with self._lock:
            event = self.snapshot.upstream(name).reset(self._clock())
        emit(event)

    def replace(self) -> None:
        """Start over from the files: for an instance that was closed, or suspended, and is started again.

        The upstreams keep what they have learned, and what pools they still have, as in a reload.

        Raises:
            ConfigError: The files have problems.
        """
        events: list[Event] = []
        with self._lock:
            after = self._read(self.snapshot, anew=True)[1]
            carry_out(
                self._steps_to(after, events, drain_at=self._clock()),
                doing="put a configuration in force again",
            )
        for event in events:
            emit(event)

    @property
    def is_holding(self) -> bool:
        """Whether a changed file waits for HOLD_S to pass."""
        return self._held is not None

    def tick(self, now: float) -> None:
        """Housekeeping: idle connections, drained pools, a held file. Blocks shortly."""
        snapshot, chores = self.snapshot, self._chores
        if chores is None or chores.snapshot is not snapshot:
            chores = self._chores = _Chores(snapshot)
        awake = chores.awake()

        def look_after(one: Upstream) -> None:
            _look_after(one.plan.name, one.endpoint, now)
            chores.looked_after(one)

        each(
            awake,
            look_after,
            doing="look after the connections of an upstream",
            of=name_of,
        )
        each(
            (
                (self._warmer.look, chores.to_warm),
                # A heartbeat asks idle connections, and a pool that has one is awake.
                (self._heartbeats.look, awake if chores.beats else ()),
                (self._foreteller.look, chores.to_foretell),
            ),
            lambda one: one[0](now, one[1]) if one[1] else None,
            doing="begin a round of warm-up, heartbeats or foretelling",
        )
        if (step_s := now - self._ticked_at) < -LATEST_S:
            self._move_back(step_s)
        self._ticked_at = now
        if not 0.0 <= now - self._warned_at < WARN_EVERY_S:
            self._warned_at = now
            each((snapshot,), self._warn, doing="look how old certificates and secrets are")
        self._look_after_draining(now)
        if self.rotations.is_pending:
            with self._lock:
                refused = self.rotations.due(now, self.snapshot.upstreams.values())
            each(refused, emit, doing="tell that TLS files were refused")
        held = self._held
        if held is not None and now - held.since >= HOLD_S:
            try:
                self.reload(patient=True)
            except ConfigError:
                pass  # reported by reload()

    def _warn(self, snapshot: Snapshot) -> None:
        plans = [upstream.plan for upstream in snapshot.upstreams.values()]
        self.ages.warn(plans, max_age_s=snapshot.configuration.secrets.max_age_s)

    def _move_back(self, step_s: float) -> None:
        """Move the ends of what runs by *step_s*, which is negative: the clock was stepped back (failures.md 69)."""
        with self._lock:
            self._draining = [replace(one, stop_at=one.stop_at + step_s) for one in self._draining]
            if self._held is not None:
                self._held = _Held(self._held.digest, self._held.since + step_s)
            self.rotations.move(step_s)

    def _look_after_draining(self, now: float) -> None:
        each(
            self._draining,  # replaced as a whole, never changed in place
            lambda one: _look_after(one.name, one.endpoint, now),
            doing="look after a pool that drains",
        )
        with self._lock:
            over = [one.endpoint for one in self._draining if now >= one.stop_at]
            self._draining = [one for one in self._draining if now < one.stop_at]
        each(over, lambda one: one.pool.leases.stop(), doing="stop a pool that has drained")

    def endpoints(self, name: str, upstream: Upstream | None) -> list[Endpoint]:
        """Those of *upstream*, then those that drain under its *name*. Gauges are sums over both."""
        own = () if upstream is None else upstream.endpoints
        draining = self._draining  # replaced as a whole, never changed in place
        return [*own, *(one.endpoint for one in draining if one.name == name and one.endpoint not in own)]

    def close(self) -> None:
        """Stop every pool, in force or draining. Blocks shortly. Idempotent. An error at one does not stop it."""
        with self._lock:
            self._is_stopped = True
            draining = self._draining
            endpoints = [one for upstream in self.snapshot.upstreams.values() for one in upstream.endpoints]
        each(
            [*endpoints, *(one.endpoint for one in draining)],
            _stop,  # this also ends a heartbeat under way
            doing="close the connections of a pool",
        )
        self.rest()
        with self._lock:
            # Only now: after an interrupt above, the next close finds them here again.
            self._draining = [one for one in self._draining if one not in draining]

    def suspend(self) -> None:
        """Stop the pools that drain; those in force keep their connections. Blocks shortly. Idempotent."""
        with self._lock:
            draining = self._draining
        each(draining, lambda one: _stop(one.endpoint), doing="stop a pool that drains")
        self.rest()
        with self._lock:  # only now, as in `close`
            self._draining = [one for one in self._draining if one not in draining]

    def rest(self) -> None:
        """End the threads of warm-up, heartbeats and foretelling. Blocks for three seconds at most. Idempotent."""
        each(
            (self._warmer.stop, self._heartbeats.stop, self._foreteller.stop),
            lambda stop: stop(),
            doing="end a thread",
        )

    def lives(self) -> dict[str, Life]:
        """The signs of life of its threads, by name."""
        return {
            "headrace-warmup": self._warmer.life(),
            "headrace-heartbeat": self._heartbeats.life(),
            "headrace-foretell": self._foreteller.life(),
        }

    def forget_inherited(self) -> None:
        """In a forked child, where no other thread runs: make new locks, and let go of the parent's sockets.

        What is in force stays, as the very same objects.
        """
        self._lock = threading.Lock()
        self._chores = None  # the parent's thread may have been between hearing of a pool and noting that
        self.service.lock = threading.Lock()
        self.secrets.forget_inherited()
        for counters in self.counters.values():
            counters.lock = threading.RLock()
        each(
            self.snapshot.upstreams.values(),
            Upstream.forget_inherited,
            doing="forget what the parent's upstream held",
            of=name_of,
        )
        self._warmer = Warmer()
        self._heartbeats = Heartbeats()
        self._foreteller = self._foreteller.in_child()
        draining, self._draining = self._draining, []
        each(draining, lambda one: one.endpoint.pool.forget_inherited(), doing="give up a pool that drains")
        # Calls that are bound to an old snapshot go on with the one in force.
        each(draining, lambda one: one.endpoint.pool.leases.stop(), doing="stop a pool that drains")

    def _reload(self, patient: bool, events: list[Event]) -> ReloadResult:
        began = self._clock()
        before = self.snapshot
        try:
            configuration, after = self._read(before)
            if after is before:
                self._held = self.refused = None
                self.secrets.adopt(configuration.secret_texts, tell=events.append)
                self.service.reloaded("unchanged")
                return "unchanged"
            if patient and self._is_held(configuration, before, began, events):
                return "held"
            self._put_in_force(after, began, events)
        except ConfigError as error:
            self._held = None
            self._reject(error, events)
            raise
        return "applied"

    def _put_in_force(self, after: Snapshot, began: float, events: list[Event]) -> None:
        """Publish the URLs of *after*, make it the snapshot, and do what follows from that; or do none of it.

        Raises:
            ConfigError: Another instance claims one of the URLs.
        """
        before = self.snapshot

        def tell() -> None:
            self.service.reloaded("applied")
            events.append(_applied(before, after, files=self._files, duration_s=self._clock() - began))
            events.extend(self.announcements())

        drain_at = began + after.configuration.reload.drain_s
        try:
            self._publish(after)
            carry_out(
                (*self._steps_to(after, events, drain_at=drain_at), tell),
                doing="put a new configuration in force",
            )
        except BaseException:
            # An interrupt came in between: calls by URL would go by rules that no instance owns.
            if self.snapshot is before:
                carry_out((lambda: self._publish(before),), doing="put the old configuration back")
            raise

    def _steps_to(
        self, after: Snapshot, events: list[Event], *, drain_at: float
    ) -> tuple[Callable[[], object], ...]:
        """What makes *after* the snapshot: the swap, the state that follows it, and the end of the pools it lacks."""
        before = self.snapshot

        def swap() -> None:
            self.snapshot, self._is_stopped = after, False
            self._held = self.refused = None

        def take_force(upstream: Upstream) -> None:
            events.extend(upstream.take_force(self._clock()))

        def follow_secrets() -> None:
            self.secrets.adopt(after.configuration.secret_texts, tell=events.append)

        return (
            swap,
            follow_secrets,
            *(functools.partial(take_force, upstream) for upstream in changed_upstreams(before, after)),
            lambda: self._drain(retired_endpoints(before, after), drain_at),
            self._rotate_draining,
            lambda: self.rotations.follow(after.upstreams, now=self._clock(), now_s=after.loaded_at),
        )

    def _rotate_draining(self) -> None:
        """Have the pools that drain let go of what was made with other TLS files than new connections are."""

        def rotate(one: _Draining) -> None:
            if one.endpoint.tls is not None:
                one.endpoint.pool.rotate(one.endpoint.tls.plan)

        each(self._draining, rotate, doing="have a pool that drains go by new TLS files")

    def _read(self, previous: Snapshot | None, *, anew: bool = False) -> tuple[Configuration, Snapshot]:
        """What the files say, and the snapshot of it: *previous* where they say what is in force, unless *anew*.

        They are read again if one with a certificate, key or CA was written meanwhile: what is built must be what was
        read. Whoever goes on writing, has the last good material kept at last.

        Raises:
            ConfigError: The files have problems.
        """
        for left in reversed(range(MOST_READINGS)):
            configuration = self._load()
            is_known = previous is not None and configuration.digest == previous.digest
            if previous is not None and is_known and not (anew or self._may_pass(previous)):
                return configuration, previous
            try:
                after = self._build(configuration, previous)
            except ConfigError as error:
                if left and isinstance(error.__cause__, TlsChanged):
                    continue
                raise
            if not (left and self._may_pass(after)):
                break
        return configuration, after

    @staticmethod
    def _may_pass(snapshot: Snapshot) -> bool:
        return any(one.material is not None and one.material.may_pass for one in snapshot.upstreams.values())

    def _build(self, configuration: Configuration, previous: Snapshot | None) -> Snapshot:
        try:
            return build_snapshot(
                configuration,
                previous=previous,
                override=self._override,
                counters=self.counters,
                service=self.service,
                secrets=self.secrets,
                loaded_at=time.time(),
                is_stopped=self._is_stopped,
            )
        except TlsError as error:
            problem = Problem(", ".join(self._files), 0, 0, "", str(error))
            raise ConfigError(str(error), problems=(problem,), watched=configuration.watched) from error

    def _drain(self, retired: list[tuple[str, Endpoint]], stop_at: float) -> None:
        known = {id(one.endpoint) for one in self._draining}  # after an interrupt this is done again
        new = [_Draining(name, endpoint, stop_at) for name, endpoint in retired if id(endpoint) not in known]
        self._draining = [*self._draining, *new]
        each(retired, lambda one: one[1].pool.leases.retire(), doing="retire a pool")

    def _is_held(
        self, configuration: Configuration, before: Snapshot, now: float, events: list[Event]
    ) -> bool:
        removed = [name for name in before.upstreams if name not in configuration.upstreams]
        if len(before.upstreams) < 4 or len(removed) * 2 <= len(before.upstreams):
            return False
        if self._held is None or self._held.digest != configuration.digest:
            self._held = _Held(configuration.digest, now)
            self.service.reloaded("held")
            events.append(
                ConfigHeld(
                    files=self._files,
                    removed=tuple(removed),
                    upstreams=len(before.upstreams),
                    hold_s=HOLD_S,
                )
            )
            return True
        return now - self._held.since < HOLD_S

    def _reject(self, error: ConfigError, events: list[Event]) -> None:
        self.service.reloaded("rejected")
        self.refused = _Rejection(str(error), time.time())
        events.append(
            ConfigRejected(
                files=self._files,
                problems=str(error),
                problem_count=max(1, len(error.problems)),
                digest_in_force=self.snapshot.digest[:12],
                loaded_at=time.strftime("%H:%M:%S", time.localtime(self.snapshot.loaded_at)),
            )
        )


def _stop(endpoint: Endpoint) -> None:
    """End a pool: its idle connections are closed, its waiting calls refused."""
    endpoint.pool.close()
    endpoint.pool.leases.stop()


def _look_after(name: str, endpoint: Endpoint, now: float) -> None:
    """Close idle connections that are over, adapt the pool's size, log what its leases report. Blocks shortly."""
    endpoint.pool.leases.tend(now)
    if endpoint.sizer is not None:
        endpoint.sizer.looked(now)
    report_leases(name, endpoint.pool.leases)


def _applied(
    before: Snapshot, after: Snapshot, *, files: tuple[str, ...], duration_s: float
) -> ConfigApplied:
    old, new = before.upstreams, after.upstreams
    kept = [name for name in new if name in old]
    changed = tuple(upstream.plan.name for upstream in changed_upstreams(before, after))
    return ConfigApplied(
        files=files,
        digest=after.digest[:12],
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=changed,
        unchanged=len(kept) - len(changed),
        duration_s=duration_s,
    )
