"""`hr.session()`: a `requests.Session` whose plain calls go past the functions that only carry arguments on.

What a session keeps, cookies, headers, auth, holds as in requests, since requests itself puts it into the request
where there is any. Everything that somebody else has a hand in goes through requests as it always did: hooks, mounted
adapters, replaced methods, proxies, trust of the call's own, an environment or a .netrc that says something.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import requests
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from requests.models import PreparedRequest
from requests.structures import CaseInsensitiveDict

from headrace.adapters.requests.answer import Response as DirectResponse
from headrace.adapters.requests.direct import follow, is_redirect, send_direct
from headrace.adapters.requests.environment import verify_of_environment
from headrace.adapters.requests.plain import Plain, head_of, plain_request
from headrace.adapters.requests.stock import is_stock
from headrace.adapters.requests.surface import OF_ADAPTER, GovernedAdapter, reason_to_pass
from headrace.adapters.urllib3.own_retries import retries_itself
from headrace.transport.stock.library_headers import know_again
from headrace.transport.wire.response import WholeResponse

_METHODS = frozenset(
    name for kind in requests.Session.__mro__ for name, value in vars(kind).items() if callable(value)
).difference(vars(object))
parts_of: Callable[[str], re.Match[str] | None] = re.compile(
    r"(https?://[a-z0-9.-]+(?::[0-9]+)?)(/.*)"
).fullmatch

_spelled: dict[str, bool] = {}
"""Whether requests leaves the beginning of a URL as it is written. A single step on a dict each: no lock."""
_MOST_SPELLED = 512


class GovernedSession(requests.Session):
    """A session that a pickle does not change, and that is quicker where the result is the same.

    A subclass may have replaced anything, and goes through requests.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        know_again(self.headers)

    def request(
        self,
        method: Any,
        url: Any,
        params: Any = None,
        data: Any = None,
        headers: Any = None,
        cookies: Any = None,
        files: Any = None,
        auth: Any = None,
        timeout: Any = None,
        allow_redirects: bool = True,
        proxies: Any = None,
        hooks: Any = None,
        stream: Any = None,
        verify: Any = None,
        cert: Any = None,
        json: Any = None,
    ) -> requests.Response:
        """As `requests.Session.request`. Blocks."""
        parts = trust = None
        if (
            type(url) is str
            and type(self) is GovernedSession
            and not (proxies or hooks or cert or self.proxies or self.cert)
            and (verify is None or verify is True)
            and self.verify is True
            and is_stock()
            and _METHODS.isdisjoint(self.__dict__)
            and not self.hooks.get("response")
        ):
            trust = verify_of_environment() if self.trust_env else True
            parts = None if trust is None else parts_of(url)
        adapter: Any = None if parts is None else self.get_adapter(url)
        if (
            parts is None
            or type(adapter) is not GovernedAdapter
            or not OF_ADAPTER.isdisjoint(adapter.__dict__)
            or retries_itself(adapter.max_retries)
        ):
            return super().request(
                method,
                url,
                params=params,
                data=data,
                headers=headers,
                cookies=cookies,
                files=files,
                auth=auth,
                timeout=timeout,
                allow_redirects=allow_redirects,
                proxies=proxies,
                hooks=hooks,
                stream=stream,
                verify=verify,
                cert=cert,
                json=json,
            )
        origin, path = parts.groups()
        asked = None
        if not (cookies or files or auth or self.auth or self.params) and is_empty(self.cookies):
            head = head_of(self.headers) if type(self.headers) is CaseInsensitiveDict else None
            if head is not None and (is_left_as_written(origin)):
                asked = plain_request(method, origin, "", path, head, headers, params, data, json)
        if asked is None:
            asked = Plain.of(
                self.prepare_request(
                    requests.Request(
                        method=method.upper(),
                        url=url,
                        headers=headers,
                        files=files,
                        data=data or {},
                        json=json,
                        params=params or {},
                        auth=auth,
                        cookies=cookies,
                    )
                )
            )
        stream = self.stream if stream is None else stream
        find: Any = adapter._find  # it looks at the URL alone
        upstream = None if asked.has_hooks() else find(asked)
        if (
            upstream is None
            or upstream.mode != "enforce"
            or reason_to_pass(upstream.plan, adapter, url, trust, None, None) is not None
        ):
            return self.send(
                asked.prepared(),
                timeout=timeout,
                allow_redirects=allow_redirects,
                proxies={},
                stream=stream,
                verify=trust,
                cert=None,
            )
        is_streamed = bool(stream)
        answer = send_direct(upstream, adapter, asked, adapter, timeout=timeout, stream=is_streamed)
        if is_redirect(answer):
            return follow(
                self,
                answer,
                asked,
                allow_redirects=allow_redirects,
                timeout=timeout,
                stream=is_streamed,
                verify=trust,
            )
        if sets_cookies(answer):
            extract_cookies_to_jar(self.cookies, asked.prepared(), answer.raw)
        return answer


def sets_cookies(answer: requests.Response) -> bool:
    """Whether *answer* says anything to a cookie jar."""
    raw = answer.raw
    if isinstance(raw, WholeResponse):  # its headers are not made unless somebody wants them
        lowered: bytes = raw.told[8]
        return lowered.find(b"\nset-cookie") >= 0
    found = raw.headers if isinstance(answer, DirectResponse) else answer.headers
    return "set-cookie" in found or "set-cookie2" in found


def is_empty(jar: Any) -> bool:
    """Whether *jar* is requests' own, and has no cookie."""
    return type(jar) is RequestsCookieJar and not vars(jar)["_cookies"]


def is_left_as_written(origin: str) -> bool:
    """Whether requests leaves a URL that begins with *origin* as it is."""
    is_left = _spelled.get(origin)
    if is_left is None:
        prepared = PreparedRequest()
        try:
            prepared.prepare_url(f"{origin}/a", None)
        except Exception:
            return False
        if len(_spelled) >= _MOST_SPELLED:
            _spelled.clear()
        _spelled[origin] = is_left = prepared.url == f"{origin}/a"
    return is_left
