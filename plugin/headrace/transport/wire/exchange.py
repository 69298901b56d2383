"""One attempt over a connection of urllib3's, past stock's `urlopen`, `_make_request` and http.client.

What comes of it, an answer or an error, is what stock would have made of it. Where something is odd, stock does it:
before a byte has left by making the whole attempt, after that by reading the answer from what has been received.
"""

from __future__ import annotations

import errno
import http.client
import logging
import socket
import sys
from collections.abc import Mapping
from http.client import _CS_REQ_SENT, HTTPException, RemoteDisconnected  # type: ignore[attr-defined]
from ssl import SSLError as BaseSSLError
from typing import TYPE_CHECKING, Any, Final, NoReturn

from urllib3.connection import _ResponseOptions
from urllib3.connectionpool import log
from urllib3.exceptions import ProtocolError, ReadTimeoutError, SSLError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError
from urllib3.util.retry import Retry
from urllib3.util.ssl_match_hostname import CertificateError

from headrace.clock import monotonic
from headrace.transport.attempt import Attempt
from headrace.transport.connection_auth import AUTHORIZATION, authenticates_connection
from headrace.transport.dial.refusals import alert_behind
from headrace.transport.foreign import is_foreign
from headrace.transport.standstill import GRACE_S
from headrace.transport.stock.connection import GovernedHTTPConnection, GovernedHTTPSConnection
from headrace.transport.stock.framing import FramedAnswer
from headrace.transport.stock.garbage import LONGEST_BYTES
from headrace.transport.wire.blocking import receive, send
from headrace.transport.wire.h1 import USUAL, AnswerReader, Limits, Malformed, Truncated
from headrace.transport.wire.request import head_of, is_plain_target
from headrace.transport.wire.response import (
    KNOWN,
    WireAnswer,
    WireLimited,
    WireResponse,
    WireStreamed,
    received_again,
)
from headrace.transport.wire.untouched import is_untouched

if TYPE_CHECKING:
    from urllib3.response import HTTPResponse

    from headrace.policy.plan import TimeoutPlan
    from headrace.transport.stock.pool import GovernedHTTPPool

_SAYS_CLOSE: Final = b"\r\nconnection: close"
_IN_ONE_GO: Final = 64 * 1024  # a head and a body of this size leave with one send
_GOES_ON: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.EPROTOTYPE})
"""Sending ends with these when the peer has answered early and left. Its answer may be there; stock reads it, too."""

CONNECTIONS: Final = frozenset({GovernedHTTPConnection, GovernedHTTPSConnection})
"""The classes whose connections may be spoken over here: others may do anything of their own."""
_SOCKETS: Final = frozenset({"socket", "ssl", "gevent", "headrace"})
is_plain_socket: dict[type, bool] = {type(None): True}
"""By the class of a socket, as found when it was made. None: it is to be made."""


def may_speak(attempt: Attempt, pool: GovernedHTTPPool, body: Any, kw: Mapping[str, Any]) -> bool:
    """Whether the attempt can be made here, as far as that is known before there is a connection."""
    if (
        not pool.in_force.speaks
        or attempt.pool is not pool
        or attempt.lease is None
        or pool.ConnectionCls not in CONNECTIONS
        or not (body is None or type(body) is bytes or type(body) is str)
        or pool.proxy is not None
        or pool.proxy_headers
    ):
        return False
    retries = kw.get("retries")
    return (
        type(retries) is Retry
        and retries.total == 0  # or False; None is no limit
        and not retries.status_forcelist
        and kw.get("redirect") is False
        and kw.get("preload_content") is False
        and not kw.get("chunked")
        and not kw.get("release_conn")
        and _TAKEN.issuperset(kw)
        and KNOWN
        and is_untouched()
    )


_TAKEN: Final = frozenset(
    (
        *("retries", "redirect", "assert_same_host", "timeout", "release_conn", "chunked"),
        *("preload_content", "decode_content", "enforce_content_length"),
    )
)


