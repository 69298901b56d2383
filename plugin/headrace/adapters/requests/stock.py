"""Whether requests is as it was published: only then may a governed call go past its functions.

Mocks, instrumentation and tests replace methods of `Session` and `HTTPAdapter`, and the names by which these find
their classes and helpers. All of these must see the call.
"""

from __future__ import annotations

import itertools
import operator
import types
from typing import Any

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

_ONE = (Session, Session.__mro__[1], HTTPAdapter, PreparedRequest, PreparedRequest.__mro__[1], Response)
_CLASSES = tuple(map(vars, _ONE))
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
_of_adapters = operator.attrgetter("Response", "extract_cookies_to_jar", "get_encoding_from_headers")
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

_known: tuple[list[dict[str, Any]], tuple[Any, ...], bool] = ([], (), False)
"""What was there at the last look, and the answer. One reference: threads may read an older one, which is compared."""


def is_stock() -> bool:
    """Whether a call may go past requests' functions: nobody but headrace has replaced one that it would enter."""
    classes, names, answer = _known
    # A dict compares what is the same object in C, without a call.
    if (
        list(_CLASSES) == classes
        and (*_of_sessions(requests.sessions), *_of_adapters(requests.adapters)) == names
    ):
        return answer
    return _look()


def _look() -> bool:
    global _known
    classes: list[dict[str, Any]] = [dict(one) for one in _CLASSES]
    names = (*_of_sessions(requests.sessions), *_of_adapters(requests.adapters))
    answer = all(map(_is_stocks, itertools.chain(names, *(one.values() for one in classes))))
    _known = classes, names, answer
    return answer


def _is_stocks(value: Any) -> bool:
    """Whether *value*, found in a class or module of requests, was defined there, or is ours over what was."""
    value = getattr(value, "headrace_original", value)
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, types.FunctionType):
        return any(value.__globals__ is home for home in _HOMES)
    if isinstance(value, type):
        return value in _ONE or value is requests.models.Request
    return not callable(value) or isinstance(value, types.GetSetDescriptorType)
