"""Who ended an attempt that has no answer: its caller, the client it is made for, headrace itself, a timer, the peer.

Several of them may be involved: a timer shuts the connection, and the library's error
then looks like a reset. One function decides which of them counts, so that every driver says the same. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, Literal

from headrace.policy.frozen import frozen
from headrace.policy.outcome import Fault

Phase = Literal["lease", "dns", "tcp", "tls", "sent"]
"""How far an attempt got; "sent" from the moment a byte may have left."""

CUT_IN: Final[Mapping[Phase, Fault]] = MappingProxyType(
    {
        "lease": Fault.TIMEOUT,  # something in front of the connection took all the time
        "dns": Fault.RESOLVE_TIMEOUT,
        "tcp": Fault.CONNECT_FAILURE,
        "tls": Fault.TLS_FAILURE,
        "sent": Fault.TIMEOUT,
    }
)
"""The fault of an attempt that was cut off, by how far it had got. The error it broke with is our own doing."""


class EndedBy(Enum):
    """Who ended an attempt that has no answer."""

    CALLER = "caller"  # the caller's own code raised: a signal handler, the body of the request
    CLIENT = "client"  # the client that the call is made for has left, and the call was broken off
    OURSELVES = "ourselves"  # the connection was shut: its pool was stopped, its lifetime was over
    TIMER = "timer"  # it was cut off: the error it broke with says nothing
    PEER = "peer"  # or a limit of the socket: the library's error says which


@frozen
class AttemptEnd:
    """How an attempt without an answer ended.

    Attributes:
        by: Who ended it.
        fault: The same in the words of the rules.
        cut: A timer of ours ended it.
    """

    by: EndedBy
    fault: Fault
    cut: bool


def end_of(
    fault: Fault,
    phase: Phase,
    *,
    cut: bool,
    is_callers: bool,
    is_cancelled: bool,
    was_in_time: bool,
    was_shut: bool,
) -> AttemptEnd:
    """Who ended an attempt that got as far as *phase*, and what *fault* becomes by that.

    Args:
        fault, cut: What the exception says, taken by itself: the fault, and whether a limit of the socket was hit.
        is_callers: The error is of the caller's own code. It leaves as it is, even if our time was up.
        is_cancelled: The client that the call is made for has left, and the attempt was broken off for that.
        was_in_time: The timer had not cut the attempt off.
        was_shut: headrace shut the connection. Only asked where the attempt was in time.
    """
    if is_callers:
        return AttemptEnd(EndedBy.CALLER, Fault.LOCAL_ERROR, cut=False)
    if is_cancelled:
        return AttemptEnd(EndedBy.CLIENT, Fault.CANCELLED, cut=False)
    if was_in_time:
        return AttemptEnd(EndedBy.OURSELVES if was_shut else EndedBy.PEER, fault, cut)
    if cut or fault is Fault.CERTIFICATE:
        return AttemptEnd(EndedBy.PEER, fault, cut)  # the socket's own limit, or a verdict, came first
    return AttemptEnd(EndedBy.TIMER, CUT_IN[phase], cut=True)
