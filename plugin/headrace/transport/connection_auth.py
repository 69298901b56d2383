"""Schemes that authenticate the connection and not the request: from then on the connection belongs to one user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

AUTHORIZATION: Final = b"authorization:"
"""A head in lower case contains this where `authenticates_connection` is worth asking."""

_SCHEMES: Final = re.compile(
    rb"^(?:proxy-)?authorization:[ \t]*(?:ntlm|negotiate|kerberos)(?![^ \t\r,])", re.MULTILINE
)


def is_of_connection(headers: Mapping[str, object]) -> bool:
    """The same question about the *headers*, in any case, of a request that is not on the wire yet."""
    lines = (
        name.encode() + b":" + (value if isinstance(value, bytes) else str(value).encode("utf-8", "replace"))
        for name, value in headers.items()
        if name.lower() in ("authorization", "proxy-authorization")
    )
    return any(authenticates_connection(line.lower()) for line in lines)


def authenticates_connection(head: bytes) -> bool:
    """Whether the request with *head*, in lower case, speaks NTLM, Negotiate or Kerberos (failures.md 54).

    The request on the wire is looked at. `WWW-Authenticate` alone would miss callers that authenticate without being
    asked, and would take the connections of callers that never do. The first message of a handshake is such a
    request, so the second finds the connection that it needs.

    Source: RFC 4559 §6 and [MS-NTHT] §1.3 on connections that carry one user's authentication.
    """
    return _SCHEMES.search(head) is not None
