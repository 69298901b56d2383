"""Calls by many threads to a server that misbehaves: whoever gets an answer gets their own, and nothing is left over.

Each call names itself (`X-Token`) and what the server shall do with its first attempt (`X-Fault`); further attempts get
a good answer. An answer repeats the token from its first byte to its last, with a checksum of the body that the server
has read. What the server sends beyond an answer is a whole answer to nobody, which names NOBODY.

    python -m support.echoes FOLDER    serves, until its input ends: prints two ports, plain and TLS; ca.pem in FOLDER
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import urllib3

import headrace
from support.faultserver import (
    Answer,
    Break,
    Endless,
    FaultServer,
    Raw,
    Reply,
    Request,
    Silence,
    server_context,
)
from support.surfaces import body_of, status_of

NOBODY = "nobody"
SHORT_BY = 10
_MOST_SEEN = 20_000


def echo_of(token: str, body: bytes, n_bytes: int) -> bytes:
    """What the server answers to *body*, of *n_bytes* bytes."""
    one = f"{token} {zlib.crc32(body)} ".encode()
    return (one * (n_bytes // len(one) + 1))[:n_bytes]


def _head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *lines, "", "")).encode()


def _whole(token: str, body: bytes, *, off_by: int = 0, status: str = "200 OK") -> bytes:
    return _head(f"X-Echo: {token}", f"Content-Length: {len(body) + off_by}", status=status) + body


_STOLEN = _whole(NOBODY, echo_of(NOBODY, b"", 40))
_CHUNKED = "Transfer-Encoding: chunked"

Fault = Callable[[str, bytes], Reply]


def _answer(**kw: Any) -> Fault:
    return lambda token, body: Answer(headers=(("X-Echo", token),), body=body, **kw)


def _raw(data: Callable[[str, bytes], bytes], then: Any = "keep") -> Fault:
    return lambda token, body: Raw(data(token, body), then)


def _in_chunks(end: bytes) -> Callable[[str, bytes], bytes]:
    """A chunked answer of two chunks, the second of which is *end*."""
    return lambda token, body: (
        _head(f"X-Echo: {token}", _CHUNKED) + b"%x\r\n%b\r\n" % (len(body) // 2, body[: len(body) // 2]) + end
    )


FAULTS: dict[str, tuple[int, Fault]] = {
    "none": (400, _answer()),
    "in chunks": (60, _answer(chunked=True)),
    "said close": (20, _answer(close=True)),
    "until close": (20, _answer(framed=False)),
    "slow": (10, _answer(delay_s=0.05)),
    "dripping head": (6, _answer(drip_head_s=0.002)),
    "dripping body": (3, _answer(drip_body_s=0.0005)),
    "dripping chunks": (3, _answer(chunked=True, drip_body_s=0.0005)),
    "then closed": (20, _answer(then="fin")),
    "then reset": (20, _answer(then="rst")),
    "then half closed": (20, _answer(then="half_close")),
    "reset before": (20, lambda *_: Break("request")),
    "closed before": (20, lambda *_: Break("request", "fin")),
    "reset amid head": (20, lambda *_: Break("head")),
    "reset amid body": (20, _raw(lambda token, body: _whole(token, body, off_by=5)[:-20], "rst")),
    "closed amid body": (20, _raw(lambda token, body: _whole(token, body, off_by=5), "fin")),
    "silent amid body": (1, _raw(lambda token, body: _whole(token, body, off_by=5))),
    "silent": (1, lambda *_: Silence()),
    "interim": (20, _raw(lambda token, body: _head(status="100 Continue") * 3 + _whole(token, body))),
    "early hints": (
        20,
        _raw(lambda token, body: _head("Link: </a>", status="103 Early Hints") + _whole(token, body)),
    ),
    "endless interim": (1, lambda *_: Endless(pause_s=0.01)),
    "surplus": (20, _raw(lambda token, body: _whole(token, body) + _STOLEN)),
    "half a surplus": (20, _raw(lambda token, body: _whole(token, body) + _STOLEN[:20])),
    "surplus behind chunks": (
        20,
        _raw(lambda token, body: _in_chunks(b"0\r\n\r\n")(token, body * 2) + _STOLEN),
    ),
    "short length": (20, _raw(lambda token, body: _whole(token, body, off_by=-SHORT_BY))),
    "lengths differ": (
        10,
        _raw(lambda token, body: _head(f"Content-Length: {len(body)}", "Content-Length: 5") + body),
    ),
    "length and chunks": (
        10,
        _raw(
            lambda token, body: (
                _head("Content-Length: 5", _CHUNKED) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            )
        ),
    ),
    "chunk size that is none": (20, _raw(_in_chunks(b"zz\r\nhello\r\n0\r\n\r\n"))),
    "chunk longer than its size": (20, _raw(_in_chunks(b"5\r\nhello!\r\n0\r\n\r\n"))),
    "chunks cut short": (20, _raw(_in_chunks(b"ff\r\nhello"), "fin")),
    "chunks reset": (20, _raw(_in_chunks(b"ff\r\nhello"), "rst")),
    "no HTTP": (10, lambda *_: Raw()),
    "204 with a body": (20, _raw(lambda token, body: _whole(token, body, status="204 No Content"))),
    "304 with a body": (10, _raw(lambda token, body: _whole(token, body, status="304 Not Modified"))),
    "another protocol": (5, _raw(lambda token, body: _head("Upgrade: x", status="101 Switching") + body)),
    "absurd length": (10, _raw(lambda token, body: _whole(token, body, off_by=10**15), "fin")),
    "503": (20, _answer(status=503)),
}
"""By name: how often it is asked for, and what it is. HEAD gets the body of each that has one, too."""


class Echoes:
    """The server's behaviour."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Reply:
        """The answer to *request*: as it asks for, where it is its first attempt."""
        token = request.header("X-Token")
        if token is None or request.target != f"/echo/{token}":
            return Answer(599, body=b"the request is not as it was sent")
        with self._lock:
            is_first = token not in self._seen
            self._seen[token] = None
            if len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)
        body = echo_of(token, request.body, int(request.header("X-Size") or 0))
        fault = request.header("X-Fault") if is_first else "none"
        reply = FAULTS[fault or "none"][1](token, body)
        if request.method == "HEAD" and isinstance(reply, Answer) and fault == "none" and len(body) % 2:
            return Raw(_whole(token, body), "keep")
        return reply


