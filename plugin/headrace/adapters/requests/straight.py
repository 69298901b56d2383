"""Plain calls of any `requests.Session` to governed URLs, past the functions of requests that only carry arguments on.

Of a thousand Python calls that one of a Session takes, three hundred look at the environment, and as many copy
headers and jars. They are left out where the result is the same: requests is as published (`stock.py`), the session
and its adapter are requests' own, the call brings no hooks, proxies, certificate or trust of its own, and nothing in
the environment is about it. Any other call goes through requests as it always did.

What the caller gets is what requests makes: a `requests.Response`, its own class, its own errors, redirects followed
by requests.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from types import FunctionType
from typing import Any

import requests
import requests.sessions
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from requests.exceptions import InvalidSchema
from requests.models import PreparedRequest, Response
from requests.sessions import Session
from requests.structures import CaseInsensitiveDict

from headrace.adapters.body import position_of
from headrace.adapters.requests.direct import is_redirect
from headrace.adapters.requests.environment import Settings, may_have_netrc, settings_of_environment
from headrace.adapters.requests.plain import Plain, head_of, plain_request
from headrace.adapters.requests.session import is_empty, is_left_as_written, parts_of, sets_cookies
from headrace.adapters.requests.stock import is_stock
from headrace.adapters.requests.surface import (
    OF_ADAPTER,
    as_existing,
    quickly_as_prepared,
    quickly_through,
    reason_to_pass,
    send_by_call,
    stock_send,
)
from headrace.adapters.routing import Routing
from headrace.adapters.timeouts import limits_of
from headrace.adapters.urllib3.own_retries import retries_itself
from headrace.engine.begun import Begun
from headrace.policy.request import Request
from headrace.runtime.upstream import Upstream

_METHODS = frozenset(
    name for kind in Session.__mro__ for name, value in vars(kind).items() if callable(value)
).difference(vars(object))
# A call that has come as far as `request` has been through these, or never comes to them.
_ENTERED = _METHODS - {
    *("get", "options", "head", "post", "put", "patch", "delete", "request"),
    *("mount", "close", "__enter__", "__exit__"),
}
_entered: Callable[[Any], tuple[Any, ...]] = operator.attrgetter("__getattribute__", *sorted(_ENTERED))
_sessions: Any = requests.sessions
_NO_HOOKS: dict[str, list[Any]] = {"response": []}


def request_straight(
    routing: Routing,
    session: Any,
    method: Any,
    url: Any,
    params: Any,
    data: Any,
    headers: Any,
    cookies: Any,
    files: Any,
    auth: Any,
    timeout: Any,
    allow_redirects: Any,
    proxies: Any,
    hooks: Any,
    stream: Any,
    verify: Any,
    cert: Any,
    json: Any,
) -> Response | None:
    """The answer to `Session.request`; None: nothing was done, requests must see to it. Blocks.

    The arguments after *session* are those of `Session.request`, in its order.

    Raises:
        UpstreamError: The twin that is also a requests exception.
        requests.RequestException: What requests raises.
    """
    upstream = routing.find(url) if type(url) is str else None
    if (
        upstream is None
        or upstream.mode != "enforce"
        or proxies
        or (hooks is not None and hooks != {})
        or cert
        or (verify is not None and verify is not True)
        or not is_stock()
        or not _is_plain(session)
    ):
        return None
    parts = parts_of(url)
    if parts is None:
        return None
    origin, path = parts.groups()
    try:
        adapter = session.get_adapter(url)
    except InvalidSchema:  # it may have more to say against the call
        return None
    if (
        type(adapter) is not HTTPAdapter
        or not OF_ADAPTER.isdisjoint(adapter.__dict__)
        or retries_itself(adapter.max_retries)
    ):
        return None
    found: Settings | None = settings_of_environment(origin) if session.trust_env else (OrderedDict(), True)
    if found is None:
        return None
    proxies, trust = found
    if reason_to_pass(upstream.plan, adapter, url, trust, None, None) is not None:
        return None
    asked: Plain | None = None
    if (
        not (cookies or files or auth or session.auth or session.params)
        and is_empty(session.cookies)
        and type(session.headers) is CaseInsensitiveDict
        and not (session.trust_env and may_have_netrc())
    ):
        head = head_of(session.headers)
        if head is not None and is_left_as_written(origin):
            asked = plain_request(method, origin, "", path, head, headers, params, data, json)
    if asked is not None:
        prepared = asked.prepared()
    else:
        prepared = session.prepare_request(
            _sessions.Request(
                method=method.upper(),
                url=url,
                headers=headers,
                files=files,
                data=data or {},
                json=json,
                params=params or {},
                auth=auth,
                cookies=cookies,
                hooks=hooks,
            )
        )
    stream = session.stream if stream is None else stream
    if prepared.url != url and (
        routing.find(prepared.url or "") is not upstream or session.get_adapter(prepared.url) is not adapter
    ):
        asked, is_ours = None, False
    else:
        is_ours = prepared.hooks == _NO_HOOKS
    if not is_ours:
        sent: Response = session.send(
            prepared,
            timeout=timeout,
            allow_redirects=allow_redirects,
            proxies=proxies,
            stream=stream,
            verify=trust,
            cert=cert,
        )
        return sent
    clock = _sessions.preferred_clock
    began = clock()
    answer, is_whole = _answer(
        upstream, adapter, asked, prepared, timeout=timeout, stream=stream, verify=trust, proxies=proxies
    )
    answer.elapsed = timedelta(seconds=clock() - began)
    jar = session.cookies
    if type(jar) is not RequestsCookieJar:
        # It may want each answer. requests passes over one that is false; ours is true once it was asked.
        getattr(getattr(answer.raw, "_original_response", None), "msg", None)
    elif is_whole and not sets_cookies(answer):
        return answer
    # As `Session.send` goes on, behind the response hooks.
    extract_cookies_to_jar(jar, prepared, answer.raw)
    if is_redirect(answer):
        hops = session.resolve_redirects(
            answer,
            prepared,
            stream=stream,
            timeout=timeout,
            verify=trust,
            cert=cert,
            proxies=proxies,
            yield_requests=not allow_redirects,
        )
        if allow_redirects:
            history = [answer, *hops]
            answer = history.pop()
            if history:
                answer.history = history
        else:
            answer._next = next(hops, None)
    if not stream:
        answer.content  # noqa: B018 - as stock: the broken body of a redirect is an error now
    return answer


def is_librarys(function: Any) -> bool:
    """Whether *function* is requests' own, from the module of its sessions."""
    return type(function) is FunctionType and function.__globals__ is vars(requests.sessions)


