"""How old the secrets of each upstream are, and until when its certificates hold.

Of certificates the plan tells: what is in force may be older than what its file holds by now, where that was refused.
How old a secret is, the file system says. It is asked for each file once in `LOOK_S` at the most: so a scrape of a
thousand upstreams that share a token costs one stat(2). `warn` is asked by housekeeping and says each thing once: 7
days and 1 day before a certificate ends, when it has ended, and when a secret is older than `secrets.max_age`.

There is no lock: what is kept is replaced by single stores, and two threads that look at once find the same.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from headrace.observe.events import CertificateExpires, SecretOld
from headrace.observe.logs import emit
from headrace.policy.certificate import Dates
from headrace.policy.plan import UpstreamPlan

if TYPE_CHECKING:
    from headrace.observe.events import Event

T = TypeVar("T")

DAY_S: Final = 86400.0
AHEAD_S: Final = (7 * DAY_S, DAY_S)
"""How long before its end a certificate is warned of."""
LOOK_S: Final = 5.0
"""How long it is believed that a file has not changed."""
WARN_EVERY_S: Final = 60.0


class _Certificate(NamedTuple):
    """One in force: that of its file which ends first."""

    kind: str
    path: str
    dates: Dates


class _Secret(NamedTuple):
    """A file with a secret in it."""

    kind: str
    path: str


class Ages:
    """What the certificates and the files of an instance tell by their dates. Thread-safe.

    Args:
        wall_clock: Seconds since 1970.
    """

    __slots__ = ("_told", "_wall_clock", "_written")

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._written: dict[
            str, tuple[float, float | None]
        ] = {}  # when it was looked at, when it was written
        self._told: set[tuple[str, float, float]] = set()

    def certificates(self, plan: UpstreamPlan) -> dict[str, float]:
        """By kind (`client`, `ca`), when the first certificate of *plan* ends; seconds since 1970."""
        return {one.kind: float(one.dates.ends_at) for one in _certificates_of(plan)}

    def secrets(self, plan: UpstreamPlan) -> dict[str, float]:
        """By kind (`header`, `key`, `key_passphrase`), how old the oldest secret of *plan* is, seconds.

        Asks the file system.
        """
        now, found = self._wall_clock(), dict[str, float]()
        for kind, path in _secrets_of(plan):
            written_at = self._written_at(path)
            if written_at is not None:
                found[kind] = max(found.get(kind, 0.0), now - written_at)
        return found

    def warn(
        self,
        plans: Collection[UpstreamPlan],
        *,
        max_age_s: float | None,
        tell: Callable[[Event], object] = emit,
    ) -> None:
        """Say what has not been said: of certificates that end soon, and of secrets that are too old.

        Asks the file system.

        Args:
            plans: Of all upstreams, as they are in force.
            max_age_s: Older secrets are too old; None: none is.
        """
        now, told = self._wall_clock(), set[tuple[str, float, float]]()
        for (kind, path, dates), names in _by_file(plans, _certificates_of).items():
            if (ahead_s := _due(dates, now)) is None:
                continue
            said = (path, float(dates.ends_at), ahead_s)
            told.add(said)
            if said not in self._told:
                tell(CertificateExpires(file=path, kind=kind, upstreams=names, left_s=dates.ends_at - now))
        secrets = _by_file(plans, _secrets_of)
        for (kind, path), names in secrets.items():
            written_at = self._written_at(path)
            if max_age_s is None or written_at is None or now - written_at <= max_age_s:
                continue
            said = (path, written_at, inf)
            told.add(said)
            if said not in self._told:
                tell(
                    SecretOld(
                        file=path, kind=kind, upstreams=names, age_s=now - written_at, max_age_s=max_age_s
                    )
                )
        self._told = told  # what is over, or has left the file, is forgotten
        for path in self._written.keys() - {path for _, path in secrets}:
            self._written.pop(path, None)

    def _written_at(self, path: str) -> float | None:
        """When the file *path* was written, seconds since 1970; None: it is not to be had, or is no file."""
        now, before = self._wall_clock(), self._written.get(path)
        if before is not None and 0 <= now - before[0] < LOOK_S:
            return before[1]
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            written_at = None
        else:
            written_at = found.st_mtime if stat.S_ISREG(found.st_mode) else None
        self._written[path] = now, written_at
        return written_at


def _certificates_of(plan: UpstreamPlan) -> Iterator[_Certificate]:
    tls = plan.tls
    if tls is not None:
        if tls.cert is not None and tls.cert_dates is not None:
            yield _Certificate("client", tls.cert, tls.cert_dates)
        if tls.ca is not None and tls.ca_dates is not None:
            yield _Certificate("ca", tls.ca, tls.ca_dates)


def _secrets_of(plan: UpstreamPlan) -> Iterator[_Secret]:
    for one in plan.secret_files:
        yield _Secret(one.kind, one.path)
    if plan.tls is not None and plan.tls.cert is not None:
        yield _Secret("key", plan.tls.cert if plan.tls.key is None else plan.tls.key)


def _by_file(
    plans: Iterable[UpstreamPlan], of: Callable[[UpstreamPlan], Iterable[T]]
) -> dict[T, tuple[str, ...]]:
    """The upstreams of each thing that *of* finds: a file that all of them share is told of once."""
    found: dict[T, dict[str, None]] = {}
    for plan in plans:
        for one in of(plan):
            found.setdefault(one, {})[plan.name] = None
    return {one: tuple(names) for one, names in found.items()}


def _due(dates: Dates, now: float) -> float | None:
    """What is to be said now of a certificate: 0 (it has ended), or seconds of `AHEAD_S`; None: nothing.

    One that was made to live for hours is not warned of days ahead: it would be, for all its life.
    """
    left_s, whole_s = dates.ends_at - now, dates.ends_at - dates.begins_at
    if left_s <= 0.0:
        return 0.0
    return min((ahead_s for ahead_s in AHEAD_S if left_s <= ahead_s < whole_s / 2), default=None)