def serve(folder: Path) -> None:
    """Serve until standard input ends. Blocks."""
    import trustme

    authority, behave = trustme.CA(), Echoes()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    with FaultServer(keep=1) as plain, FaultServer(keep=1, tls=server_context(authority)) as tls:
        plain.always(behave)
        tls.always(behave)
        print(plain.port, tls.port, flush=True)
        sys.stdin.read()


@dataclass
class Served:
    """A server in a process of its own."""

    urls: dict[str, str]
    process: subprocess.Popen[str]

    def stand_still(self, for_s: float) -> None:
        """The process does nothing for so long; the system goes on taking connections for it. Blocks."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(for_s)
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Served]:
    """A server whose ca.pem is in *folder*."""
    with subprocess.Popen(
        [sys.executable, "-m", "support.echoes", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        try:
            assert process.stdout is not None
            plain, tls = process.stdout.readline().split()
            yield Served({"plain": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}"}, process)
        finally:
            process.kill()


def rules_for(urls: dict[str, str], folder: Path, parser: str) -> str:
    """A file for both servers; 12 connections each, so that 16 threads wait for one now and then."""
    common = f"""\
    timeouts: {{deadline: 4s, attempt: 1s, read: 1s, connect: 1s}}
    retry: {{max_attempts: 3, backoff: {{base: 1ms}}, budget: {{min_per_second: 10000}}}}
    circuit_breaker: {{mode: disabled}}
    pool: {{max_connections: 12, parser: {parser}}}
