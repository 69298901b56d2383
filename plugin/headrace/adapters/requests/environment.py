"""What the environment says to a call of requests: bundles, proxies, and whether there is a .netrc.

requests looks at all of it for each call, which takes 280 Python calls. Here the names are looked at, and the files,
for each call as well; what requests makes of them is remembered for as long as they are the same.
"""

from __future__ import annotations

import operator
import os
import sys
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import requests.sessions
import requests.utils

_urllib: Any = urllib.request
_sessions: Any = requests.sessions
_looks_of: Callable[[Any], tuple[Any, ...]] = operator.attrgetter(
    "getproxies", "proxy_bypass", "should_bypass_proxies", "select_proxy"
)
_LOOKS: Final = (
    _urllib.getproxies_environment,
    _urllib.proxy_bypass_environment,
    requests.utils.should_bypass_proxies,
    requests.utils.select_proxy,
)
_NETRC_FILES: Final = (".netrc", "_netrc")
_IS_ENVIRONMENT_ALL: Final = sys.platform not in ("darwin", "win32")
"""Other systems keep proxies elsewhere as well."""

_MOST_ORIGINS: Final = 512
_proxies: dict[str, tuple[list[tuple[bytes, bytes]], OrderedDict[str, str] | None]] = {}
"""By origin: the variables that were looked at, and what requests has made of them. A single step on a dict each."""

Settings = tuple[OrderedDict[str, str], Any]
"""The proxies, none of which is the call's, and `verify`."""


def settings_of_environment(origin: str) -> Settings | None:
    """What `Session.merge_environment_settings` finds for a call to *origin* that says nothing of its own.

    None: requests must look by itself, or one of the proxies is for this call.

    Args:
        origin: Scheme and authority, without credentials.
    """
    names: Any = getattr(os.environ, "_data", None)
    if (
        names is None
        or not _IS_ENVIRONMENT_ALL
        or not all(map(operator.is_, _looks_of(requests.utils), _LOOKS))
    ):
        return None
    proxies: OrderedDict[str, str] | None
    if b"_proxy" in b"\0".join(names).lower():
        proxies = _proxies_of(origin, names)
        if proxies is None:
            return None
    else:
        proxies = OrderedDict()
    bundle = names.get(b"REQUESTS_CA_BUNDLE") or names.get(b"CURL_CA_BUNDLE")
    return proxies, os.fsdecode(bundle) if bundle else True


def may_have_netrc() -> bool:
    """Whether requests might find a .netrc. It may say so where there is none, never the other way round."""
    names: Any = getattr(os.environ, "_data", None)
    if names is None or not _IS_ENVIRONMENT_ALL or requests.utils.NETRC_FILES != _NETRC_FILES:
        return True
    home = names.get(b"HOME")
    if home is None or b"NETRC" in names:
        return True
    # A stat that fails takes three times as long as this.
    return os.access(home + b"/.netrc", os.F_OK) or os.access(home + b"/_netrc", os.F_OK)


def verify_of_environment() -> Any:
    """The `verify` that the environment asks for; None where it may say more than that, or a .netrc is there."""
    names: Any = getattr(os.environ, "_data", None)
    if (
        names is None
        or not _IS_ENVIRONMENT_ALL
        or not all(map(operator.is_, _looks_of(requests.utils), _LOOKS))
    ):
        return None
    if b"_proxy" in b"\0".join(names).lower() or may_have_netrc():
        return None
    bundle = names.get(b"REQUESTS_CA_BUNDLE") or names.get(b"CURL_CA_BUNDLE")
    return os.fsdecode(bundle) if bundle else True


def _proxies_of(origin: str, names: dict[bytes, bytes]) -> OrderedDict[str, str] | None:
    """The proxies that requests would hand on for a call to *origin*; None: one of them is for this call."""
    # CGI's variable makes Python leave HTTP_PROXY out.
    held = [
        pair for pair in names.copy().items() if b"_proxy" in pair[0].lower() or pair[0] == b"REQUEST_METHOD"
    ]
    known = _proxies.get(origin)
    if known is None or known[0] != held:
        found = _sessions.get_environ_proxies(f"{origin}/", no_proxy=None)
        kept = None if requests.utils.select_proxy(f"{origin}/", found) else OrderedDict(found)
        if len(_proxies) >= _MOST_ORIGINS:
            _proxies.clear()
        _proxies[origin] = known = held, kept
    proxies = known[1]
    return None if proxies is None else proxies.copy()
