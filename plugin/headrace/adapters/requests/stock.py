"""Whether requests is as it was published: only then may a governed call go past its functions.

Mocks, instrumentation and tests replace methods of `Session` and `HTTPAdapter`, and the names by which these find
their classes and helpers. All of these must see the call. What is compared is the object: a wrapper may say
that it equals what it wraps (wrapt's does).
"""

from __future__ import annotations

import operator
import types
import urllib.parse
from collections.abc import Callable
from typing import Any, Final

import requests._internal_utils
import requests.adapters
import requests.cookies
import requests.hooks
import requests.models
import requests.sessions
import requests.structures
import requests.utils
import urllib3.util.url
from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response
from requests.sessions import Session
from requests.structures import CaseInsensitiveDict

from headrace.adapters.layers import without_ours
from headrace.transport.wire.untouched import comparison

_ONE = (Session, Session.__mro__[1], HTTPAdapter, PreparedRequest, PreparedRequest.__mro__[1], Response)
_HELPERS: Final = (
    *("sessions.PreparedRequest", "sessions.Request", "sessions.extract_cookies_to_jar"),
    *("sessions.merge_setting", "sessions.merge_cookies", "sessions.dispatch_hook"),
    *("sessions.get_netrc_auth", "sessions.get_environ_proxies", "sessions.resolve_proxies"),
    *("adapters.Response", "adapters.extract_cookies_to_jar", "adapters.get_encoding_from_headers"),
    *("adapters.CaseInsensitiveDict", "models.CaseInsensitiveDict"),
    *("models.cookiejar_from_dict", "models.get_cookie_header", "models.Request.__init__"),
    *("models.requote_uri", "models.parse_url", "models.urlunparse", "models.urlencode"),
    *("models.to_native_string", "models.to_key_val_list", "models.get_auth_from_url"),
    *("models.check_header_validity", "utils._validate_header_part"),
    *("sessions.merge_hooks", "sessions.to_key_val_list"),
)
"""The helpers by which a call would leave these classes, in the modules that look them up."""
_helpers_in = operator.attrgetter(*_HELPERS)
_KINDS: Final[dict[str, Any]] = {
    "sessions": requests.sessions,
    "adapters": requests.adapters,
    "models": requests.models,
    "utils": requests.utils,
    **{f"kind_{at}": one for at, one in enumerate(_ONE)},
    **{f"vars_{at}": vars(one) for at, one in enumerate(_ONE)},  # views: what a class has now
}
_HOMES = tuple(
    vars(module)
    for module in (
        requests.sessions,
        requests.adapters,
        requests.models,
        requests.cookies,
        requests.hooks,
        requests.utils,
        requests._internal_utils,
        urllib.parse,
        urllib3.util.url,
    )
)
_known: tuple[Callable[[], bool], bool] = (lambda: False, False)
"""Whether all is as it was at the last look, and the answer then. One reference: threads may read an older one."""


def is_stock() -> bool:
    """Whether a call may go past requests' functions: nobody but headrace has replaced one that it would enter."""
    is_as_known, answer = _known
    try:
        return answer if is_as_known() else _look()
    except (AttributeError, KeyError):  # something was taken away
        return _look()
    except RuntimeError:  # another thread is about to add something to a class
        return False


def _look() -> bool:
    global _known
    names, found = [*_HELPERS], [*_helpers_in(requests)]
    for at, one in enumerate(_ONE):
        values = vars(one).copy()
        # As many as before, and each the same: then nothing was added to the class.
        names.append(f"(len(vars_{at}) == {len(values)})")
        found.append(True)
        for name, value in values.items():
            if type(value) is not types.GetSetDescriptorType and (
                callable(value) or hasattr(value, "__get__")
            ):
                is_read = getattr(one, name, None) is value  # no classmethod, which is a new object each time
                names.append(f"kind_{at}.{name}" if is_read else f"vars_{at}[{name!r}]")
                found.append(value)
    answer = all(map(_is_stocks, found))
    _known = comparison(names, _KINDS, found), answer
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
