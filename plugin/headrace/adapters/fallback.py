"""What a refused call gets instead, where the file has a `fallback`: the parts that both libraries share."""

from __future__ import annotations

import io
from collections.abc import Mapping
from http.client import responses as reasons
from typing import Any

from urllib3._collections import HTTPHeaderDict
from urllib3.response import HTTPResponse
from urllib3.util.retry import Retry

from headrace.policy.plan import FallbackPlan
from headrace.policy.routes import moved
from headrace.runtime.upstream import Upstream

_CREDENTIALS = frozenset(name.lower() for name in Retry.DEFAULT_REMOVE_HEADERS_ON_REDIRECT)
"""Credentials. They are meant for one origin: they follow no redirect to another (urllib3's list), and no fallback."""


def canned(fallback: FallbackPlan, *, method: str, url: str, decode_content: bool = True) -> HTTPResponse:
    """The answer that the file has written, unread."""
    return HTTPResponse(
        body=io.BytesIO(b"" if method == "HEAD" else fallback.body),
        headers=HTTPHeaderDict(fallback.headers),
        status=fallback.status,
        version=11,
        reason=reasons.get(fallback.status, ""),
        preload_content=False,
        decode_content=decode_content,
        request_method=method,
        request_url=url,
    )


def url_at(other: Upstream, refused: Upstream, url: str) -> str | None:
    """*url* of *refused* as the same path below the `base_url` of *other*. None where its path is not certain."""
    plan = refused.plan
    return moved(url, (plan.base, *plan.match), to=other.plan.base)


def headers_for(other: Upstream, refused: Upstream, headers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of *headers* that may go to *other*. `Host` does not, and credentials stay with their origin."""
    dropped = {"host"} if other.plan.base.origin == refused.plan.base.origin else _CREDENTIALS | {"host"}
    return {name: value for name, value in headers.items() if name.lower() not in dropped}
