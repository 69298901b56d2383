"""A `requests.Response` that is filled on touch: most callers look at three of its twelve attributes."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import requests.models
from requests.cookies import cookiejar_from_dict, extract_cookies_to_jar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

from headrace.adapters.requests.plain import Plain


class Response(requests.models.Response):  # of the same name: some look at that
    """What `HTTPAdapter.build_response` makes of *raw*, without making it yet.

    Each attribute is made at its first touch and is an ordinary one from then on. A pickle and a copy hold a
    `requests.Response`, so that they can be loaded where there is no headrace. `isinstance` says what it should;
    `type(response) is requests.Response` does not.

    Args:
        raw: urllib3's response.
        asked: The request that it answers.
        adapter: What it came through, `connection`.
    """

    _took_s = 0.0  # what becomes `elapsed`

    def __init__(self, raw: Any, asked: Plain, adapter: Any) -> None:
        # Not stock's: it makes a cookie jar, with a policy and a lock, and three more objects.
        self.raw = self._wire = raw
        self.status_code = raw.status
        self.url = asked.url
        self.connection = adapter
        self._content = self._content_consumed = False
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        make = _MAKES.get(name)
        if make is None:
            raise AttributeError(f"'Response' object has no attribute {name!r}")
        # The first of two threads that touch it at once.
        return _attributes(self).setdefault(name, make(self))

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        """All attributes, for `vars`, `dir` and those who copy it."""
        for name in _MAKES:
            getattr(self, name)
        found: dict[str, Any] = _attributes(self)
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        # `__newobj__` insists on the class of this object.
        return copyreg._reconstructor, (requests.models.Response, object, None), self.__getstate__()  # type: ignore[attr-defined]


_attributes: Callable[[object], dict[str, Any]] = vars(requests.models.Response)["__dict__"].__get__


def _headers(response: Response) -> Any:
    headers = CaseInsensitiveDict(response._wire.headers)
    # requests looks for it once. What the caller does to the headers later does not change it.
    _attributes(response).setdefault("encoding", get_encoding_from_headers(headers))
    return headers


def _encoding(response: Response) -> Any:
    response.headers  # noqa: B018 - makes it
    return _attributes(response)["encoding"]


def _cookies(response: Response) -> Any:
    jar = cookiejar_from_dict({})
    extract_cookies_to_jar(jar, response._asked.prepared(), response._wire)
    return jar


_MAKES: dict[str, Callable[[Response], Any]] = {
    "headers": _headers,
    "encoding": _encoding,
    "reason": lambda response: response._wire.reason,
    "history": lambda response: [],
    "_next": lambda response: None,
    "request": lambda response: response._asked.prepared(),
    "cookies": _cookies,
    "elapsed": lambda response: timedelta(0, response._took_s),
    # Of a call that went the short way. Any other is given its record at its end; `failure_if` looks before that.
    "headrace": lambda response: getattr(response._wire, "headrace", None),
}
