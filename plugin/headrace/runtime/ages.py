"""How old the secrets of each upstream are, and until when its certificates hold.

`Ages` asks the file system, at most every `LOOK_S` for each file, and keeps what it has found by the file's own times:
so a scrape of a thousand upstreams that share a certificate costs one stat(2). `warn` is asked by housekeeping and says
each thing once: 7 days and 1 day before a certificate ends, when it has ended, and when a secret is older than
`secrets.max_age`.

There is no lock: what is kept is replaced by single stores, and two threads that look at once find the same.
"""

from __future__ import annotations

import os
import ssl
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.observe.events import CertificateExpires, SecretOld
from headrace.observe.logs import emit
from headrace.policy.certificate import certificates_in, dates_of
from headrace.policy.plan import FilePart, UpstreamPlan

if TYPE_CHECKING:
    from headrace.observe.events import Event
    from headrace.policy.plan import Configuration

DAY_S: Final = 86400.0
AHEAD_S: Final = (7 * DAY_S, DAY_S)
"""How long before its end a certificate is warned of."""
LOOK_S: Final = 5.0
"""How long it is believed that a file has not changed."""
WARN_EVERY_S: Final = 60.0
MOST_BYTES: Final = 1 << 20
MOST_ROOTS: Final = 16
"""A CA file with more certificates is a public bundle: some root in it has always ended, or is about to."""


class Dates(NamedTuple):
    """From when and until when a certificate holds, seconds since 1970."""

    begins_at: float
    ends_at: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it was at the last look.

    Attributes:
        changed_at: Its mtime, seconds since 1970; None: it is not to be had.
        mark: What tells another content.
        dates: Of the certificate in it that ends first; None: there is none, too many, or nobody has asked.
    """

    looked_at: float
    mark: tuple[int, ...]
    changed_at: float | None
    dates: Dates | None


class Ages:
    """What the files of an instance tell by their dates. Thread-safe.

    Args:
        wall_clock: Seconds since 1970.
    """

    __slots__ = ("_certificates", "_files", "_told", "_wall_clock")

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._files: dict[str, _Seen] = {}
        self._certificates: dict[str, _Seen] = {}
        self._told: set[tuple[str, float, float]] = set()

    def certificates(self, plan: UpstreamPlan) -> dict[str, float]:
        """By kind (`client`, `ca`), when the first certificate of *plan* ends; seconds since 1970. Reads files."""
        found: dict[str, float] = {}
        for kind, path in _certificates_of(plan):
            dates = self._certificate(path).dates
            if dates is not None:
                found[kind] = dates.ends_at
        return found

    def secrets(self, plan: UpstreamPlan) -> dict[str, float]:
        """By kind (`header`, `key`), how old the oldest secret of *plan* is, seconds. Asks the file system."""
        now, found = self._wall_clock(), dict[str, float]()
        for kind, path in _secrets_of(plan):
            changed_at = self._file(path).changed_at
            if changed_at is not None:
                found[kind] = max(found.get(kind, 0.0), now - changed_at)
        return found

    def warn(self, configuration: Configuration, *, tell: Callable[[Event], object] = emit) -> None:
        """Say what has not been said: of certificates that end soon, and of secrets that are too old. Reads files."""
        now, told = self._wall_clock(), set[tuple[str, float, float]]()
        for (kind, path), names in _by_file(configuration.upstreams, _certificates_of).items():
            dates = self._certificate(path).dates
            if dates is None or (ahead_s := _due(dates, now)) is None:
                continue
            said = (path, dates.ends_at, ahead_s)
            told.add(said)
            if said not in self._told:
                tell(CertificateExpires(file=path, kind=kind, upstreams=names, left_s=dates.ends_at - now))
        longest_s = configuration.secrets.max_age_s
        for (kind, path), names in _by_file(configuration.upstreams, _secrets_of).items():
            changed_at = self._file(path).changed_at
            if longest_s is None or changed_at is None or now - changed_at <= longest_s:
                continue
            said = (path, changed_at, inf)
            told.add(said)
            if said not in self._told:
                tell(
                    SecretOld(
                        file=path, kind=kind, upstreams=names, age_s=now - changed_at, max_age_s=longest_s
                    )
                )
        self._told = told  # what is over, or has left the file, is forgotten
        files = {path for plan in configuration.upstreams.values() for _, path in _all_of(plan)}
        for known in (self._files, self._certificates):
            for path in known.keys() - files:
                known.pop(path, None)

    def _file(self, path: str) -> _Seen:
        return self._look(self._files, path, lambda: None)

    def _certificate(self, path: str) -> _Seen:
        return self._look(self._certificates, path, lambda: _first_to_end(path))

    def _look(self, known: dict[str, _Seen], path: str, read: Callable[[], Dates | None]) -> _Seen:
        now, before = self._wall_clock(), known.get(path)
        if before is not None and 0 <= now - before.looked_at < LOOK_S:
            return before
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            seen = _Seen(now, (), None, None)
        else:
            mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            # What was written just now may be written again within the same tick of the clock.
            is_same = (
                before is not None and before.mark == mark and before.looked_at - found.st_mtime > LOOK_S
            )
            dates = before.dates if before is not None and is_same else read()
            is_file = stat.S_ISREG(found.st_mode)
            seen = _Seen(now, mark, found.st_mtime if is_file else None, dates)
        known[path] = seen
        return seen


def _certificates_of(plan: UpstreamPlan) -> Iterator[tuple[str, str]]:
    if plan.tls is not None:
        if plan.tls.cert is not None:
            yield "client", plan.tls.cert
        if plan.tls.ca is not None:
            yield "ca", plan.tls.ca


def _secrets_of(plan: UpstreamPlan) -> Iterator[tuple[str, str]]:
    for header in plan.file_headers:
        for part in header.parts:
            if isinstance(part, FilePart):
                yield "header", part.path
    if plan.tls is not None and plan.tls.cert is not None:
        yield "key", plan.tls.cert if plan.tls.key is None else plan.tls.key


def _all_of(plan: UpstreamPlan) -> Iterator[tuple[str, str]]:
    yield from _certificates_of(plan)
    yield from _secrets_of(plan)


def _by_file(
    plans: Mapping[str, UpstreamPlan], files_of: Callable[[UpstreamPlan], Iterable[tuple[str, str]]]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """The upstreams of each file, by kind and path: a file that all of them share is told of once."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for name, plan in plans.items():
        for one in files_of(plan):
            found.setdefault(one, {})[name] = None
    return {one: tuple(names) for one, names in found.items()}


def _due(dates: Dates, now: float) -> float | None:
    """What is to be said now of a certificate: 0 (it has ended), or seconds of `AHEAD_S`; None: nothing.

    One that was made to live for hours is not warned of days ahead: it would be, for all its life.
    """
    left_s, whole_s = dates.ends_at - now, dates.ends_at - dates.begins_at
    if left_s <= 0.0:
        return 0.0
    return min((ahead_s for ahead_s in AHEAD_S if left_s <= ahead_s < whole_s / 2), default=None)


def _first_to_end(path: str) -> Dates | None:
    """The dates of the certificate in *path* that ends first; None: there is none, or it is a bundle."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError):
        return None
    found = certificates_in(content) if len(content) <= MOST_BYTES else []
    if not 0 < len(found) <= MOST_ROOTS:
        return None
    try:
        return min(
            (Dates(*dates_of(ssl.DER_cert_to_PEM_cert(der).encode())) for der in found),
            key=lambda dates: dates.ends_at,
        )
    except ValueError:
        return None
