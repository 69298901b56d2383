"""Handshakes tried ahead of `enforce`: the calls of an observed upstream go by stock's trust, not by its own.

They say nothing of its `tls`, for they go out without it. So one connection is made by the rules
of the file. If it is refused, and one that trusts what the stock libraries trust is not, then `enforce` would
break calls that work now: that is counted, and told with the issuer of the certificate.

`Foreteller` owns which handshakes were tried. It has no lock: one thread at a time calls `look` and `stop`, and these
touch what they share with the trying thread only while that is not alive.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable
from typing import TypeAlias

from headrace.clock import monotonic
from headrace.observe.events import TlsWouldRefuse
from headrace.observe.isolation import answers, each
from headrace.observe.logs import emit
from headrace.policy.counters import add
from headrace.policy.plan import Origin, TlsPlan
from headrace.runtime.state import Endpoint
from headrace.runtime.threads import AutoResetEvent, Life, ServiceThread
from headrace.runtime.upstream import Upstream, name_of
from headrace.transport.dial.refusals import refusal_in
from headrace.transport.dial.tls import issuer_of, stock_context

PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0
"""Seconds for which an upstream that was not reached is left alone: the first pause, which doubles; the longest."""

_Key: TypeAlias = tuple[str, Origin, TlsPlan]
_log = logging.getLogger("headrace")


class Foreteller:
    """Tries one handshake per observed upstream, on the daemon thread `headrace-foretell`, one after the other.

    A handshake is tried again when the `tls` rules, or the bytes of a file that they name, have changed; and where the
    upstream could not be reached, after 1, 2, 4, … at most 60 minutes. It is no call: circuit, budget and pool do not
    hear of it.
    """

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._thread = ServiceThread("headrace-foretell", clock=clock)
        self._tried: set[_Key] = set()
        self._pauses: dict[_Key, tuple[float, float]] = {}

    def in_child(self) -> Foreteller:
        """One for a forked child, which does not repeat what its parent has tried, or was trying."""
        child = Foreteller(clock=self._clock)
        child._tried = set(self._tried)
        return child

    def look(self, now: float, upstreams: Iterable[Upstream]) -> None:
        """Begin with those of *upstreams* that were not tried, unless that is under way. Does not block."""
        if self._thread.is_alive:
            return
        keyed = answers(upstreams, _key_of, doing="look at the tls of an upstream", of=name_of)
        found = {key: upstream for upstream, key in keyed if key is not None}
        self._tried &= found.keys()
        self._pauses = {key: pause for key, pause in self._pauses.items() if key in found}
        due = {
            key: upstream
            for key, upstream in found.items()
            if upstream.mode == "observe"
            and key not in self._tried
            and not 0.0 < self._pauses.get(key, (0.0, 0.0))[1] - now <= LONGEST_PAUSE_S
        }
        if due:
            self._tried |= due.keys()  # already now: a child that is forked meanwhile tries none of them
            try:
                self._thread.start(lambda ended: self._try(due, ended))
            except BaseException:  # no thread can be started
                self._tried -= due.keys()
                raise

    def stop(self) -> None:
        """Try no more. Blocks until the handshake under way is over, a second at most. Idempotent."""
        self._thread.stop(timeout_s=1.0)

    def life(self) -> Life:
        """The sign of life of the thread."""
        return self._thread.life()

    def _try(self, due: dict[_Key, Upstream], ended: AutoResetEvent) -> None:
        def try_one(one: tuple[_Key, Upstream]) -> None:
            key, upstream = one
            if ended.was_set:
                self._tried.discard(key)
                return
            self._thread.looked()
            try:
                _foretell(upstream)
            except Exception as error:
                pause_s = min(2 * self._pauses.get(key, (PAUSE_S / 2, 0.0))[0], LONGEST_PAUSE_S)
                self._pauses[key] = pause_s, self._clock() + pause_s
                self._tried.discard(key)
                _log.debug("no handshake with %s to foretell by, again in %g s: %s", key[1], pause_s, error)

        each(due.items(), try_one, doing="foretell a handshake", of=lambda one: one[0][0])


def _secure_endpoint(upstream: Upstream) -> Endpoint | None:
    return next((one for one in upstream.endpoints if one.origin.scheme == "https"), None)


def _key_of(upstream: Upstream) -> _Key | None:
    """What a trial is remembered by; None: nothing is to be tried at this origin of *upstream*."""
    plan, endpoint = upstream.plan, _secure_endpoint(upstream)
    if plan.tls is None or not plan.tls.verify or endpoint is None or endpoint is not upstream.endpoint:
        return None
    return plan.name, endpoint.origin, plan.tls


def _foretell(upstream: Upstream) -> None:
    """Try the handshake of *upstream*, and tell if it alone is refused. Blocks: for two connections at most.

    Raises:
        Exception: The upstream could not be reached, which says nothing of its certificate.
    """
    pool = upstream.endpoint.pool
    try:
        pool.try_connection()
        return
    except ssl.SSLError as error:
        is_refusal = isinstance(error, ssl.SSLCertVerificationError) or refusal_in(error, amid_handshake=True)
        if not is_refusal:
            raise
        reason = (
            getattr(error, "verify_message", "")
            or (getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
        )
    try:
        certificate = pool.try_connection(stock_context())
    except ssl.SSLError:
        return  # stock refuses it as well: enforce would change nothing
    counters = upstream.learned.counters
    with counters.lock:
        add(counters.observed, "tls_refused")
    emit(
        TlsWouldRefuse(
            upstream=upstream.plan.name,
            host=f"{pool.origin.host}:{pool.origin.port}",
            issuer=issuer_of(certificate),
            reason=reason,
        )
    )