"""
    text = "version: 1\ninstall: {urllib3: true}\nupstreams:\n"
    for name, url in urls.items():
        text += f"  {name}:\n    base_url: {url}\n{common}"
    return f"{text}    tls: {{ca: '{folder / 'ca.pem'}'}}\n"


@dataclass
class Found:
    """What came of it: calls by surface, fault and end; and what is wrong."""

    ends: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def calls(self) -> int:
        """How many were made."""
        return sum(self.ends.values())

    def own(self) -> int:
        """How many got their answer."""
        return sum(n for (_, _, end), n in self.ends.items() if end.startswith("own"))


class Caller:
    """One thread's sessions, and the ways in which it calls."""

    def __init__(self, hr: headrace.Headrace, urls: dict[str, str], parser: str, rng: random.Random) -> None:
        self.hr, self.urls, self.parser, self.rng = hr, urls, parser, rng
        self.session, self.own_session, self.manager = requests.Session(), hr.session(), urllib3.PoolManager()

    def close(self) -> None:
        """Close what it holds."""
        self.session.close()
        self.own_session.close()
        self.manager.clear()

    def send(
        self, surface: str, name: str, method: str, path: str, headers: Any, body: Any, stream: bool
    ) -> Any:
        """The answer over *surface* of upstream *name*. Blocks."""
        handle, url, inform = (
            self.hr.upstream(name),
            self.urls[name] + path,
            {"body": body, "headers": headers},
        )
        match surface:
            case "handle":
                return handle.request(method, path, headers=headers, data=body, stream=stream)
            case "urlopen":
                return handle.urlopen(method, path, preload_content=not stream, **inform)
            case "session":
                return self.own_session.request(method, url, headers=headers, data=body, stream=stream)
            case "requests":
                return requests.request(method, url, headers=headers, data=body, stream=stream)
            case "requests.Session":
                return self.session.request(method, url, headers=headers, data=body, stream=stream)
            case "urllib3":
                return self.manager.request(method, url, preload_content=not stream, **inform)
        raise AssertionError(surface)

    def call(self, token: str, found: Found) -> None:
        """Make one call by chance, and look at what it gets. Blocks; mutates *found*."""
        rng = self.rng
        surface, name = rng.choice(SURFACES), rng.choice(list(self.urls))
        fault = rng.choices(list(FAULTS), [often for often, _ in FAULTS.values()])[0]
        method = rng.choices(["GET", "POST", "PUT", "HEAD"], [10, 3, 2, 1])[0]
        n_bytes = rng.choices([64, 1025, 30_000, 400_000], [10, 10, 2, 1])[0]
        if "dripping" in fault:
            n_bytes = 64
        body = rng.randbytes(rng.choice([10, 2000, 40_000])) if method in ("POST", "PUT") else None
        stream, gives_up = rng.random() < 0.25, rng.random() < 0.2
        headers = {"X-Token": token, "X-Fault": fault, "X-Size": str(n_bytes)}
        began = time.monotonic()
        wrong = None
        answer = None
        try:
            answer = self.send(surface, name, method, f"/echo/{token}", headers, body, stream)
            status = status_of(answer)
            if stream and gives_up:
                raw = getattr(answer, "raw", answer)
                got, end = raw.read(100), "own, given up"
            else:
                got, end = body_of(answer), "own"
            whole = b"" if method == "HEAD" else echo_of(token, body or b"", n_bytes)
            wrong = self.judge(fault, status, answer.headers.get("X-Echo"), token, got, whole, end != "own")
            if end != "own" or stream:
                answer.close()
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            record = headrace.record_of(error)
            # What breaks off while the caller reads has its error; the call itself had ended well.
            end = "broke" if record is None else record.reason.value
            if record is None and not stream:
                wrong = f"no record: {error!r}"
            answer = None
        except Exception as error:
            end, wrong = "no error of its library", f"{error!r}"
        took_s = time.monotonic() - began
        with found.lock:
            found.ends[surface, fault, end] += 1
            found.longest_s = max(found.longest_s, took_s)
            if wrong is not None:
                found.wrong.append(f"{surface} {name} {method} {fault} stream={stream} {token}: {wrong:.300}")

    def judge(
        self, fault: str, status: int, echo: str | None, token: str, got: bytes, whole: bytes, is_part: bool
    ) -> str | None:
        """What is wrong with an answer to the call of that *token*, or None."""
        told = {
            "204 with a body": (204, b""),
            "304 with a body": (304, b""),
            "another protocol": (101, b""),
            "early hints": (103, b"")
            if self.parser == "stdlib"
            else None,  # http.client takes it for the answer
        }.get(fault)
        if told == (status, got):
            return None
        if status == 503 and fault == "503":
            status = 200
        if status != 200 or (echo != token and fault not in ("lengths differ", "length and chunks")):
            return f"status {status}, to {echo!r}, {got[:60]!r}"
        fits = [whole]
        if fault == "short length":
            fits.append(whole[:-SHORT_BY])
        if got not in fits and not (is_part and whole.startswith(got)):
            return f"{len(got)} bytes of {len(whole)}: {got[:60]!r}"
        return None


SURFACES = ("handle", "urlopen", "session", "requests", "requests.Session", "urllib3")


def descriptors() -> int:
    """Open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def run(
    folder: Path,
    parser: str,
    *,
    seconds: float,
    threads: int = 16,
    seed: int = 0,
    still_every_s: float = 10.0,
) -> Found:
    """Make calls for *seconds*; the server stands still now and then. Blocks."""
    found = Found()
    with served(folder) as server:
        file = folder / "upstreams.yaml"
        file.write_text(rules_for(server.urls, folder, parser))
        requests.get(server.urls["plain"])  # whatever requests loads lazily
        threads_before, descriptors_before = threading.active_count(), descriptors()
        with headrace.Headrace(file) as hr:
            ends_at = time.monotonic() + seconds

            def work(number: int) -> None:
                caller = Caller(hr, server.urls, parser, random.Random(f"{seed}:{number}"))
                n = 0
                while time.monotonic() < ends_at:
                    n += 1
                    caller.call(f"{seed}-{number}-{n}", found)
                caller.close()

            workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
            for worker in workers:
                worker.start()
            rng = random.Random(seed)
            while (left_s := ends_at - time.monotonic()) > 0:
                time.sleep(min(left_s, still_every_s))
                server.stand_still(rng.choice([0.2, 0.5, 1.5]))
            for worker in workers:
                worker.join(60)
            if hung := sum(worker.is_alive() for worker in workers):
                found.wrong.append(f"{hung} threads hang")
            gc.collect()
            for name, upstream in hr.status()["upstreams"].items():
                pool = upstream["pool"]
                if pool["inuse"] or pool["waiting"]:
                    found.wrong.append(f"{name}: {pool}")
        gc.collect()
        ends_at = time.monotonic() + 20
        while time.monotonic() < ends_at and (
            threading.active_count() > threads_before or descriptors() > descriptors_before
        ):
            time.sleep(0.05)
        if threading.active_count() > threads_before:
            found.wrong.append(f"threads left: {[one.name for one in threading.enumerate()]}")
        if descriptors() > descriptors_before:
            found.wrong.append(f"descriptors: {descriptors_before} -> {descriptors()}")
    return found


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
