"""Whether the code that the wire path goes around is still the libraries' own.

Others wrap it: tracers (http.client's `putrequest` and `getresponse`, urllib3's `urlopen`), recorders, mocks. Where
they do, a call takes stock's path, so that they see it.
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, Final

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.response import HTTPResponse

WHERE: Final = SimpleNamespace(
    pool=HTTPConnectionPool,
    conn=HTTPConnection,
    tls=HTTPSConnection,
    answer=HTTPResponse,
    client=http.client.HTTPConnection,
    parser=http.client.HTTPResponse,
)
NAMES: Final = (
    *("pool.urlopen", "pool._make_request", "pool._get_timeout", "pool.ConnectionCls"),
    *("conn.request", "conn.getresponse", "conn.putrequest", "conn.putheader", "conn.connect"),
    *("tls.request", "tls.getresponse", "tls.connect"),
    *("answer.__init__", "answer.read", "answer.stream"),
    *("client.request", "client.putrequest", "client.putheader", "client.endheaders"),
    *("client.send", "client.getresponse", "client.connect"),
    *("parser.begin", "parser.read"),
)
OWN: Final[tuple[Any, ...]] = attrgetter(*NAMES)(WHERE)
"""What stock makes a request with, as it was when this was imported."""


def _is_librarys(name: str, function: Any) -> bool:
    """Whether *function* is the library's, and not that of somebody who came before us: its code is from elsewhere."""
    kind = getattr(WHERE, name.partition(".")[0])
    if function is HTTPConnection:
        return True
    file = Path(sys.modules[kind.__module__].__file__ or "")
    return type(function) is FunctionType and Path(function.__code__.co_filename).name == file.name


IS_OWN: Final = all(_is_librarys(name, function) for name, function in zip(NAMES, OWN, strict=True))
"""Whether all of it was the libraries' own by then."""


def comparison(
    names: Sequence[str], kinds: Mapping[str, object], own: Sequence[object]
) -> Callable[[], bool]:
    """A function that answers whether each of *names* still is what *own* has in its place.

    It is one condition, with all that it compares in a closure: CPython remembers where each of them is as long as
    nobody has changed the class. So it takes a fifth of what an attrgetter and `map` take, and two thirds of a lambda
    with globals. Where a name is no longer there, it raises an AttributeError.

    Args:
        names: Expressions, dotted names mostly, in which those of *kinds* stand for classes and modules.
    """
    return _maker(tuple(names), tuple(kinds))(*kinds.values(), *own)


@lru_cache(maxsize=16)
def _maker(names: tuple[str, ...], kinds: tuple[str, ...]) -> Callable[..., Callable[[], bool]]:
    own = [f"own_{at}" for at in range(len(names))]
    # By `is`: a wrapper may say that it equals what it wraps (wrapt's does).
    condition = " and ".join(f"{name} is {one}" for name, one in zip(names, own, strict=True))
    lines = [
        f"def made({', '.join((*kinds, *own))}):",
        " def compared():",
        f"  if {condition}:",
        "   return True",
        "  return False",
        " return compared",
    ]
    home: dict[str, Any] = {}
    exec("\n".join(lines), home)
    made: Callable[..., Callable[[], bool]] = home["made"]
    return made


is_untouched: Final[Callable[[], bool]] = comparison(NAMES, vars(WHERE), OWN) if IS_OWN else lambda: False
"""Whether nobody has replaced what stock makes a request with."""
