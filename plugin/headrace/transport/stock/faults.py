"""What an exception says about the attempt that it ended: the transport's edge.

requests and urllib3 wrap causes in `args`, `reason` and `__cause__`, in several
layers. The innermost exception that means something is the fault.
"""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from collections.abc import Iterator
from types import TracebackType

from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    InvalidChunkLength,
    InvalidHeader,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util.ssl_match_hostname import CertificateError

from headrace.policy.attempt_end import Phase
from headrace.policy.outcome import Fault
from headrace.transport.dial.identity import IdentityError
from headrace.transport.dial.refusals import refusal_in
from headrace.transport.foreign import is_foreign
from headrace.transport.stock.body import BodyTooLarge
from headrace.transport.stock.garbage import is_framed_by_garbage, is_garbage

_OUR_OWN_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


def fault_of(error: BaseException, phase: Phase) -> tuple[Fault, bool]:
    """The fault that *error* stands for, and whether a timer of ours cut the attempt.

    Args:
        error: The exception that urllib3 or requests raised.
        phase: How far the attempt had got then.
    """
    if not isinstance(error, Exception):
        return Fault.CANCELLED, False
    if isinstance(error, BodyTooLarge):
        return Fault.RESPONSE_TOO_LARGE, False
    if phase == "lease" or callers_own(error) is not None:
        return Fault.LOCAL_ERROR, False  # nothing was attempted yet: bad URL, bad CA path, bad body …
    for cause in _innermost_first(error):
        found = known_fault(cause, phase)
        if found is not None:
            return found
    return Fault.LOCAL_ERROR, False


def callers_own(error: BaseException) -> OSError | None:
    """The error of the caller's own code (a signal handler's, a body's) that *error* is or wraps, or None."""
    for cause in _innermost_first(error):
        if isinstance(cause, OSError) and is_foreign(cause):
            return cause
    return None


def phase_of(error: BaseException) -> Phase:
    """How far an attempt over a foreign pool had got, as far as *error* tells; "sent" where in doubt."""
    causes = tuple(_innermost_first(error))
    if any(isinstance(cause, NameResolutionError) for cause in causes):
        return "dns"
    if any(isinstance(cause, ConnectTimeoutError) for cause in causes):
        return "tcp"  # NewConnectionError is one of these, too
    if any(_came_during_handshake(cause.__traceback__) for cause in causes):
        return "tls"
    return "sent"


def _came_during_handshake(trace: TracebackType | None) -> bool:
    while trace is not None:
        if trace.tb_frame.f_code is ssl.SSLSocket.do_handshake.__code__:
            return True
        trace = trace.tb_next
    return False


def advice_on(error: BaseException, phase: Phase, *, presents: bool) -> str | None:
    """What is wrong and what to do, where *error* is a refusal of TLS that will not change; else None.

    Args:
        presents: A client certificate is configured.
    """
    for cause in _innermost_first(error):
        refusal = refusal_in(cause, amid_handshake=phase == "tls")
        if refusal is not None:
            return refusal.presenting if presents and refusal.presenting is not None else refusal.advice
    return None


def mismatch_in(error: BaseException) -> IdentityError | None:
    """The certificate of somebody else than the rules accept, where *error* is or wraps that; else None."""
    return next((one for one in _innermost_first(error) if isinstance(one, IdentityError)), None)


def known_fault(cause: BaseException, phase: Phase) -> tuple[Fault, bool] | None:
    """The fault that *cause* by itself stands for, and whether a timer of ours cut it; None: it says nothing."""
    if isinstance(cause, (ssl.SSLCertVerificationError, CertificateError)):
        return Fault.CERTIFICATE, False
    if refusal_in(cause, amid_handshake=phase == "tls") is not None:
        return Fault.CERTIFICATE, False
    if isinstance(cause, LocationValueError):
        return Fault.LOCAL_ERROR, False
    if isinstance(cause, socket.gaierror):  # its numbers are of another kind
        return (Fault.DNS_FAILURE, False) if phase == "dns" else None
    if isinstance(cause, OSError) and cause.errno in _OUR_OWN_SHORTAGE:
        return Fault.LOCAL_ERROR, False
    # The kernel's ETIMEDOUT is the network's verdict and has an errno. A socket limit of ours has none.
    cut = isinstance(cause, TimeoutError) and cause.errno is None
    if phase == "dns":
        if isinstance(cause, NewConnectionError):
            return Fault.DNS_FAILURE, False
        if isinstance(cause, (OSError, ConnectTimeoutError)):
            late = cut or isinstance(cause, ConnectTimeoutError)
            return (Fault.RESOLVE_TIMEOUT, True) if late else (Fault.DNS_FAILURE, False)
        return None
    if phase == "tcp":
        if isinstance(cause, NewConnectionError):
            return Fault.CONNECT_FAILURE, False
        if isinstance(cause, (OSError, ConnectTimeoutError)):
            return Fault.CONNECT_FAILURE, cut or isinstance(cause, ConnectTimeoutError)
        return None
    if phase == "tls":
        if isinstance(cause, (OSError, SSLError, ReadTimeoutError)):
            return Fault.TLS_FAILURE, cut or isinstance(cause, ReadTimeoutError)
        return None
    if cut or isinstance(cause, ReadTimeoutError):
        return Fault.TIMEOUT, True
    if isinstance(cause, InvalidChunkLength):
        # An empty length means that the stream ended where a chunk should begin: a truncated body, not bad framing.
        return (Fault.RESET if not cause.length else Fault.PROTOCOL_ERROR), False
    if is_garbage(cause) or isinstance(cause, InvalidHeader):  # the latter: lengths that differ
        return Fault.PROTOCOL_ERROR, False
    if isinstance(cause, http.client.IncompleteRead) and is_framed_by_garbage(cause):
        return Fault.PROTOCOL_ERROR, False
    if isinstance(cause, (http.client.IncompleteRead, OSError)):
        return (
            Fault.RESET,
            False,
        )  # RemoteDisconnected is a ConnectionResetError too, not only a BadStatusLine
    if isinstance(cause, http.client.ImproperConnectionState):
        return Fault.LOCAL_ERROR, False
    if isinstance(cause, ProtocolError) and "ended prematurely" in str(cause):
        return (
            Fault.RESET,
            False,
        )  # urllib3's words for a stream that ends between two chunks; there is no type for it
    if isinstance(cause, (http.client.HTTPException, DecodeError, ProtocolError)):
        return Fault.PROTOCOL_ERROR, False
    return None


def _innermost_first(error: BaseException) -> Iterator[BaseException]:
    """The exceptions nested in *error*, innermost first, without requests' wrappers (they are OSErrors)."""
    chain: list[BaseException] = []
    todo = [error]
    while todo and len(chain) < 16:  # a cycle of causes is legal Python
        one = todo.pop()
        if any(one is seen for seen in chain):
            continue
        chain.append(one)
        todo += [
            nested
            for nested in (*one.args, getattr(one, "reason", None), one.__cause__)
            if isinstance(nested, BaseException)
        ]
    return (one for one in reversed(chain) if type(one).__module__.partition(".")[0] != "requests")
