"""The body of a buffered answer of requests: read inside the call, and still there for code before the Session.

requests hands an answer out unread. Response hooks look at it next, and so do adapters with
a `send` around ours. Then the Session reads `content`. Our limits and the verdict cover the body,
so we read it before all of these. What they look at must still be there.
"""

from __future__ import annotations

from requests.exceptions import ChunkedEncodingError, ContentDecodingError
from requests.models import Response
from urllib3.response import HTTPResponse

from headrace.adapters.urllib3.buffered import BufferedResponse
from headrace.transport.attempt import Attempt
from headrace.transport.stock.body import BodyTooLarge, body_of, is_read_whole, joined, piece_bytes
from headrace.transport.stock.faults import callers_own
from headrace.transport.stock.garbage import told_as_broken
from headrace.transport.wire.response import WireResponse

_TOLERATED_IN_REDIRECTS = (ChunkedEncodingError, ContentDecodingError, RuntimeError)
"""The errors after which `Session.resolve_redirects` goes on, when it cannot read the body of a redirect."""


def read_body(response: Response, attempt: Attempt, *, is_seen: bool, is_judged: bool) -> None:
    """Read *response* to its end, as its `content`. Blocks. Mutates *response*, which is closed when this raises.

    The broken body of a redirect is no error yet: requests follows it all the same (failures.md 56), and code
    that reads the body gets the error then.

    Args:
        is_seen: Other code will look at `raw`, so `raw` keeps the body, and `content` is read from there.
        is_judged: Stock's loop reads it before that code does, and it is handed out after that.

    Raises:
        BodyTooLarge: It is more than the limit of the call.
        requests.RequestException: What `response.content` raises.
    """
    wire = response.raw
    kept = None
    try:
        if type(wire) is WireResponse and not is_seen and response._content is False:
            whole = wire.take(attempt.max_body_bytes)
            if whole is not None:
                response._content, response._content_consumed = whole, True
                return
        if is_seen and isinstance(wire, HTTPResponse):
            response.raw = kept = _buffered_response(response, wire, attempt)
        if not isinstance(wire, HTTPResponse) or is_read_whole(wire, attempt):
            response.content  # noqa: B018
        elif response._content is False:
            response._content = joined(response.iter_content(piece_bytes(attempt.max_body_bytes)), attempt)
    except Exception as error:
        if wire is not None:
            wire.close()
        is_tolerated = isinstance(error, _TOLERATED_IN_REDIRECTS) and response.is_redirect
        if not is_tolerated or callers_own(error) is not None:
            raise
        if kept is None:
            kept = _with_body(response, wire, _cause_of(error), attempt)
    if kept is not None:
        response._content = response._content_consumed = False
        response.raw = kept.again() if is_judged else kept.handed_out()


def hand_out(response: Response) -> None:
    """Make *response* unread again, if other code will look at its `raw`. Mutates it."""
    if isinstance(response.raw, BufferedResponse):
        response._content = response._content_consumed = False
        response.raw = response.raw.handed_out()


def _buffered_response(response: Response, wire: HTTPResponse, attempt: Attempt) -> BufferedResponse:
    """*wire* with its body at hand, or with the error that reading it ends with. Blocks."""
    body: bytes | Exception
    try:
        body = body_of(wire, attempt, decode=False)
    except BodyTooLarge:
        raise
    except Exception as error:
        # Without its frames: they hold the response that will hold it.
        body = told_as_broken(error).with_traceback(None)
    kept = _with_body(response, wire, body, attempt)
    if isinstance(body, bytes) and "content-encoding" not in wire.headers:
        response._content, response._content_consumed = body, True
    return kept


def _with_body(
    response: Response, wire: HTTPResponse, body: bytes | Exception, attempt: Attempt
) -> BufferedResponse:
    return BufferedResponse(
        wire,
        body,
        decode_content=wire.decode_content,
        method=response.request.method or "GET",
        url=wire.url or "",
        sock=attempt.sock,
    )


def _cause_of(error: Exception) -> Exception:
    """What urllib3 raised, which requests has wrapped in *error*."""
    cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    return cause.with_traceback(None)
