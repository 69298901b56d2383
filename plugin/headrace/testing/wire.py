"""One scripted attempt: what the transport would have reported of what the script says."""

from __future__ import annotations

from collections.abc import Callable

from requests import Response

from headrace.policy.decision import Renew, Resend, Send
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import UpstreamPlan
from headrace.policy.retry import RETRY_AFTER_FROM
from headrace.testing.clock import VirtualClock
from headrace.testing.script import Reply, Script

_NEVER_SENT = frozenset(
    {Fault.DNS_FAILURE, Fault.RESOLVE_TIMEOUT, Fault.CONNECT_FAILURE, Fault.TLS_FAILURE, Fault.CERTIFICATE}
)

_CUT = {Fault.CERTIFICATE: Fault.TLS_FAILURE, Fault.DNS_FAILURE: Fault.RESOLVE_TIMEOUT}
"""What becomes of them where the limit comes first."""


class CallerLeft(BaseException):
    """A caller that goes away, as the engine sees it: neither an answer nor an error of the attempt."""


class ScriptedAttempt:
    """A `Performer` that plays a script, cut where the limits of *plan* would have cut it.

    Args:
        tell: It is told of each attempt when that is over.

    Attributes:
        sent: Attempts of which at least a byte may have arrived; count.
    """

    __slots__ = (
        "_clock",
        "_failures",
        "_is_failure",
        "_script",
        "_tell",
        "_timeouts",
        "sent",
    )

    def __init__(
        self,
        plan: UpstreamPlan,
        script: Script,
        clock: VirtualClock,
        tell: Callable[[str], None],
    ) -> None:
        self._timeouts = plan.timeouts
        self._is_failure = plan.circuit_breaker.failure_if
        self._failures = plan.circuit_breaker.failure_on.statuses
        self._script = script
        self._clock = clock
        self._tell = tell
        self.sent = 0

    def perform(self, send: Send) -> Outcome:
        """Meet the next reply. Advances the clock.

        Raises:
            ScriptExhausted: There is none.
            CallerLeft: The reply says that the caller goes away.
        """
        outcome, body = self._meet(send)
        self._clock.advance(outcome.wait_s + outcome.duration_s)
        self._tell(f"attempt {send.attempt}: {outcome.status or outcome.label}")
        if outcome.status is not None:
            outcome.condemned = self._is_condemned(outcome.status, body)
        if outcome.fault is Fault.CANCELLED:
            raise CallerLeft
        return outcome

    def resend(self, resend: Resend) -> Outcome | None:
        """Nothing to do: no connection is reused."""
        return None

    def renew(self, renew: Renew) -> bool:
        """False: no file is read."""
        return False

    def meet(self, send: Send | Resend) -> Outcome:
        """What becomes of the attempt, as it will be known after its time. The clock stands still, and nothing is told.

        Raises:
            ScriptExhausted: There is no reply.
        """
        outcome, body = self._meet(send)
        if outcome.status is not None:
            outcome.condemned = self._is_condemned(outcome.status, body)
        return outcome

    def _meet(self, send: Send | Resend) -> tuple[Outcome, bytes]:
        met = self._script.next(self._clock.now)
        outcome = self._outcome(met, send.timeout_s, send.patience_s if isinstance(send, Send) else 0.0)
        outcome.started_s = self._clock.now
        self.sent += outcome.sent
        return outcome, met.body

    def set_aside(self) -> None:
        """Nothing is held: there is no connection."""

    def _outcome(self, met: Reply, limit_s: float, patience_s: float) -> Outcome:
        what, takes_s = met.what, met.takes_s
        if what is Fault.POOL_TIMEOUT:
            return Outcome(fault=what, wait_s=patience_s)
        if what is Fault.POOL_REJECTED or what is Fault.LOCAL_ERROR:
            return Outcome(fault=what)
        if isinstance(what, Fault) and what in _NEVER_SENT:
            timeouts = self._timeouts
            # Where one step fails, no time passes in those before it.
            if what in (Fault.DNS_FAILURE, Fault.RESOLVE_TIMEOUT):
                step_s = min(timeouts.resolve_s, timeouts.connect_s)
            elif what is Fault.CONNECT_FAILURE:
                step_s = timeouts.connect_s
            else:
                step_s = timeouts.tls_handshake_s
            connect_s = min(step_s, limit_s)
            if takes_s <= connect_s and what is not Fault.RESOLVE_TIMEOUT:
                return Outcome(fault=what, connect_s=takes_s, duration_s=takes_s)
            # The identity of the peer comes to light only at the end of the handshake.
            late, duration_s = _CUT.get(what, what), min(takes_s, connect_s)
            return Outcome(fault=late, cut=True, connect_s=duration_s, duration_s=duration_s)
        # Nothing comes before the answer, so all of this time is silence.
        answer_s = min(self._timeouts.read_s, limit_s)
        if what is Fault.TIMEOUT or takes_s > answer_s:
            duration_s = min(takes_s, answer_s)
            return Outcome(fault=Fault.TIMEOUT, sent=True, cut=True, connect_s=0.0, duration_s=duration_s)
        if isinstance(what, Fault):
            return Outcome(fault=what, sent=True, connect_s=0.0, duration_s=takes_s)
        return Outcome(
            status=what,
            sent=True,
            connect_s=0.0,
            duration_s=takes_s,
            retry_after_s=met.retry_after_s if what >= RETRY_AFTER_FROM else None,
        )

    def _is_condemned(self, status: int, body: bytes) -> bool:
        """Whether `failure_if` calls the answer a failure. Where it raises: False, and told, as in a real call."""
        if self._is_failure is None or status in self._failures:
            return False
        try:
            return bool(self._is_failure(_response(status, body)))
        except Exception as error:
            self._tell(f"failure_if raised {type(error).__name__}: the answer counts by its status alone")
            return False


def _response(status: int, body: bytes) -> Response:
    """The answer for `failure_if`: a `requests.Response` with nothing but a status and a body."""
    response = Response()
    response.status_code = status
    response._content = body
    return response