def exchange(
    pool: GovernedHTTPPool,
    attempt: Attempt,
    method: str,
    target: str,
    body: bytes | str | None,
    headers: Mapping[str, str],
    *,
    retries: Retry,
    decode_content: bool = True,
    enforce_content_length: bool = True,
) -> HTTPResponse | None:
    """The answer, its head at least; None, and nothing done, where stock is to make the attempt. Blocks.

    Raises what stock's `urlopen` raises.
    """
    if attempt.pieces is not None:
        return _go_on(pool, attempt, method, target, retries, decode_content, enforce_content_length)
    if is_plain_target(target) is None:
        return None
    payload: bytes | None = body.encode("utf-8") if type(body) is str else body  # type: ignore[assignment]
    head = head_of(method, target, pool.host_line, headers, payload)
    lease = attempt.lease
    if head is None or lease is None:
        return None
    conn = lease.conn
    if conn is not None:
        is_plain = is_plain_socket.get(kind := type(conn.sock))
        if is_plain is None:
            is_plain = _is_plain(kind)
        if not is_plain or conn.debuglevel or type(conn) not in CONNECTIONS:
            return None
    attempt.lease = None
    try:
        if conn is None:
            conn = pool._new_conn()
            lease.connection.conn = conn
        else:
            attempt.phase = "sent"
        conn.lease = lease
        if conn.sock is None:
            _connect(pool, attempt, conn, target)
            if conn.debuglevel or not _is_plain(
                type(conn.sock)
            ):  # somebody's own socket: nothing was sent yet
                attempt.lease = lease
                return None
        return _speak(
            pool,
            attempt,
            conn,
            method,
            target,
            head,
            payload,
            retries,
            decode_content,
            enforce_content_length,
        )
    except _TOLD as error:
        _tell(error, pool, lease.conn, method, target, retries)
    except BaseException:
        conn = lease.conn
        if conn is not None:
            conn.close()
        raise
    finally:
        head = body = payload = (
            None  # they hold the call's credentials, and crash reporters ship the locals of a frame
        )


_TOLD: Final = (Urllib3TimeoutError, HTTPException, OSError, ProtocolError, SSLError, CertificateError)
"""What stock's `urlopen` has words for."""


def _tell(
    error: Exception,
    pool: GovernedHTTPPool,
    conn: GovernedHTTPConnection | None,
    method: str,
    target: str,
    retries: Retry,
) -> NoReturn:
    """Raise what stock's `urlopen` makes of *error*, with which an attempt has ended."""
    if conn is not None:
        conn.close()
    told: Exception = error
    if isinstance(error, (BaseSSLError, CertificateError)):
        told = SSLError(error)
    elif isinstance(error, (OSError, HTTPException)):
        told = ProtocolError("Connection aborted.", error)
    try:
        retries.increment(method, target, error=told, _pool=pool, _stacktrace=sys.exc_info()[2])
        raise told from error  # not reached: these retries allow none
    finally:
        del error, told  # what is raised refers to this frame


def _go_on(
    pool: GovernedHTTPPool,
    attempt: Attempt,
    method: str,
    target: str,
    retries: Retry,
    decode_content: bool,
    enforce_content_length: bool,
) -> HTTPResponse:
    """The answer to a request that has gone the short way, of which a part may have been received. Blocks.

    Raises what stock's `urlopen` raises.
    """
    lease = None if attempt.token is None else attempt.token()
    conn = None if lease is None else lease.conn
    pieces, attempt.pieces = attempt.pieces or [], []
    try:
        if conn is None or conn.sock is None:
            raise ConnectionAbortedError("the connection was closed")
        conn.lease = lease
        conn.answering = conn.sock
        conn._says_close = False
        pool.num_requests += 1
        conn.reader = reader = AnswerReader(
            _limits()
        )  # anew: what the other has read of it may have been taken
        reader.begin(method)
        if attempt.is_unsent and attempt.broke is not None:
            broke, attempt.broke = attempt.broke, None
            try:
                if not isinstance(broke, OSError) or not _may_be_answered(
                    broke, pool, conn.sock, attempt.timeouts
                ):
                    raise broke
            finally:
                del broke  # it may be what is raised, and refers to this frame
        return _listen(
            pool,
            attempt,
            conn,
            method,
            target,
            retries,
            decode_content,
            enforce_content_length,
            says_close=False,
            pieces=pieces,
        )
    except _TOLD as error:
        _tell(error, pool, conn, method, target, retries)
    except BaseException:
        if conn is not None:
            conn.close()
        raise


def _connect(pool: GovernedHTTPPool, attempt: Attempt, conn: GovernedHTTPConnection, target: str) -> None:
    """Open *conn*, as stock does before it sends. Blocks."""
    connect_s, limit_s = attempt.timeouts.connect_s, attempt.limit_s
    conn.timeout = min(connect_s, limit_s)
    try:
        conn.connect()
    except (TimeoutError, BaseSSLError) as error:
        pool._raise_timeout(error, target, conn.timeout)
        raise


