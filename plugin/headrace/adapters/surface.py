"""How one library sends, for one call: what the governed call asks of requests and of urllib3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from urllib3.exceptions import ProtocolError, ReadTimeoutError
from urllib3.util.timeout import Timeout

from headrace.adapters.twins import Twins
from headrace.policy.plan import FallbackPlan
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt

T = TypeVar("T")


class Surface(Protocol[T]):
    """How one library sends, for one call.

    Attributes:
        owner: Whose a connection is that this call authenticates; referred to weakly. None: nobody's.
    """

    twins: Twins
    owner: object | None

    def send(self, timeout: Timeout) -> T:
        """Send, from where the body stands, and wait for the head of the answer. Blocks.

        Raises whatever the library raises.
        """

    def read(self, answer: T, attempt: Attempt) -> None:
        """Read the body of *answer*, that of a buffered call, to its end. Blocks; the limits are those of *attempt*.

        Raises whatever the library raises where it insists on the body; *answer* is closed then.
        """

    def hand_out(self, answer: T) -> None:
        """Have *answer*, read here and judged by `failure_if`, as its caller is to find it. Mutates it."""

    def rewind(self) -> bool:
        """Put the body back to where it began; False if it will not go there."""

    def head(self, answer: T) -> tuple[int, Mapping[str, str]]:
        """Status and headers of *answer*."""

    def raw(self, answer: T) -> object:
        """The urllib3 response of *answer*."""

    def set_aside(self, answer: T) -> T | None:
        """*answer* with its connection freed and its body kept, or None when it is too large, or too slow, to keep."""

    def canned(self, fallback: FallbackPlan) -> T:
        """The answer that the file has written for a refused call."""

    def towards(self, other: Upstream, refused: Upstream) -> Substitute[T] | None:
        """The same call to *other*; None where that cannot be said."""

    def timed_out(self, cause: ReadTimeoutError) -> Exception:
        """What the library makes of *cause*: the answer, or not all of it, did not come in time."""

    def broken_off(self, cause: ProtocolError) -> Exception:
        """What the library makes of *cause*: we have shut the connection amid the answer."""

    def family(self) -> dict[str, Any]:
        """What the library's own exception class would carry (`request`, `pool`)."""

    def url(self) -> str:
        """The URL that the caller asked for."""


class Substitute(NamedTuple, Generic[T]):
    """A call as it is made to a fallback: how it is sent, the object that is sent, and the headers it sets."""

    surface: Surface[T]
    message: object
    headers: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Substitute({self.surface!r})"  # the headers have credentials of the call
