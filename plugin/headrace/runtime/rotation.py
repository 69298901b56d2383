"""TLS files whose contents change under the same rules: taken by the pools that there are, or refused.

An edit of what a file holds is no edit of the rules. So the connections follow it: new ones are made with the new
material, those of the old are closed as they come back (`LeasePool.rotate`). What cannot be taken (a pair that does not
match, since one of its two files is still to be written; a certificate that has expired; a file that is not there)
leaves this one upstream with the last good material, and is nobody else's business.

`material_for` decides, while nothing is in force yet. `Rotations` knows what is in force since when, and what was
refused; `Reloader._lock` guards it. Reading it needs no lock: each entry is one reference, replaced as a whole.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from headrace.observe.events import TlsRotationRefused
from headrace.observe.readings import TlsReading
from headrace.policy.counters import add
from headrace.policy.frozen import frozen
from headrace.policy.plan import TlsPlan, UpstreamPlan
from headrace.transport.dial.tls import TlsChanged, TlsError, context_for

if TYPE_CHECKING:
    from headrace.runtime.upstream import Upstream

LOUD_AFTER_S: Final = 2.0
"""Seconds that a refusal must stand before it is told. While two files are written one after the other, they do not
match: that is the normal way of things, and over soon."""


@frozen
class Material:
    """What an upstream of one snapshot trusts and presents.

    Attributes:
        context: It is held here: else it might be gone, and the files changed, by the time at which a pool follows.
        refused: Why the files of now were not taken, and what was in force before still is; None: they were.
        may_pass: The files were written while they were read: to read them again may help.
    """

    context: ssl.SSLContext
    refused: str | None = None
    may_pass: bool = False


def material_for(
    plan: UpstreamPlan, *, in_force: UpstreamPlan | None, refused: str | None, now_s: float
) -> tuple[UpstreamPlan, Material | None]:
    """*plan* with the TLS material that can be taken, and that; None where it has no TLS. Blocks: reads the files.

    Args:
        in_force: The plan that the upstream goes by so far; None: the name is new.
        refused: Why not even the files of *plan* could be read, so that it has those of an earlier load.
        now_s: Epoch seconds.

    Raises:
        TlsError: The files cannot be loaded, and these paths have held nothing good before.
    """
    if plan.tls is None:
        return plan, None
    last = None if in_force is None else in_force.tls
    if last is not None and not plan.tls.has_policy_of(last):
        last = None
    may_pass = False
    if refused is None or last is None:
        try:
            _look_at_dates(plan.tls, last, now_s)
            return plan, Material(context_for(plan.tls))
        except TlsError as error:
            if last is None:
                raise
            refused, may_pass = str(error), isinstance(error, TlsChanged)
    kept = replace(plan, tls=replace(last, rotation_drain_s=plan.tls.rotation_drain_s))
    return kept, Material(context_for(last), refused, may_pass)


def _look_at_dates(tls: TlsPlan, last: TlsPlan | None, now_s: float) -> None:
    """Raise if *tls* has a certificate that has expired, and *last* one that has not."""
    if _has_expired(tls, now_s) and last is not None and not _has_expired(last, now_s):
        assert tls.certificate is not None
        raise TlsError(
            f"{tls.cert}: this certificate has expired ({_instant(tls.certificate.not_after)}), "
            "and the one in force has not\n    put one in place that holds"
        )


def _has_expired(tls: TlsPlan, now_s: float) -> bool:
    return tls.certificate is not None and now_s >= tls.certificate.not_after


def _instant(epoch_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(epoch_s))


@frozen
class _Standing:
    """What is in force of one upstream.

    Attributes:
        since_s: Epoch seconds.
        refused_at: Monotonic; when that began.
        refused_since_s: Epoch seconds.
        told: What was told of it last.
    """

    tls: TlsPlan
    since_s: float
    refused: str | None = None
    refused_at: float = 0.0
    refused_since_s: float = 0.0
    told: str | None = None


class Rotations:
    """What is in force of each upstream's TLS files, since when, and what was refused. Guarded by its owner."""

    def __init__(self) -> None:
        self._standing: dict[str, _Standing] = {}
        self._is_pending = False

    def follow(self, upstreams: Mapping[str, Upstream], *, now: float, now_s: float) -> None:
        """Note what *upstreams*, which are in force from *now* on, go by. *now_s*: the same in epoch seconds."""
        found = {}
        for name, upstream in upstreams.items():
            if upstream.plan.tls is not None and upstream.material is not None:
                before = self._standing.get(name)
                found[name] = _next(before, upstream.plan.tls, upstream.material.refused, now, now_s)
        self._standing = found
        self._is_pending = any(one.refused != one.told for one in found.values())

    @property
    def is_pending(self) -> bool:
        """Whether there is something refused that was not told yet."""
        return self._is_pending

    def due(self, now: float, upstreams: Iterable[Upstream]) -> list[TlsRotationRefused]:
        """What was refused and has stood for LOUD_AFTER_S: counted, and to be logged. Once for each reason. Mutates."""
        events = []
        for upstream in upstreams:
            name = upstream.plan.name
            one = self._standing.get(name)
            if one is None or one.refused is None or one.refused == one.told:
                continue
            if now - one.refused_at < LOUD_AFTER_S:
                continue
            self._standing[name] = replace(one, told=one.refused)
            with upstream.learned.counters.lock:
                add(upstream.learned.counters.rotations, "refused")
            certificate = one.tls.certificate
            events.append(
                TlsRotationRefused(
                    upstream=name,
                    reason=one.refused,
                    in_force=None if certificate is None else certificate.print,
                    not_after_s=None if certificate is None else certificate.not_after,
                )
            )
        self._is_pending = any(one.refused != one.told for one in self._standing.values())
        return events

    def move(self, step_s: float) -> None:
        """Move the beginnings of what was refused by *step_s*: the clock was stepped back (failures.md 69). Mutates."""
        self._standing = {
            name: replace(one, refused_at=one.refused_at + step_s) for name, one in self._standing.items()
        }

    def of(self, name: str) -> TlsReading | None:
        """What is in force of the upstream called *name*; None: it has no TLS. Needs no lock."""
        one = self._standing.get(name)
        if one is None:
            return None
        certificate = one.tls.certificate
        return TlsReading(
            certificate=None if certificate is None else certificate.print,
            not_before_s=None if certificate is None else certificate.not_before,
            not_after_s=None if certificate is None else certificate.not_after,
            since_s=one.since_s,
            refused=one.refused,
            refused_since_s=None if one.refused is None else one.refused_since_s,
        )


def _next(before: _Standing | None, tls: TlsPlan, refused: str | None, now: float, now_s: float) -> _Standing:
    if before is None or before.tls.fingerprint != tls.fingerprint or not tls.has_policy_of(before.tls):
        before = _Standing(tls, since_s=now_s)
    if refused is None:
        return _Standing(tls, before.since_s)
    if before.refused is None:
        return _Standing(tls, before.since_s, refused, refused_at=now, refused_since_s=now_s)
    return replace(before, tls=tls, refused=refused)