def _speak(
    pool: GovernedHTTPPool,
    attempt: Attempt,
    conn: GovernedHTTPConnection,
    method: str,
    target: str,
    head: bytes,
    body: bytes | None,
    retries: Retry,
    decode_content: bool,
    enforce_content_length: bool,
) -> HTTPResponse:
    """Send over *conn*, which is open, and receive what comes. Blocks."""
    sock, timeouts = conn.sock, attempt.timeouts
    reader = conn.reader
    if reader is None or not reader.reusable:  # the body of the last answer was read without it
        reader = conn.reader = AnswerReader(_limits())
    reader.begin(method)
    conn.answering = sock
    pool.num_requests += 1
    lowered = head.lower()
    conn._says_close = says_close = _SAYS_CLOSE in lowered
    if AUTHORIZATION in lowered and authenticates_connection(lowered):
        conn._claim_for(attempt.owner)
    try:
        if body and len(head) + len(body) <= _IN_ONE_GO:
            head += body
            body = None
        sys.audit("http.client.send", conn, head)
        send(sock, head, write_s=timeouts.write_s, most=conn.most_at_once)
        if body:
            sys.audit("http.client.send", conn, body)
            send(sock, body, write_s=timeouts.write_s, most=conn.most_at_once)
    except OSError as error:
        if not _may_be_answered(error, pool, sock, timeouts):
            raise
    finally:
        head = lowered = b""
        body = None
    return _listen(
        pool,
        attempt,
        conn,
        method,
        target,
        retries,
        decode_content,
        enforce_content_length,
        says_close=says_close,
        pieces=[],
    )


def _limits() -> Limits:
    """Those of http.client, which some raise. What is too large for the codec is read by stock, and not kept alive."""
    client: Any = http.client
    headers, line_bytes = client._MAXHEADERS, client._MAXLINE
    if headers == USUAL.headers and line_bytes == USUAL.line_bytes:
        return USUAL
    return Limits(head_bytes=line_bytes, headers=headers, line_bytes=line_bytes)


def _may_be_answered(
    error: OSError, pool: GovernedHTTPPool, sock: socket.socket, timeouts: TimeoutPlan
) -> bool:
    """Whether an answer may be there all the same, although sending has ended with *error*.

    Raises what stock makes of *error*, where that is something else.
    """
    if is_foreign(error):
        return False
    if isinstance(error, TimeoutError):
        text = f"Write timed out. (write timeout={timeouts.write_s:g})"
        raise ReadTimeoutError(pool, "", text) from error  # urllib3 has no error for writing
    alert = alert_behind(sock)
    if alert is not None:
        raise alert from None  # the failed write only follows from it
    return error.errno in _GOES_ON


