"""How one library sends one call: what the governed call asks of requests and of urllib3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from headrace.errors import (
    CallCancelled,
    CircuitOpenError,
    DeadlineExceeded,
    IdentityMismatch,
    PoolRejected,
    PoolTimeout,
    ResponseTooLarge,
)
from headrace.policy.frozen import frozen, slotted
from headrace.policy.outcome import Fault
from headrace.policy.plan import FallbackPlan
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt
from headrace.transport.dial.identity import IdentityError
from headrace.transport.lease.pool import CloseReason, Lease

T = TypeVar("T")


@frozen
class Twins:
    """The classes that one surface raises. Each is one of ours and also one that callers of the library catch."""

    circuit_open: type[CircuitOpenError]
    deadline: type[DeadlineExceeded]
    pool_timeout: type[PoolTimeout]
    pool_rejected: type[PoolRejected]
    cancelled: type[CallCancelled]
    too_large: type[ResponseTooLarge]
    identity: type[IdentityMismatch]


@slotted
class Failure:
    """What an exception of the library, taken by itself, says about the attempt that it ended.

    Attributes:
        fault: The fault in the words of the rules.
        cut: A limit of the socket was hit.
        error: The exception as the caller is to get it.
        own: The error of the caller's own code (a signal handler's, a body's) that the exception is or wraps, or None.
        advice: What is wrong and what to do, where that is known.
        mismatch: The certificate was of somebody else than the rules accept; None: that is not it.
    """

    fault: Fault
    cut: bool
    error: Exception
    own: Exception | None
    advice: str | None
    mismatch: IdentityError | None = None


class Surface(Protocol[T]):
    """How one library sends one call.

    Attributes:
        owner: The owner of a connection that this call authenticates; referred to weakly. None: it has no owner.
        owns_all: The call goes over connections of its owner alone, authenticated or not.
    """

    twins: Twins
    owner: object | None
    owns_all: bool

    def send(self, attempt: Attempt) -> T:
        """Send, from the body's current position, and wait for the head of the answer. Blocks, within its limits.

        Raises what the library raises.
        """

    def read(self, answer: T, attempt: Attempt) -> None:
        """Read the body of *answer*, of a buffered call, to its end. Blocks; the limits are those of *attempt*.

        Raises what the library raises where it insists on the body; *answer* is closed then.
        """

    def hand_out(self, answer: T) -> None:
        """Bring *answer*, read here and judged by `failure_if`, into the state that its caller expects. Mutates it."""

    def rewind(self) -> bool:
        """Put the body back to where it began; False if that is impossible."""

    def status(self, answer: T) -> int:
        """Status of *answer*; asked of each."""

    def headers(self, answer: T) -> Mapping[str, str]:
        """Headers of *answer*; asked only where they may say something, for they may be made by that."""

    def streamed(self, answer: T) -> Streamed | None:
        """The body of *answer* as it comes over the wire; None where it does not (a mock's answer, or a kept one)."""

    def close(self, answer: T) -> None:
        """Close *answer*."""

    def set_aside(self, answer: T) -> T | None:
        """*answer* with its connection freed and its body kept; None when it is too large, or too slow, to keep."""

    def canned(self, fallback: FallbackPlan) -> T:
        """The answer that the file has for a refused call."""

    def towards(self, other: Upstream, refused: Upstream) -> Substitute[T] | None:
        """The same call to *other*; None where it cannot be made there."""

    def failure(self, error: Exception, attempt: Attempt, *, presents: bool) -> Failure:
        """What *error*, which `send` or `read` has raised, says about *attempt*.

        Args:
            presents: The upstream's rules have a client certificate.
        """

    def timed_out(self, text: str, attempt: Attempt) -> Exception:
        """What the library raises where the answer, or a part of it, did not come in time."""

    def broken_off(self, text: str) -> Exception:
        """What the library raises where the connection ended before the answer did."""

    def family(self) -> dict[str, Any]:
        """What the library's own exception class would carry (`request`, `pool`)."""

    def url(self) -> str:
        """The URL that the caller asked for."""


class Streamed(Protocol):
    """A body that its caller reads over the wire, after the call.

    Attributes:
        lease: The lease of the connection that it is read over.
        let_go: Lets it outlive the inbound request that it was opened in; None: it ends with no request.
        on_break: Called once, in the reading thread, with the error that a read ends with, its fault, whether a
            limit of the socket was hit, and the reason of the close where headrace has shut the connection.
        max_bytes: Most bytes that the body may have; None: no limit.
        on_excess: Makes the error for a body of more than *max_bytes*.
    """

    lease: Lease[Any] | None
    let_go: Callable[[], object] | None
    on_break: Callable[[Exception, Fault, bool, CloseReason | None], None] | None
    max_bytes: int | None
    on_excess: Callable[[], Exception] | None


class Substitute(NamedTuple, Generic[T]):
    """A call as it is made to a fallback: how it is sent, the object that is sent, and the headers it sets."""

    surface: Surface[T]
    message: object
    headers: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Substitute({self.surface!r})"  # the headers hold the call's credentials
