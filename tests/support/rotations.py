"""Traffic over mTLS while its client certificate is rotated again and again: what fails, and what the server sees.

The whole is `python tests/bench/rotations.py`, a slice of it a test. A call that fails counts, whatever it fails with:
the rules allow no second attempt, and a request that was sent once more over another connection counts as well.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import trustme
import urllib3

import headrace
from support.faultserver import Answer, FaultServer, Request, server_context
from support.governed import running
from support.nginx import Nginx
from support.pairs import Files, Pair, issue
from support.waiting import wait_until

RULES = """version: 1
install: {{urllib3: true}}
reload: {{debounce: 20ms, max_delay: 100ms, poll: 100ms}}
upstreams:
  billing:
    base_url: {url}
    tls: {{ca: '{ca}', {pair}, rotation_drain: 60s}}
    pool: {{max_connections: {size}, min_idle: 2}}
    timeouts: {{attempt: 60s, deadline: 120s, acquire: 60s, connect: 30s, tls_handshake: 30s, read: 30s}}
    retry: {{max_attempts: 1}}
    circuit_breaker: {{mode: disabled}}
"""


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        failed: What calls ended with.
        late: Serials of old certificates that the server saw when none may be left; the whole of them.
        left: What was not given back at the end, in words.
    """

    calls: int = 0
    rotations: int = 0
    resent: int = 0
    failed: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    closed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Witness:
    """A server that demands a client certificate, and what it can tell.

    Attributes:
        seen: The serial of the client certificate of each request that was answered by now, in their order.
        open_connections: Those that it has not closed.
    """

    url: str
    seen: Callable[[], list[str]]
    open_connections: Callable[[], int]


@contextmanager
def fault_server(folder: Path, authority: trustme.CA) -> Iterator[Witness]:
    """The tests' own, which asks Python."""
    seen: list[str] = []

    def answer(request: Request) -> Answer:
        seen.append(str((request.client_cert or {}).get("serialNumber")))
        return Answer(200, body=b"x" * 300)

    with FaultServer(tls=server_context(authority, client_ca=authority)) as server:
        server.always(answer)
        yield Witness(server.url, lambda: list(seen), lambda: server.open_connections)


def nginx_of(program: str, version: str) -> Callable[[Path, trustme.CA], AbstractContextManager[Witness]]:
    """nginx, with its own account of it: `$ssl_client_serial` in its log."""

    @contextmanager
    def start(folder: Path, authority: trustme.CA) -> Iterator[Witness]:
        body = "x" * 300
        location = f"keepalive_requests 100000;\nlocation / {{ return 200 {body}; }}\n"
        tls = f"ssl_protocols TLSv{version};\n" + demanding(folder / "ca.pem")
        with Nginx(folder / "nginx", program, location, ca=authority, tls=tls) as nginx:
            yield Witness(
                nginx.url, lambda: [line.client for line in nginx.settled()], lambda: nginx.open_connections
            )

    return start


def demanding(ca: Path) -> str:
    """The directives with which nginx demands a client certificate of *ca*."""
    return f"ssl_client_certificate {ca};\nssl_verify_client on;\nssl_session_tickets on;\n"


def rotate_under_traffic(
    folder: Path,
    *,
    rotations: int,
    threads: int,
    seed: int,
    server_of: Callable[[Path, trustme.CA], AbstractContextManager[Witness]] = fault_server,
    store: Callable[[Path, Pair], Files] = Files,
    say: Callable[[str], object] = len,
) -> Outcome:
    """*rotations* of the client certificate in *store* under the calls of *threads* threads. Blocks."""
    dice, authority, out = random.Random(seed), trustme.CA(), Outcome()
    ca = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    files = store(folder, issue(authority))

    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with server_of(folder, authority) as server:
        text = RULES.format(url=server.url, ca=ca, pair=files.yaml(), size=max(2, threads * 3 // 4))
        with running(folder, text) as hr:
            callers = [Caller(_maker(nth, server.url, hr), out.failed) for nth in range(threads)]
            for caller in callers:
                caller.start()
            try:
                for nth in range(rotations):
                    files.pause_s = dice.choice((0.0, 0.0, 0.1, 0.3))
                    new = issue(authority)
                    files.rotate(new, dice)
                    taken = nth + 1
                    wait_until(lambda taken=taken: _status(hr)["rotations"].get("taken", 0) >= taken  # type: ignore[misc]
                        and _status(hr)["tls"]["refused"] is None, timeout_s=120)  # fmt: skip
                    # Each call that was under way has ended then, and with it its connection.
                    _let_each_call(callers)
                    mark = len(server.seen())
                    _let_each_call(callers)
                    seen = server.seen()
                    out.late += [serial for serial in seen[mark:] if serial != new.serial]
                    out.rotations += 1
                    say(
                        f"rotation {taken}: {len(seen)} requests, {len(out.failed)} failed, {len(out.late)} late"
                    )
            finally:
                for caller in callers:
                    caller.over.set()
                for caller in callers:
                    caller.join(60)
            status = _status(hr)
            out.calls, out.resent = sum(caller.calls for caller in callers), status["retry"]["resent"]
            out.closed = dict(status["pool"]["closed"])
            if status["pool"]["inuse"] or status["pool"]["waiting"]:
                out.left.append(f"slots: {status['pool']}")
        try:
            wait_until(lambda: server.open_connections() == 0)
        except AssertionError:
            out.left.append(f"{server.open_connections()} connections at the server")
    try:
        wait_until(lambda: (threading.active_count(), len(os.listdir("/proc/self/fd"))) <= before)
    except AssertionError:
        out.left.append(f"threads, descriptors: {before} -> {threading.active_count()}, …")
    return out


class Caller(threading.Thread):
    """Makes one call after the other."""

    def __init__(self, call: Callable[[], int], failed: list[str]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.failed = failed
        self.calls = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                status = self.call()
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}")
            else:
                if status != 200:
                    self.failed.append(f"status {status}")
            self.calls += 1
            self.over.wait(0.002)


def _let_each_call(callers: list[Caller]) -> None:
    """Return when each of *callers* has begun and ended a call since."""
    wanted = [caller.calls + 2 for caller in callers]
    wait_until(
        lambda: all(caller.calls >= calls for caller, calls in zip(callers, wanted, strict=True)),
        timeout_s=120,
    )


def _maker(nth: int, url: str, hr: headrace.Headrace) -> Callable[[], int]:
    """A way to call, another one for each *nth*: all the surfaces in turn."""
    session, manager = requests.Session(), urllib3.PoolManager()
    ours, handle, paths = hr.session(), hr.upstream("billing"), itertools.count()
    makers: list[Callable[[], int]] = [
        lambda: session.get(f"{url}/{next(paths)}").status_code,
        lambda: manager.request("GET", f"{url}/{next(paths)}", retries=False).status,
        lambda: handle.get(f"/{next(paths)}").status_code,
        lambda: int(handle.urlopen("GET", f"/{next(paths)}").status),
        lambda: ours.get(f"{url}/{next(paths)}").status_code,
        lambda: requests.post(f"{url}/{next(paths)}", data=b"y" * 2000).status_code,
        lambda: _streamed(session, f"{url}/{next(paths)}"),
    ]
    return makers[nth % len(makers)]


def _streamed(session: requests.Session, url: str) -> int:
    with session.get(url, stream=True) as answer:
        return answer.status_code if sum(map(len, answer.iter_content(50))) == 300 else 0


def _status(hr: headrace.Headrace) -> dict[str, Any]:
    return hr.status()["upstreams"]["billing"]  # type: ignore[no-any-return]