def _listen(
    pool: GovernedHTTPPool,
    attempt: Attempt,
    conn: GovernedHTTPConnection,
    method: str,
    target: str,
    retries: Retry,
    decode_content: bool,
    enforce_content_length: bool,
    *,
    says_close: bool,
    pieces: list[bytes],
) -> HTTPResponse:
    """The answer that comes over *conn*, to which the request has gone; its head at least. Blocks.

    Args:
        says_close: The request said that it is the last one.
        pieces: What has been received already.
    """
    sock, timeouts, reader = conn.sock, attempt.timeouts, conn.reader
    assert sock is not None, "the request has gone over it"
    assert reader is not None, "likewise"
    left_s = attempt.ends_at - monotonic()
    # Where no time is left, this process has stood still, and an answer may have arrived (failures.md 67).
    limit_s = min(timeouts.read_s, left_s if left_s > 0.0 else GRACE_S)
    broke, attempt.broke = attempt.broke, None
    if broke is not None:
        limit_s = min(timeouts.read_s, attempt.limit_s)  # this is what it has waited
    conn.timeout = limit_s
    sock.settimeout(limit_s)
    is_odd, is_whole, end = False, False, None
    try:
        for piece in pieces:
            is_whole = reader.feed(piece)
        if not is_whole:
            if isinstance(broke, OSError):
                raise broke
            is_whole = receive(sock, reader, pieces, whole=False)
    except Malformed:
        is_odd = True
    except Truncated:
        if not pieces:
            raise RemoteDisconnected("Remote end closed connection without response") from None
        is_odd = True
    except OSError as error:
        if not pieces:
            pool._raise_timeout(error, target, limit_s)
            raise
        is_odd, end = True, error
    finally:
        attempt.answered = reader.started
        broke = None  # it may be what is raised, and refers to this frame
    response: HTTPResponse
    if is_odd or reader.status < 200 or _is_framed_oddly(reader):
        try:
            response = _as_stock_reads(
                pool, conn, method, target, pieces, end, limit_s, decode_content, enforce_content_length
            )
        finally:
            end = None  # it may be what is raised, and refers to this frame
        if is_odd and (last := conn._HTTPConnection__response) is not None:  # type: ignore[attr-defined]
            last.is_last = True
        response.retries, response._connection, response._pool = retries, conn, pool
    else:
        attempt.sock = sock
        kind: Any = WireResponse
        if attempt.streamed:
            sock.settimeout(timeouts.read_s)
            kind = WireStreamed if attempt.max_body_bytes is None else WireLimited
        if is_whole and not attempt.streamed:
            # Its connection goes back when the body is taken: until then, limits may still be set on the socket.
            answer = WireAnswer(reader, pieces if reader.chunked else [], method, None, reader.take())
            answer.is_last = says_close or not reader.reusable
        else:
            answer = WireAnswer(reader, pieces, method, sock, None)
            answer.is_last = says_close  # RFC 9112 §9.6: no further request, whatever the peer says
        response = kind(
            answer,
            method=method,
            url=target,
            decode_content=decode_content,
            enforce_content_length=enforce_content_length,
            pool=pool,
            conn=conn,
            retries=retries,
        )
        conn._HTTPConnection__response = answer  # type: ignore[attr-defined]
        if attempt.streamed:
            response.lease = conn.lease  # type: ignore[attr-defined]
            if attempt.max_body_bytes is not None:
                response.max_bytes = attempt.max_body_bytes  # type: ignore[attr-defined]
    if conn.unread is not None:
        conn.keep_session(sock)
    if log.isEnabledFor(logging.DEBUG):  # urllib3's logger, and its words
        log.debug(
            '%s://%s:%s "%s %s %s" %s %s',
            pool.scheme,
            pool.host,
            pool.port,
            method,
            target,
            response.version_string,
            response.status,
            response.length_remaining,
        )
    return response


def _is_framed_oddly(reader: AnswerReader) -> bool:
    """Whether the framing of this answer can be read in more than one way, or stock refuses it."""
    head = reader.lowered
    if reader.length is not None:
        return reader.length > LONGEST_BYTES or b"\ntransfer-encoding:" in head
    return b"\ntransfer-encoding:" in head and not (
        reader.chunked
        and head.count(b"\ntransfer-encoding:") == 1
        and b"\ntransfer-encoding: chunked\r" in head
        and b"\ncontent-length:" not in head
    )


class _Received:
    """A socket from which http.client makes its reader: *data* has been received already."""

    def __init__(self, sock: socket.socket, data: bytes, error: Exception | None) -> None:
        self._sock, self._data, self._error = sock, data, error

    def makefile(self, mode: str) -> Any:
        """What http.client reads from."""
        return received_again(self._sock, self._data, self._error)


def _as_stock_reads(
    pool: GovernedHTTPPool,
    conn: GovernedHTTPConnection,
    method: str,
    target: str,
    pieces: list[bytes],
    end: Exception | None,
    limit_s: float,
    decode_content: bool,
    enforce_content_length: bool,
) -> HTTPResponse:
    """What stock makes of an answer that begins with *pieces*, and ends with *end* or goes on. Blocks."""
    data, client = b"".join(pieces), conn
    client._method = method  # type: ignore[attr-defined]
    # As http.client has it behind a request.
    client._HTTPConnection__state = _CS_REQ_SENT  # type: ignore[attr-defined]
    client._HTTPConnection__response = None  # type: ignore[attr-defined]
    conn._response_options = _ResponseOptions(
        request_method=method,
        request_url=target,
        preload_content=False,
        decode_content=decode_content,
        enforce_content_length=enforce_content_length,
    )

    def over(sock: socket.socket, *args: Any, **kw: Any) -> FramedAnswer:
        return FramedAnswer(_Received(sock, data, end), *args, **kw)  # type: ignore[arg-type]

    conn.response_class = over  # type: ignore[assignment]
    try:
        return conn.getresponse()
    except (BaseSSLError, OSError) as error:
        pool._raise_timeout(error, target, limit_s)
        raise
    finally:
        del conn.response_class
        end = None  # it may be what is raised, and refers to this frame


def _is_plain(kind: type) -> bool:
    """Whether sockets of *kind* do what sockets do: the standard library's, gevent's or ours."""
    is_plain_socket[kind] = found = (
        issubclass(kind, socket.socket) and kind.__module__.partition(".")[0] in _SOCKETS
    )
    return found