def _is_plain(session: Any) -> bool:
    """Whether *session* does with a call what requests' own does, and has nothing to say about its connection."""
    kind = type(session)
    return (
        not (session.cert or session.proxies)
        and session.verify is True
        and session.hooks == _NO_HOOKS
        and _ENTERED.isdisjoint(session.__dict__)
        and (kind is Session or all(map(operator.is_, _entered(kind), _entered(Session))))
    )


def _answer(
    upstream: Upstream,
    adapter: HTTPAdapter,
    asked: Plain | None,
    prepared: PreparedRequest,
    *,
    timeout: Any,
    stream: Any,
    verify: Any,
    proxies: Any,
) -> tuple[Response, bool]:
    """What `HTTPAdapter.send` answers, and whether its body has come and no redirect is in it. Blocks."""
    plan = upstream.plan
    timeouts = plan.timeouts if timeout is None else limits_of(upstream, timeout)
    original = stock_send()
    begun = None
    if not stream:
        if asked is not None:
            quick = quickly_through(
                upstream, timeouts, adapter, prepared, asked.method, asked.target, asked.body, asked.headers
            )
        else:
            quick = quickly_as_prepared(original, upstream, timeouts, adapter, prepared)
        if type(quick) is Begun:
            begun = quick
        elif quick is not None:
            return quick, True
    body = prepared.body
    replayable, body_at = (True, None) if body is None or type(body) is bytes else position_of(body)
    method = (prepared.method or "GET").upper()
    request = Request(prepared, method, prepared.headers, timeouts, bool(stream), replayable)
    answer = send_by_call(
        original,
        upstream,
        adapter,
        prepared,
        request,
        begun=begun,
        body_at=body_at,
        verify=as_existing(verify),
        proxies=proxies,
    )
    return answer, False
