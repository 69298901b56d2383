"""requests' own objects, made without the calls that fill them: of the same classes, with the same attributes.

Only where requests is as published (`stock.py`): who replaces a constructor or a helper gets what that makes.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import timedelta
from typing import Any, Final

from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from requests.models import PreparedRequest, Response
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

from headrace.policy.record import Record
from headrace.transport.wire.response import WholeResponse

_new_response: Final[Any] = Response.__new__
_new_request: Final[Any] = PreparedRequest.__new__
_new_headers: Final[Any] = CaseInsensitiveDict.__new__

_encodings: dict[str, str | None] = {}
"""What requests says of a Content-Type. A single step on a dict each: no lock."""
_MOST_ENCODINGS: Final = 256
_LONGEST: Final = 256
_UNKNOWN: Final[Any] = object()

IS_KNOWN: Final = (
    set(vars(Response()))
    == {
        *("_content", "_content_consumed", "_next", "status_code", "headers", "raw", "url", "encoding"),
        *("history", "reason", "cookies", "elapsed", "request"),
    }
    and set(vars(PreparedRequest()))
    == {"method", "url", "headers", "_cookies", "body", "hooks", "_body_position"}
    and set(vars(CaseInsensitiveDict())) == {"_store"}
)
"""Whether requests' objects have the attributes that are set here. Those of another requests may have more."""


def response_of(
    adapter: HTTPAdapter, request: PreparedRequest, raw: WholeResponse, content: bytes, record: Record
) -> Response:
    """What `HTTPAdapter.build_response` makes of *raw*, whose body has been read and is *content*."""
    headers: CaseInsensitiveDict[Any] = _new_headers(CaseInsensitiveDict)
    store: OrderedDict[str, Any] = OrderedDict()
    headers._store = store
    for name, value in raw._fields:
        lower = name.lower()
        known = store.get(lower)
        store[lower] = (name, value) if known is None else (known[0], f"{known[1]}, {value}")
    kind = store.get("content-type")
    encoding = None
    if kind is not None:
        encoding = _encodings.get(kind[1], _UNKNOWN)
        if encoding is _UNKNOWN:
            encoding = _noted(kind[1], headers)
    cookies = RequestsCookieJar()
    if "set-cookie" in store:
        extract_cookies_to_jar(cookies, request, raw)
    response: Response = _new_response(Response)
    response.__dict__ = {
        "_content": content,
        "_content_consumed": True,
        "_next": None,
        "status_code": raw.status,
        "headers": headers,
        "raw": raw,
        "url": request.url,
        "encoding": encoding,
        "history": [],
        "reason": raw.reason,
        "cookies": cookies,
        "elapsed": timedelta(0),
        "request": request,
        "connection": adapter,
        "headrace": record,
    }
    return response


def _noted(kind: str, headers: CaseInsensitiveDict[Any]) -> str | None:
    found = get_encoding_from_headers(headers)
    if len(kind) <= _LONGEST:
        if len(_encodings) >= _MOST_ENCODINGS:
            _encodings.clear()
        _encodings[kind] = found
    return found


def request_of(method: str, url: str, headers: dict[str, Any], body: Any) -> PreparedRequest:
    """What `PreparedRequest.prepare` has made of a plain call, without cookies and hooks."""
    held: CaseInsensitiveDict[Any] = _new_headers(CaseInsensitiveDict)
    held._store = OrderedDict([(name.lower(), (name, value)) for name, value in headers.items()])
    request: PreparedRequest = _new_request(PreparedRequest)
    request.__dict__ = {
        "method": method,
        "url": url,
        "headers": held,
        "_cookies": RequestsCookieJar(),
        "body": body,
        "hooks": {"response": []},
        "_body_position": None,
    }
    return request
