"""Whether requests is as it was published: only then may a governed call go past its functions.

Mocks, instrumentation and tests replace methods of `Session` and `HTTPAdapter`, and the names by which these find
their classes and helpers. All of these must see the call. What is compared is the object: a wrapper may say
that it equals what it wraps (wrapt's does).
"""

from __future__ import annotations

import itertools
import operator
import types
from collections.abc import Callable
from typing import Any, Final

import requests.adapters
import requests.cookies
import requests.hooks
import requests.models
import requests.sessions
import requests.structures
import requests.utils
from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response
from requests.sessions import Session
from requests.structures import CaseInsensitiveDict

from headrace.adapters.layers import without_ours

_ONE = (Session, Session.__mro__[1], HTTPAdapter, PreparedRequest, PreparedRequest.__mro__[1], Response)
# Views: what a class has now.
_values = tuple(vars(one).values() for one in _ONE)
# The helpers by which a call would leave these classes, in the modules that look them up.
_of_sessions = operator.attrgetter(
    *(
        "PreparedRequest",
        "Request",
        "extract_cookies_to_jar",
        "merge_setting",
        "merge_cookies",
        "dispatch_hook",
    ),
    *("get_netrc_auth", "get_environ_proxies", "resolve_proxies"),
)
_of_adapters = operator.attrgetter(
    "Response", "CaseInsensitiveDict", "extract_cookies_to_jar", "get_encoding_from_headers"
)
_of_models = operator.attrgetter("CaseInsensitiveDict", "cookiejar_from_dict", "get_cookie_header")
_sessions, _adapters, _models = requests.sessions, requests.adapters, requests.models
_HOMES = tuple(
    vars(module)
    for module in (
        requests.sessions,
        requests.adapters,
        requests.models,
        requests.cookies,
        requests.hooks,
        requests.utils,
    )
)
_END: Final = (object(),)  # where one of two chains is shorter, its end is compared with something else

_known: tuple[list[Any], bool] = ([], False)
"""What was there at the last look, and the answer. One reference: threads may read an older one, which is compared."""


def is_stock() -> bool:
    """Whether a call may go past requests' functions: nobody but headrace has replaced one that it would enter."""
    known, answer = _known
    names = _of_sessions(_sessions), _of_adapters(_adapters), _of_models(_models)
    try:
        if known and all(map(operator.is_, itertools.chain.from_iterable((*_values, *names, _END)), known)):
            return answer
    except RuntimeError:  # another thread is about to add something to a class
        return False
    return _look()


def _look() -> bool:
    global _known
    names = _of_sessions(_sessions), _of_adapters(_adapters), _of_models(_models)
    found: list[Any] = list(itertools.chain(*(vars(one).copy().values() for one in _ONE), *names))
    answer = all(map(_is_stocks, found))
    _known = [*found, *_END], answer
    return answer


def _is_stocks(value: Any) -> bool:
    """Whether *value*, found in a class or module of requests, was defined there, or is ours over what was."""
    value = without_ours(value)
    kind = type(value)
    if kind is property:
        value = value.fget
    elif kind is staticmethod or kind is classmethod:
        value = value.__func__
    kind = type(value)
    if kind is types.FunctionType:
        return any(value.__globals__ is home for home in _HOMES)
    if isinstance(value, type):
        return value in _ONE or value is requests.models.Request or value is CaseInsensitiveDict
    return not callable(value) or kind is types.GetSetDescriptorType


_below: Callable[[Any], tuple[Any, ...]] = operator.attrgetter(
    *("adapters.HTTPAdapter.get_connection_with_tls_context", "adapters.HTTPAdapter.cert_verify"),
    *("adapters.HTTPAdapter.request_url", "adapters.HTTPAdapter.add_headers"),
    *("adapters.HTTPAdapter.build_response", "adapters.extract_cookies_to_jar"),
    *("adapters.Response", "adapters.CaseInsensitiveDict", "adapters.get_encoding_from_headers"),
    *("models.Response.__init__", "models.cookiejar_from_dict", "models.CaseInsensitiveDict"),
    "models.PreparedRequest.path_url",
)
_known_below: tuple[tuple[Any, ...], bool] = ((), False)
"""As `_known`."""


def is_stock_below(send: Callable[..., Any]) -> bool:
    """The same of what *send* enters, an adapter's. Above it anything may have been replaced: it has seen the call."""
    global _known_below
    found = send, *_below(requests)
    known, answer = _known_below
    if not known or not all(map(operator.is_, found, known)):
        answer = all(map(_is_stocks, found))
        _known_below = found, answer
    return answer
