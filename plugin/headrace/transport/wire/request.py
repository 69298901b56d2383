"""The head of a request, byte for byte as urllib3 writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from urllib3.connection import _get_default_user_agent
from urllib3.util.request import SKIP_HEADER

from headrace.policy.plan import Origin
from headrace.policy.secret import Secret

_is_token: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
is_plain_target: Final = re.compile(
    r"/[A-Za-z0-9\-._~!$&'()*+,;=:@/]*(?:\?[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*)?"
).fullmatch
"""Matches a target that goes out as it is: urllib3 would encode nothing in it."""

_NEEDS_NO_LENGTH: Final = frozenset({"GET", "HEAD", "DELETE", "TRACE", "OPTIONS"})
_METHODS: Final = _NEEDS_NO_LENGTH | {"POST", "PUT", "PATCH"}
_MOST_NAMES: Final = 1024
_TEXTS: Final = frozenset({str, Secret})

_lower_of: dict[str, str] = {}
"""Names of headers that were looked at, in lower case. Bounded: a caller may make names up."""


class SharedHeaders(dict[str, str]):
    """Headers of many calls, plain ones, which nobody changes: what is made of them is good for all of these calls."""

    __slots__ = ()


def host_line(origin: Origin) -> str:
    """The Host header of requests to *origin*, with its line end."""
    host = origin.host.rstrip(".")
    if not host.isascii():
        host = host.encode("idna").decode()
    if ":" in host:
        host = f"[{host.partition('%')[0]}]"
    standard = 443 if origin.scheme == "https" else 80
    return f"Host: {host}\r\n" if origin.port == standard else f"Host: {host}:{origin.port}\r\n"


def head_of(
    method: str, target: str, host: str, headers: Mapping[str, Any], body: bytes | None
) -> bytes | None:
    """The head of a request, or None where stock is to write it: it is odd, or must be refused.

    Args:
        target: A plain one.
        host: As `host_line` gives it.
    """
    lines = lines_of(method, host, headers, body)
    return None if lines is None else f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


def lines_of(method: str, host: str, headers: Mapping[str, Any], body: bytes | None) -> str | None:
    """Its lines between the first and the empty one, as `head_of` has them; all of it is latin-1."""
    if method not in _METHODS:
        return None
    lines, present = [""], set()
    for name, value in headers.items():
        # Of other classes (an enum's member) the text that is looked at need not be the text that is formatted.
        if type(name) is not str or type(value) not in _TEXTS or value == SKIP_HEADER:
            return None
        lower = _lower_of.get(name) or _noted(name)
        if lower is None:
            return None
        present.add(lower)
        lines.append(f"{name}: {value}\r\n")
    if "transfer-encoding" in present or "expect" in present:
        return None
    if "content-length" in present:
        given = headers.get("Content-Length", headers.get("content-length"))
        # Another one says that the body ends elsewhere: stock's path sees to what becomes of the connection.
        if given != str(len(body or b"")) or len(present) != len(headers):
            return None
    first = "" if "host" in present else host
    if "accept-encoding" not in present:
        first += "Accept-Encoding: identity\r\n"
    if "content-length" not in present:
        if body is not None:
            first += f"Content-Length: {len(body)}\r\n"
        elif method not in _NEEDS_NO_LENGTH:
            first += "Content-Length: 0\r\n"
    if "user-agent" not in present:
        first += _USER_AGENT
    lines[0] = first
    text = "".join(lines)
    n_lines = first.count("\n") + len(lines) - 1
    if text.count("\r") != n_lines or text.count("\n") != n_lines or "\0" in text:
        return None
    if not text.isascii():
        try:
            text.encode("latin-1")
        except UnicodeEncodeError:
            return None
    return text


_USER_AGENT: Final = f"User-Agent: {_get_default_user_agent()}\r\n"


def _noted(name: str) -> str | None:
    if _is_token(name) is None:
        return None
    lower = name.lower()
    if len(_lower_of) < _MOST_NAMES:
        _lower_of[name] = lower
    return lower
