"""A request as requests would prepare it, without the object: what `PreparedRequest.prepare` does to a plain call.

Plain is what requests sends as it is given: a path of characters that nobody encodes, headers that are text, a body of
bytes, a form or JSON. All else is prepared by requests itself. So these rules may be narrow, but never wrong:
`tests/adapters/test_same_as_requests.py` compares the two on random calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

import requests.models
from requests.cookies import RequestsCookieJar
from requests.models import PreparedRequest
from requests.structures import CaseInsensitiveDict

from headrace.adapters.requests.built import IS_KNOWN, request_of
from headrace.policy.frozen import frozen
from headrace.transport.wire.request import SharedHeaders


@frozen
class Head:
    """Headers that calls begin with: those of the library, or of a session.

    Attributes:
        fields: By their name in lower case: the name as it is sent, and the value. The insides of a
            CaseInsensitiveDict.
        sent: The same by the names that are sent.
    """

    fields: dict[str, tuple[str, str]]
    sent: SharedHeaders


# An escape of what is not "unreserved" (RFC 3986 §2.3): requests decodes the others.
_ESCAPE = r"%(?:2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF]|[89A-F][0-9A-F])"
_CHAR = r"A-Za-z0-9\-._~!$&'()*+,;=:@"
# No dot at the beginning of a segment (it may be a dot segment), no empty segment, no fragment, no bare question mark.
is_plain_path: Callable[[str], object] = re.compile(
    rf"(?:/(?![./])(?:[{_CHAR}]|{_ESCAPE})*)+(?:\?(?:[{_CHAR}/?]|{_ESCAPE})+)?"
).fullmatch
_is_word: Callable[[str], object] = re.compile(r"[A-Za-z0-9._~-]*").fullmatch
_is_name: Callable[[str], object] = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+").fullmatch
_is_value: Callable[[str], object] = re.compile(r"(?:[!-~][\t -~]*)?").fullmatch
_BODILESS = frozenset({"GET", "HEAD"})


_models: Any = requests.models


class Plain:
    """One request, as it goes out. Owned by one call.

    Attributes:
        method: Upper case.
        url: Whole, as requests writes it.
        target: Path and query.
        headers: Those of the library and of the call, by the names that are sent. Never changed: calls share them.
        body: What is sent; bytes, unless requests has prepared it.
        chunked: The length of the body is not known beforehand.
    """

    __slots__ = ("_prepared", "_text", "body", "chunked", "headers", "method", "target", "url")

    def __init__(
        self,
        method: str,
        url: str,
        target: str,
        headers: Mapping[str, Any],
        body: bytes | None,
        text: str | None,
    ) -> None:
        self.method = method
        self.url = url
        self.target = target
        self.headers = headers
        self.body: Any = body
        self.chunked = False
        self._text = text  # the body as requests has it: a form stays text there
        self._prepared: PreparedRequest | None = None

    @classmethod
    def of(cls, prepared: PreparedRequest) -> Plain:
        """*prepared* in these words."""
        headers, body = prepared.headers, prepared.body
        plain = cls(
            (prepared.method or "GET").upper(), prepared.url or "", prepared.path_url, headers, None, None
        )
        plain.body = body
        plain.chunked = not (body is None or "Content-Length" in headers)  # as HTTPAdapter.send has it
        plain._prepared = prepared
        return plain

    def prepared(self) -> PreparedRequest:
        """What requests would have prepared; the same object each time."""
        made = self._prepared
        if made is None:
            body = self.body if self._text is None else self._text
            if IS_KNOWN and isinstance(self.headers, dict):
                made = request_of(self.method, self.url, self.headers, body)
            else:
                made = PreparedRequest()
                made.method, made.url, made.body = self.method, self.url, body
                made.headers = CaseInsensitiveDict(self.headers)
                made._cookies = RequestsCookieJar()
            self._prepared = made
        return made

    def has_hooks(self) -> bool:
        """Whether an authentication that requests has prepared wants to see the answer."""
        prepared = self._prepared
        return prepared is not None and bool(prepared.hooks["response"])

    def __repr__(self) -> str:
        return f"<Plain {self.method}>"  # no more: a URL and headers may hold credentials


_last: Head = Head({}, SharedHeaders())
"""The last one made: few sessions change theirs."""


def head_of(headers: CaseInsensitiveDict[Any]) -> Head | None:
    """*headers*, those of a session, as a head; None where one of them is not plain."""
    global _last
    store, last = headers._store, _last
    # By `is`: whose object a value is, says whether the caller means it (`library_headers`).
    if len(store) == len(last.fields) and all(map(is_, store.values(), last.fields.values())):
        return last
    for name, value in store.values():
        if type(name) is not str or type(value) is not str or not _is_name(name) or not _is_value(value):
            return None
    _last = made = Head(dict(store), SharedHeaders(store.values()))
    return made


def plain_request(
    method: str, base: str, prefix: str, path: str, head: Head, own: Any, params: Any, data: Any, json: Any
) -> Plain | None:
    """The call as requests would prepare it; None where that is not certain. Raises nothing.

    Flat, and longer than it would like to be: each function entered costs a call a microsecond.

    Args:
        base: The URL in front of *path*, as requests writes it.
        prefix: The path in front of *path*.
        path: Path and query.
        head: The headers of the library, or of the session. Not changed.
        own, params, data, json: The `headers`, and the others, as the caller has given them.
    """
    if type(method) is not str or not method.isascii() or not method.isalpha() or not is_plain_path(path):
        return None
    method = method.upper()
    query = ""
    if params:
        if type(params) is not dict:
            return None
        for name, value in params.items():
            if type(value) is int:
                value = str(value)
            if type(name) is not str or type(value) is not str or not (_is_word(name) and _is_word(value)):
                query = _encoded(params)
                break
            query += f"&{name}={value}" if query else f"{name}={value}"
        if query is None:
            return None
        if query:
            path = f"{path}&{query}" if "?" in path else f"{path}?{query}"
    body: bytes | None = None
    text: str | None = None
    sent: dict[str, str] = head.sent
    if own or data or json is not None or method not in _BODILESS:
        fields = head.fields.copy()
        if own:
            if type(own) is not dict:
                return None
            for name, value in own.items():
                if (
                    type(name) is not str
                    or type(value) is not str
                    or not _is_name(name)
                    or not _is_value(value)
                ):
                    return None
                fields[name.lower()] = name, value
        kind = None
        if data:
            if type(data) is bytes:
                body = data
            elif type(data) is str:
                text = data
            elif type(data) is dict:
                text, kind = _encoded(data), "application/x-www-form-urlencoded"
            if text is not None:
                if not text or not text.isascii():
                    return None
                body = text.encode()
            elif body is None:
                return None
        elif json is not None:
            try:
                body = _models.complexjson.dumps(json, allow_nan=False).encode()
            except Exception:
                return None  # requests says what is wrong with it
            kind = "application/json"
        if body is not None:
            fields["content-length"] = "Content-Length", str(len(body))
        elif method not in _BODILESS and "content-length" not in fields:
            fields["content-length"] = "Content-Length", "0"
        if kind is not None and "content-type" not in fields:
            fields["content-type"] = "Content-Type", kind
        sent = dict(fields.values())
    return Plain(method, base + path, prefix + path, sent, body, text)


def _encoded(fields: dict[Any, Any]) -> Any:
    """*fields* as requests writes them; None where it would refuse them."""
    try:
        return PreparedRequest._encode_params(fields)
    except Exception:
        return None
