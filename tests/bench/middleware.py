"""What the middlewares add to a request, in CPU of the process.

    python tests/bench/middleware.py [--rounds 31] [--turns 5000]

The application answers at once and calls nobody; there is no server and no event loop, so that what is
left is ours. A request has the headers that a browser or a client library sends, `with an id` also an
`X-Request-ID`. The sides take turns; what is printed is the median over the rounds of ours - bare of the same
round, with its quartiles. Python-level calls are those that the middleware adds to one warm request. Asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import headrace
from bench.interleaved import cpu_s, rounds_of

RULES = "version: 1\nupstreams: {billing: {base_url: 'http://127.0.0.1:9'}}\n"
HEADERS = {
    "Host": "shop.internal",
    "User-Agent": "python-requests/2.32",
    "Accept-Encoding": "gzip, deflate, br",
    "Accept": "*/*",
    "Connection": "keep-alive",
    "Cookie": "session=2f1b",
}
WITH_AN_ID = {**HEADERS, "X-Request-ID": "0af7651916cd43dd8448eb211c80319c"}


class Added(NamedTuple):
    """What one middleware adds to a request: microseconds (lower quartile, median, upper), Python-level calls."""

    lower_us: float
    median_us: float
    upper_us: float
    calls: int


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"fine"})


def wsgi_app(environ: Any, start_response: Any) -> Iterable[bytes]:
    """Answers at once."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"fine"]


def asgi_request(app: Any, headers: dict[str, str]) -> Callable[[], None]:
    """Serves one request by *app*, without an event loop: nothing in it waits."""
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    def serve() -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": raw, "state": {}}
        try:
            app(scope, receive, send).send(None)
        except StopIteration:
            return

    return serve


def wsgi_request(app: Any, headers: dict[str, str]) -> Callable[[], None]:
    """Serves one request by *app*."""
    keys = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}

    def start_response(status: Any, headers: Any, exc_info: Any = None) -> None: ...

    def serve() -> None:
        body: Any = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/", **keys}, start_response)
        for _ in body:
            pass
        if hasattr(body, "close"):
            body.close()

    return serve


@contextmanager
def requests_of(file: Path) -> Iterator[dict[str, tuple[Callable[[], None], Callable[[], None]]]]:
    """A bare request and the same through our middleware, by a title. They may be made until this ends.

    Args:
        file: Where the rules are written to.
    """
    file.write_text(RULES)
    with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
        yield {
            f"{title}, {said}": (make(bare, headers), make(wrap(bare, headrace=hr), headers))
            for title, make, bare, wrap in (
                ("ASGI", asgi_request, asgi_app, headrace.ASGIMiddleware),
                ("WSGI", wsgi_request, wsgi_app, headrace.WSGIMiddleware),
            )
            for said, headers in (("no id", HEADERS), ("with an id", WITH_AN_ID))
        }


def ours_in(act: Callable[[], object]) -> list[str]:
    """Python functions of headrace that one warm *act* enters, in order."""
    folder = f"{Path(headrace.__file__).parent}/"
    found: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(folder):
            found.append(getattr(frame.f_code, "co_qualname", frame.f_code.co_name))

    act()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return found


def measure(*, rounds: int, turns: int) -> dict[str, Added]:
    """What each middleware adds, with and without an id of the caller. Blocks."""
    with tempfile.TemporaryDirectory() as folder, requests_of(Path(folder, "upstreams.yaml")) as pairs:
        sides = {
            (title, number): lambda act=act: cpu_s(act, turns=turns)
            for title, pair in pairs.items()
            for number, act in enumerate(pair)
        }
        for act in sides.values():
            act()
        costs = rounds_of(sides, rounds=rounds)
        found = {}
        for title, (_, ours) in pairs.items():
            added = [(b - a) * 1e6 for a, b in zip(costs[title, 0], costs[title, 1], strict=True)]
            found[title] = Added(*statistics.quantiles(added, n=4), len(ours_in(ours)))
        return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--turns", type=int, default=5000)
    options = parser.parse_args()
    print(f"{'added to a request':22}{'CPU µs':>10}{'quartiles':>18}{'Python calls':>15}")
    for title, one in measure(rounds=options.rounds, turns=options.turns).items():
        print(f"{title:22}{one.median_us:10.2f}{one.lower_us:10.2f} – {one.upper_us:5.2f}{one.calls:15}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
