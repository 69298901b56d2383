"""Whether the code that the wire path goes around is still the libraries' own.

Others wrap it: tracers (http.client's `putrequest` and `getresponse`, urllib3's `urlopen`), recorders, mocks. Where
they do, a call takes stock's path, so that they see it.
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Callable
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


def _compared() -> Callable[[], bool]:
    """A function that compares each of NAMES with what was found there, as one expression: 0.4 µs for all of it.

    CPython remembers where each of them is as long as nobody has changed the class. An attrgetter and `map` take 1.9.
    """
    # By `is`: a wrapper may say that it equals what it wraps (wrapt's does).
    text = " and ".join(f"{name} is own_{at}" for at, name in enumerate(NAMES))
    compared: Callable[[], bool] = eval(
        f"lambda: {text}", vars(WHERE) | {f"own_{at}": function for at, function in enumerate(OWN)}
    )
    return compared


is_untouched: Final[Callable[[], bool]] = _compared() if IS_OWN else lambda: False
"""Whether nobody has replaced what stock makes a request with."""
