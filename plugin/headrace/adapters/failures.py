"""What an exception of urllib3 or requests says about the attempt that it ended: for both surfaces."""

from __future__ import annotations

from collections.abc import Callable

from urllib3.exceptions import ProtocolError

from headrace.engine.surface import Failure
from headrace.policy.attempt_end import Phase
from headrace.policy.outcome import Fault
from headrace.transport.attempt import Attempt
from headrace.transport.stock.faults import advice_on, callers_own, fault_of, mismatch_in, phase_of
from headrace.transport.stock.garbage import told_as_broken


def failure_of(
    error: Exception, attempt: Attempt, *, presents: bool, as_broken: Callable[[ProtocolError], Exception]
) -> Failure:
    """What *error* says about *attempt*, and which error the caller gets.

    Args:
        presents: The rules of the upstream have a client certificate.
        as_broken: What the library makes of an answer that broke off. For an *error* that is arithmetic over garbage.
    """
    fault, cut = fault_of(error, attempt.phase)
    own: Exception | None = attempt.own_error
    if own is None and fault is Fault.LOCAL_ERROR:
        own = callers_own(error)
    broken = told_as_broken(error)
    return Failure(
        fault,
        cut,
        as_broken(broken) if isinstance(broken, ProtocolError) and broken is not error else error,
        own,
        advice_on(error, attempt.phase, presents=presents) if fault is Fault.CERTIFICATE else None,
        mismatch_in(error) if fault is Fault.CERTIFICATE else None,
    )


def facts_of(error: BaseException) -> tuple[Fault, bool, Phase]:
    """What *error* of a call that stock has made says: its fault, whether a limit was hit, how far the call got."""
    phase = phase_of(error)
    return *fault_of(error, phase), phase


def as_it_is(cause: ProtocolError) -> ProtocolError:
    """*cause*: what urllib3 itself raises."""
    return cause


def broken_off(text: str) -> ProtocolError:
    """What urllib3 raises where the connection has ended in the middle of the answer."""
    return ProtocolError(text, ConnectionAbortedError(text))
