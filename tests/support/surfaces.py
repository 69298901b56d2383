"""The surfaces: every way in which a caller's request reaches headrace, called with the same words.

What is promised of a call holds on each of them. A test that takes the fixture `call` (`tests/adapters/conftest.py`)
runs on the four; one that needs others, or fewer, says so with `@across(…)`. All of them call the upstream `billing`,
the name that `support.governed.rules` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter

import headrace

INSTALL = "install: {urllib3: true}\n"
"""What a file has to say (`rules(…, more=INSTALL)`) for `MANAGER` to be governed as the others are."""


@dataclass(frozen=True, repr=False)
class Surface:
    """One way in; calling it makes a call."""

    name: str
    library: Literal["requests", "urllib3"]
    """Whose answers and errors its callers get."""
    send: Callable[..., Any]
    """Takes the Headrace, method, base URL, path, and keywords in the words of its library."""

    def __call__(
        self, hr: headrace.Headrace, base_url: str, method: str = "GET", *, path: str = "/a", **kw: Any
    ) -> Any:
        """The answer of `billing` at *base_url*, which is the upstream's; *kw* is in the words of requests."""
        return self.send(
            hr, method, base_url, path, **(kw if self.library == "requests" else _in_urllib3s_words(kw))
        )

    def __repr__(self) -> str:
        return self.name

    @property
    def error(self) -> type[Exception]:
        """The family of its errors."""
        return requests.RequestException if self.library == "requests" else urllib3.exceptions.HTTPError


def _in_urllib3s_words(kw: Mapping[str, Any]) -> dict[str, Any]:
    told = dict(kw)
    if "data" in told:
        told["body"] = told.pop("data")
    if "stream" in told:
        told["preload_content"] = not told.pop("stream")
    if told.get("timeout", 0) is None:
        del told["timeout"]  # there it would be no limit
    if isinstance(told.get("timeout"), tuple):
        connect, read = told["timeout"]
        told["timeout"] = urllib3.Timeout(connect=connect, read=read)
    return told


def _by_url(hr: headrace.Headrace, method: str, base_url: str, path: str, **kw: Any) -> requests.Response:
    return requests.request(method, base_url + path, **kw)


def _by_session(hr: headrace.Headrace, method: str, base_url: str, path: str, **kw: Any) -> requests.Response:
    with hr.session() as session:
        return session.request(method, base_url + path, **kw)


def _by_handle(hr: headrace.Headrace, method: str, base_url: str, path: str, **kw: Any) -> requests.Response:
    return hr.upstream("billing").request(method, path, **kw)


def _by_urlopen(hr: headrace.Headrace, method: str, base_url: str, path: str, **kw: Any) -> Any:
    return hr.upstream("billing").urlopen(method, path, **kw)


def _by_manager(hr: headrace.Headrace, method: str, base_url: str, path: str, **kw: Any) -> Any:
    return urllib3.PoolManager().request(method, base_url + path, **kw)


REQUESTS = Surface("requests", "requests", _by_url)
SESSION = Surface("session", "requests", _by_session)
HANDLE = Surface("handle", "requests", _by_handle)
URLOPEN = Surface("urlopen", "urllib3", _by_urlopen)
MANAGER = Surface("urllib3", "urllib3", _by_manager)

SURFACES = (REQUESTS, HANDLE, URLOPEN, MANAGER)
"""By URL and by name, for each library. A session of ours (`SESSION`) goes the way of the handle."""


def retrying_adapter(retries: Any) -> Surface:
    """A caller of requests with *retries* of its own, set where requests has them: on the adapter."""

    def send(hr: object, method: str, base_url: str, path: str, **kw: Any) -> requests.Response:
        with requests.Session() as session:
            session.mount(base_url, HTTPAdapter(max_retries=retries))
            return session.request(method, base_url + path, **kw)

    return Surface("requests with own retries", "requests", send)


def retrying_manager(retries: Any) -> Surface:
    """A caller of urllib3 with *retries* of its own, set for all calls of its manager."""

    def send(hr: object, method: str, base_url: str, path: str, **kw: Any) -> Any:
        return urllib3.PoolManager(retries=retries).request(method, base_url + path, **kw)

    return Surface("urllib3 with own retries", "urllib3", send)


def retrying_call(retries: Any) -> Surface:
    """A caller of urllib3 with *retries* of its own, passed with the call."""

    def send(hr: object, method: str, base_url: str, path: str, **kw: Any) -> Any:
        return urllib3.PoolManager().request(method, base_url + path, retries=retries, **kw)

    return Surface("a call of urllib3 with own retries", "urllib3", send)


def across(*surfaces: Surface) -> pytest.MarkDecorator:
    """Runs a test that takes `call` on *surfaces*, in place of the four."""
    return pytest.mark.parametrize("call", surfaces, ids=repr)


def status_of(answer: Any) -> int:
    """The status of an answer, whichever library's it is."""
    return answer.status_code if isinstance(answer, requests.Response) else answer.status  # type: ignore[no-any-return]


def body_of(answer: Any) -> bytes:
    """The whole body of an answer, whichever library's it is. Reads what a streamed one has left."""
    return answer.content if isinstance(answer, requests.Response) else answer.data  # type: ignore[no-any-return]


def read(answer: Any) -> bytes:
    """The body of a streamed answer, in the words in which its library's users read it."""
    return answer.content if isinstance(answer, requests.Response) else answer.read()  # type: ignore[no-any-return]
