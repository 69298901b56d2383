"""One awaited call: the request that is written, and what its errors mean."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from http.client import responses as reasons
from typing import Any, Final

import urllib3.util.connection
from urllib3._collections import HTTPHeaderDict

from headrace.adapters.aio.answer import ACCEPTED, Answer
from headrace.adapters.fallback import headers_for, url_at
from headrace.engine.aio import Way
from headrace.engine.surface import Failure, Substitute, Twins
from headrace.errors import (
    CallCancelled,
    CircuitOpenError,
    DeadlineExceeded,
    IdentityMismatch,
    PoolRejected,
    PoolTimeout,
    ResponseTooLarge,
    TransportBroken,
    TransportError,
    TransportTimeout,
)
from headrace.policy.attempt_end import Phase
from headrace.policy.outcome import Fault
from headrace.policy.plan import FallbackPlan
from headrace.policy.routes import url_of
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt
from headrace.transport.connection_auth import AUTHORIZATION, authenticates_connection
from headrace.transport.stock.draining import KEEP_BYTES
from headrace.transport.stock.faults import advice_on, known_fault, mismatch_in
from headrace.transport.wire.aio import Body, LoopWire
from headrace.transport.wire.errors import Malformed, TooLarge, Truncated
from headrace.transport.wire.head import render_fields, render_head

PLAIN: Final = Twins(
    circuit_open=CircuitOpenError,
    deadline=DeadlineExceeded,
    pool_timeout=PoolTimeout,
    pool_rejected=PoolRejected,
    cancelled=CallCancelled,
    too_large=ResponseTooLarge,
    identity=IdentityMismatch,
)
"""There is no library beside ours: its callers catch our own classes."""

_OURS: Final = frozenset({"host", "user-agent", "accept", "accept-encoding"})
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,17}")  # what it says is counted to
_FIXED: Final = "aio_head"

_NEEDS_NO_LENGTH: Final = frozenset({"GET", "HEAD", "DELETE", "TRACE", "OPTIONS"})


class AwaitedSurface:
    """How one call is sent over a `LoopWire`: an `engine.aio.LoopSurface`. Owned by its task.

    Args:
        target: Path and query, as they are sent.
        headers: Those of the call, by name; they win over those of the rules, and these over our own.
        content: bytes; or what is iterated over, once.
    """

    twins = PLAIN
    owner = None
    owns_all = False

    def __init__(
        self,
        upstream: Upstream,
        method: str,
        target: str,
        headers: Mapping[str, str],
        content: bytes | AsyncIterable[bytes] | None,
        *,
        streamed: bool,
    ) -> None:
        self._upstream = upstream
        self._method = method
        self._target = target
        self._headers = headers
        self._content = content
        self._streamed = streamed
        self._is_last = False

    def head(self, attempt: Attempt) -> bytes:
        """The head; see `LoopSurface`.

        Raises:
            TypeError: The name of a header is no text.
            ValueError: It cannot be sent: a blank in the target, a line end in a header. Or a header ends the body
                elsewhere than *content* does: the server would take the rest for another request.
        """
        # Of a class over str, what it formats to need not be the text that is looked at.
        fields = [
            (name if type(name) is str else _as_str(name), value) for name, value in self._headers.items()
        ]
        own = {name.lower() for name, _ in fields}
        for name, value in attempt.headers:
            if (lower := name.lower()) not in own:
                own.add(lower)
                fields.append((name, str(value)))
        fixed, first = b"", []
        if own.isdisjoint(_OURS):  # rendered once for all such calls
            fixed = self._upstream.compiled.get(_FIXED) or _fixed(self._upstream)
        else:
            first = [(name, value) for name, value in _defaults(self._upstream) if name.lower() not in own]
        content = self._content
        if not own.isdisjoint(_FRAMING):
            _check_framing(fields, content)
        elif isinstance(content, bytes):
            first.append(("Content-Length", str(len(content))))
        elif content is not None:
            first.append(("Transfer-Encoding", "chunked"))
        elif self._method not in _NEEDS_NO_LENGTH:
            first.append(("Content-Length", "0"))
        head = render_head(self._method.encode(), self._target.encode(), fixed, [*first, *fields])
        lowered = head.lower()
        self._is_last = b"\r\nconnection: close\r\n" in lowered or (
            # Such a connection is of one user, and nobody here can own it.
            AUTHORIZATION in lowered and authenticates_connection(lowered)
        )
        return head

    def body(self, attempt: Attempt) -> Body:
        """The body; see `LoopSurface`."""
        content = self._content
        if content is None or isinstance(content, bytes):
            return content
        return _noted(content, attempt)

    def answer(self, wire: LoopWire, way: Way, attempt: Attempt) -> Answer:
        """The answer; see `LoopSurface`."""
        if self._is_last:
            wire.is_last = True
        answer = Answer.of(
            wire,
            way,
            url=self.url(),
            method=self._method,
            streamed=attempt.streamed,
            most=attempt.max_body_bytes,
        )
        if attempt.streamed:
            answer.follow(attempt.timeouts.read_s, self._as_told)
        return answer

    def address_family(self) -> int:
        """Looked up late: people replace it."""
        return urllib3.util.connection.allowed_gai_family()

    async def aside(self, answer: Answer, ends_at: float) -> Answer | None:
        """As `Surface.set_aside`."""
        return answer if await answer.keep(KEEP_BYTES, ends_at) else None

    # ── as `engine.surface.Surface` ──

    def status(self, answer: Answer) -> int:
        """Its status."""
        return answer.status_code

    def headers(self, answer: Answer) -> HTTPHeaderDict:
        """Its headers."""
        return answer.headers

    def hand_out(self, answer: Answer) -> None:
        """A predicate changes nothing of it."""

    def rewind(self) -> bool:
        """Whether the body can be sent again."""
        return self._content is None or isinstance(self._content, bytes)

    def streamed(self, answer: Answer) -> Answer | None:
        """The body as it comes over the wire; None: it is there."""
        return None if answer.is_closed else answer

    def close(self, answer: Answer) -> None:
        """Close it."""
        answer.close()

    def canned(self, fallback: FallbackPlan) -> Answer:
        """The answer that the file has."""
        headers = HTTPHeaderDict(fallback.headers)
        return Answer(
            fallback.status,
            headers,
            url=self.url(),
            method=self._method,
            reason=reasons.get(fallback.status, ""),
            content=b"" if self._method == "HEAD" else fallback.body,
        )

    def towards(self, other: Upstream, refused: Upstream) -> Substitute[Answer] | None:
        """The same call to *other*; None where its path there is not certain."""
        url = url_at(other, refused, self.url())
        if url is None:
            return None
        at = url.find("/", url.find("//") + 2)
        headers = headers_for(other, refused, self._headers)
        surface: Any = AwaitedSurface(
            other,
            self._method,
            "/" if at < 0 else url[at:],
            headers,
            self._content,
            streamed=self._streamed,
        )
        return Substitute(surface, surface, headers)

    def failure(self, error: Exception, attempt: Attempt, *, presents: bool) -> Failure:
        """What *error* says about *attempt*."""
        fault, cut = fault_of(error, attempt.phase)
        is_refused = fault is Fault.CERTIFICATE
        own = attempt.own_error
        if own is None and fault is Fault.LOCAL_ERROR:
            own = error  # a body's, or a head that cannot be sent: as it is
        return Failure(
            fault,
            cut,
            self._told(error, fault),
            own,
            advice_on(error, attempt.phase, presents=presents) if is_refused else None,
            mismatch_in(error) if is_refused else None,
        )

    def timed_out(self, text: str, attempt: Attempt) -> Exception:
        """As the caller gets it."""
        name = self._upstream.plan.name
        return TransportTimeout(f'upstream "{name}": {text}', upstream=name, fault=Fault.TIMEOUT.value)

    def broken_off(self, text: str) -> Exception:
        """As the caller gets it."""
        name = self._upstream.plan.name
        return TransportBroken(f'upstream "{name}": {text}', upstream=name, fault=Fault.RESET.value)

    def family(self) -> dict[str, Any]:
        """There is no library whose classes would carry anything."""
        return {}

    def url(self) -> str:
        """What was asked for."""
        base = self._upstream.plan.base
        whole = url_of(base)
        return whole[: len(whole) - len("".join(f"/{one}" for one in base.segments))] + self._target

    def _told(self, error: Exception, fault: Fault) -> Exception:
        name = self._upstream.plan.name
        kind: type[TransportError] = TransportBroken
        if isinstance(error, TimeoutError):
            kind = TransportTimeout
        elif isinstance(error, Malformed):
            kind = TransportError
        told = kind(f'upstream "{name}": {fault.value}: {error}', upstream=name, fault=fault.value)
        told.__cause__ = error
        return told

    def _as_told(self, error: Exception) -> tuple[Exception, Fault, bool]:
        fault, cut = fault_of(error, "sent")
        return self._told(error, fault), fault, cut

    def __repr__(self) -> str:
        return f"<AwaitedSurface {self._method}>"  # the rest may hold credentials


def _defaults(upstream: Upstream) -> list[tuple[str, str]]:
    host: str = upstream.endpoint.pool.host_line
    return [
        ("Host", host.partition(": ")[2].rstrip("\r\n")),
        ("User-Agent", "headrace"),
        ("Accept", "*/*"),
        ("Accept-Encoding", ACCEPTED),
    ]


def _as_str(name: object) -> str:
    if isinstance(name, str):
        return str.__str__(name)
    raise TypeError(f"the name of a header must be text, not {type(name).__name__}")


def _check_framing(fields: list[tuple[str, Any]], content: bytes | AsyncIterable[bytes] | None) -> None:
    """Refuse *fields* unless what they say of the end of the body is what becomes of *content*."""
    framing = [(name, value) for name, value in fields if name.lower() in _FRAMING]
    if len(framing) > 1:
        raise ValueError("give one of Content-Length and Transfer-Encoding, and once")
    ((name, value),) = framing
    said = value.decode("latin-1") if isinstance(value, bytes) else f"{value}"
    n_bytes = 0 if content is None else len(content) if isinstance(content, bytes) else None
    if name.lower() == "transfer-encoding":
        if n_bytes is not None or said.lower() != "chunked":
            raise ValueError("Transfer-Encoding may only be chunked, and with content that is iterated over")
    elif n_bytes is None:
        if _LENGTH.fullmatch(said) is None:
            raise ValueError(
                "Content-Length must be a number, written without a sign, blanks or leading zeros"
            )
    elif said != str(n_bytes):
        raise ValueError(f"Content-Length must be {n_bytes}, as the content is long, or be left out")


def _fixed(upstream: Upstream) -> bytes:
    made = upstream.compiled[_FIXED] = render_fields(_defaults(upstream))
    return made


def fault_of(error: Exception, phase: Phase) -> tuple[Fault, bool]:
    """The fault that *error* stands for, and whether a timer of ours cut the attempt."""
    if isinstance(error, TooLarge) and error.is_of_body:
        return Fault.RESPONSE_TOO_LARGE, False
    if isinstance(error, Malformed):
        return Fault.PROTOCOL_ERROR, False
    if isinstance(error, Truncated):
        return Fault.RESET, False
    if phase == "lease":
        return Fault.LOCAL_ERROR, False
    return known_fault(error, phase) or (Fault.LOCAL_ERROR, False)


async def _noted(content: AsyncIterable[bytes], attempt: Attempt) -> AsyncIterator[bytes]:
    """*content*; what it raises is the caller's own. A generator is closed with this."""
    try:
        pieces = aiter(content)
        try:
            async for piece in pieces:
                yield piece
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
    except Exception as error:
        attempt.own_error = error
        raise
