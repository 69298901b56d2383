"""Calls by name through urllib3, the short way (`engine.lane`): the head of the request, and the answer's view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from requests.structures import CaseInsensitiveDict
from urllib3._collections import HTTPHeaderDict
from urllib3.util.retry import Retry

from headrace.engine.lane import IN_ONE_GO, Told, View, first_try, lane_of, record_of_told
from headrace.policy.plan import TimeoutPlan
from headrace.runtime.upstream import Upstream
from headrace.transport.connection_auth import is_of_connection
from headrace.transport.stock.library_headers import is_librarys
from headrace.transport.stock.pool import with_defaults
from headrace.transport.wire.request import SharedHeaders, is_plain_target, lines_of
from headrace.transport.wire.response import WholeResponse

_MAKER: Final = "urllib3"
_LONG: Final = frozenset(
    {
        "proxy-authorization",
        "transfer-encoding",
        "expect",
        "traceparent",
        "host",
    }
)
"""Headers of a call, in lower case, that say more than what is sent: whose the connection is, how it ends."""

NO_RETRY: Final = Retry(False, redirect=False)  # urllib3 treats it as immutable, and a new one costs 20 calls
_MOST_METHODS: Final = 64  # a caller may make them up
_LENGTH: Final = "Content-Length: 0\r\n"


class _Heads:
    """Heads of requests to one upstream, rendered once.

    Attributes:
        lane: None: the short way is closed.
        long_methods: Methods that need the long way: a key is made for them, or stock writes their heads.
        long_names: Headers that need it, in lower case.
        headers: Those of the rules, as they stand in the heads.
        bare: By method, what comes behind the first line where there is no body.
        shared: By method, the headers that calls shared of late, and what comes behind the first line with them.
        around: By method, what comes before the length of a body, and behind it.
        of_file: The headers of the file: the name in lower case, and name and value.
    """

    __slots__ = ("around", "bare", "headers", "lane", "long_methods", "long_names", "of_file", "shared")

    def __init__(self, upstream: Upstream) -> None:
        plan = upstream.plan
        self.headers = plan.headers if upstream.live is None else upstream.live.now()
        self.lane = lane_of(upstream, self.headers)
        key = plan.retry.idempotency_key
        self.long_methods = frozenset({"HEAD"})  # its answer has the framing of a body, and none
        if key is not None:
            self.long_methods |= frozenset(key.methods) - frozenset(plan.retry.methods)
        self.long_names = _LONG | {upstream.request_id_header.lower()}
        self.bare: dict[str, str] = {}
        self.around: dict[str, tuple[str, str]] = {}
        self.shared: dict[str, tuple[object, str]] = {}
        self.of_file = [(pair[0].lower(), pair) for pair in self.headers]
        own = {name for name, _ in self.of_file}
        if own & (self.long_names - {"host"}) or "connection" in own:
            self.lane = None

    def render(self, upstream: Upstream, method: str) -> bool:
        """Render the heads of *method*; False: stock writes them. Mutates."""
        host, headers = upstream.endpoint.pool.host_line, dict(self.headers)
        bare, sized = lines_of(method, host, headers, None), lines_of(method, host, headers, b"")
        if bare is None or sized is None or sized.count(_LENGTH) != 1:
            if len(self.long_methods) < _MOST_METHODS:
                self.long_methods |= {method}
            return False
        before, _, behind = sized.partition(_LENGTH)
        self.around[method] = before, behind
        self.bare[method] = bare
        return True


def quickly(
    upstream: Upstream,
    timeouts: TimeoutPlan,
    method: str,
    target: str,
    body: object,
    headers: Mapping[str, Any] | None,
    view: View,
    owner: object | None = None,
    is_plain: bool = False,
) -> Any:
    """The answer to a buffered call, or `Begun`, or None, as `first_try` gives them. Blocks.

    Args:
        is_plain: *target* is known to be a plain one.
    """
    heads = upstream.compiled.get(_MAKER)
    if heads is None or (upstream.live is not None and heads.headers is not upstream.live.now()):
        heads = upstream.compiled[_MAKER] = _Heads(upstream)
    lane = heads.lane
    if lane is None or method in heads.long_methods or not (is_plain or is_plain_target(target) is not None):
        return None
    if body is not None:
        if type(body) is str:
            try:
                body = body.encode()  # as urllib3 sends it
            except UnicodeEncodeError:
                return None
        if type(body) is not bytes or len(body) > IN_ONE_GO:
            return None
    is_shared = type(headers) is SharedHeaders and body is None
    known = heads.shared.get(method) if is_shared else None
    lines: str | None
    if known is not None and known[0] is headers:
        lines = known[1]
    elif headers:
        own: Any
        if is_shared or type(headers) is dict:
            names = [name.lower() for name in headers]
            if (
                not heads.long_names.isdisjoint(names)
                or ("connection" in names and headers.get("Connection") != "keep-alive")
                or ("authorization" in names and is_of_connection(headers))
            ):
                return None
            own = with_defaults(dict(headers) if is_shared else headers, heads.headers)
        else:
            own = _merged(heads, headers)
            if own is None:
                return None
        lines = lines_of(method, upstream.endpoint.pool.host_line, own, body)
        if lines is None:
            return None
        if is_shared:
            heads.shared[method] = headers, lines
    elif method not in heads.bare and not heads.render(upstream, method):
        return None
    elif body is None:
        lines = heads.bare[method]
    else:
        before, behind = heads.around[method]
        lines = f"{before}Content-Length: {len(body)}\r\n{behind}"
    return first_try(upstream, lane, timeouts, method, target, lines, body, view, owner)


def _merged(heads: _Heads, headers: Any) -> dict[str, str] | None:
    """*headers*, no dict, with those of the file, as `with_defaults` makes them; None: they need the long way."""
    kind = type(headers)
    # The insides of these two: by the name in lower case, the name as it is sent, and its values. Asking the mappings
    # takes two calls for each.
    store: dict[str, Any]
    if kind is CaseInsensitiveDict:
        store = headers._store.copy()
    elif kind is HTTPHeaderDict:
        store = headers._container.copy()
        for found in store.values():
            if len(found) != 2:  # the name comes with two values
                return None
    else:
        return None
    if not heads.long_names.isdisjoint(store):
        return None
    if "connection" in store and store["connection"][1] != "keep-alive":
        return None
    if "authorization" in store:
        value = store["authorization"][1]
        if type(value) is not str or is_of_connection({"authorization": value}):
            return None
    for lower, pair in heads.of_file:
        found = store.get(lower)
        if found is None or is_librarys(lower, found[1]):
            store[lower] = pair
    return dict(store.values())


class QuickResponse(WholeResponse):
    """What a call by name gets that went the short way."""

    record_of = staticmethod(record_of_told)
    _retries = NO_RETRY


def view_of(kind: type[QuickResponse]) -> View:
    """What makes responses of *kind*."""
    new: Any = kind.__new__

    def view(status: int, head: bytes, body: bytes, told: Told) -> QuickResponse | None:
        answer: QuickResponse = new(kind)
        # Its base io.IOBase makes an attribute expensive that is set as one. And `in` raises and catches an error
        # before it looks for bytes.
        fields = answer.__dict__
        fields["status"], fields["head"], fields["told"] = status, head, told
        fields["_body"], fields["n_sent"] = body, len(body)
        if told[8].find(b"oding:") >= 0 and not answer.set_whole(body):  # of the content, or of the transfer
            return None
        return answer

    return view


VIEW: Final = view_of(QuickResponse)
